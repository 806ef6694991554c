"""Several masks as one picture: bit k of a pixel says whether mask k covers it."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8

from ..shapes import Mask

MAX_PLANES = 8


def pack_masks(masks: Sequence[Mask]) -> UInt8[np.ndarray, "h w"]:
    """The masks, all of one size, as bits.

    Raises:
        ValueError: No mask, or more than MAX_PLANES.
    """
    if not 1 <= len(masks) <= MAX_PLANES:
        raise ValueError(f"From 1 to {MAX_PLANES} masks fit into one picture, not {len(masks)}.")
    packed = masks[0].astype(np.uint8)
    for plane, mask in enumerate(masks[1:], start=1):
        packed |= mask.astype(np.uint8) << plane
    return packed


def nearest(packed: UInt8[np.ndarray, "h w"], size: tuple[int, int]) -> UInt8[np.ndarray, "h_out w_out"]:
    """The picture at another (width, height): of each new pixel's centre, the old pixel in which it lies."""
    columns, rows = (
        ((np.arange(new) + 0.5) * old / new).astype(int) for new, old in zip(size, packed.shape[::-1], strict=True)
    )
    return packed[rows[:, None], columns]


def packed_png(packed: UInt8[np.ndarray, "h w"]) -> bytes:
    """An 8-bit grey PNG, made for speed: masks are runs of equal pixels, which the simplest compression finds."""
    import cv2

    options = [cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE]
    # Older versions choose a filter for each row themselves, which takes most of the time.
    if hasattr(cv2, "IMWRITE_PNG_FILTER"):
        options += [cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_NONE]
    return cv2.imencode(".png", packed, options)[1].tobytes()
