"""Adjustments of a mask after the clicks: a wider or narrower one, a soft edge."""

import math

import numpy as np
from jaxtyping import Float

from ..shapes import Mask

MAX_PIXELS = 4096


def grow_mask(mask: Mask, pixels: int) -> Mask:
    """The mask with its edge moved outwards by `pixels` in every direction; a negative number moves it inwards.

    Distances are Euclidean, so corners become round. The picture's border is no edge: a mask that touches it does not
    shrink away from it.

    Raises:
        ValueError: More than MAX_PIXELS either way.
    """
    if not abs(pixels) <= MAX_PIXELS:
        raise ValueError(f"A mask is grown by {pixels} pixels; give a number from {-MAX_PIXELS} to {MAX_PIXELS}.")
    if pixels == 0:
        return mask.copy()
    grown = np.zeros_like(mask)
    # What is further away than the edge can move stays as it is, and distances take most of the time.
    around = _around(mask, max(pixels, 1))
    grown[around] = _grown(mask[around], pixels)
    return grown


def feather_mask(mask: Mask, pixels: float) -> Float[np.ndarray, "h w"]:
    """The mask as 0..1 with a soft edge: a Gaussian blur with a standard deviation of `pixels`; 0 keeps it hard.

    The edge stays where it was, at 0.5, and the picture's border is no edge.

    Raises:
        ValueError: A negative number, one above MAX_PIXELS, or NaN.
    """
    if not 0 <= pixels <= MAX_PIXELS:
        raise ValueError(f"A mask is feathered by {pixels} pixels; give a number from 0 to {MAX_PIXELS}.")
    if pixels == 0:
        return mask.astype(np.float32)
    import cv2

    # Three standard deviations hold 99.7 % of a Gaussian. OpenCV reflects no further than the picture is large.
    radius = min(math.ceil(3 * pixels), max(mask.shape))
    size = (2 * radius + 1, 2 * radius + 1)
    blurred = cv2.GaussianBlur(mask.astype(np.float32), size, pixels, borderType=cv2.BORDER_REPLICATE)
    return np.clip(blurred, 0, 1)


def _grown(mask: Mask, pixels: int) -> Mask:
    if pixels < 0:
        return ~_grown(~mask, -pixels)
    return _distance_to(mask) <= pixels if mask.any() else mask


def _around(mask: Mask, margin: int) -> tuple[slice, slice]:
    """The rows and columns in which the mask lies, and so many beside them."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    return _span(rows, margin), _span(columns, margin)


def _span(indices: np.ndarray, margin: int) -> slice:
    return slice(max(0, indices[0] - margin), indices[-1] + 1 + margin) if len(indices) else slice(0)


def _distance_to(mask: Mask) -> Float[np.ndarray, "h w"]:
    """From every pixel's centre to the nearest centre inside the mask, in pixels; 0 inside."""
    import cv2

    return cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
