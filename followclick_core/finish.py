"""What is done with a clip after sampling: only the moving region is kept of it, all else is the photo's own pixels.

A large photo is animated through a crop: the model works at its own size on the part around the object, and the result
goes back to where it was cut. Masks count pixels of the picture that they come with; frames are uint8.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from PIL import Image as PillowImage

from .flow.magnitude import swept_region
from .flow.tracks import check_mask, follow
from .segment.morphology import feather_mask, grow_mask
from .shapes import Frames8, Frames8OfOtherSize, Image, ImageOfOtherSize, Mask, MaskOfOtherSize

MAX_CONTEXT = 16.0
ASPECT_TOLERANCE = 0.02  # sizes in whole pixels differ by this much though nothing was cropped


@dataclass(frozen=True, eq=False)
class Place:
    """Where a crop lies in the photo that it was cut from; in the photo's pixels."""

    photo: Image
    left: int
    top: int
    width: int
    height: int

    @property
    def window(self) -> tuple[slice, slice]:
        """Rows and columns."""
        return slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)


def crop_region(photo: Image, mask: Mask, context: float = 2.5) -> tuple[ImageOfOtherSize, MaskOfOtherSize, Place]:
    """The part of a photo around the region, with its mask, and the place to which `stitch_region` returns it.

    The part is a square around the middle of the region, as the models learn on squares, shifted into the photo and cut
    to its sides where it is larger.

    Args:
        context: Its side, in longer sides of the region. What is to fly off needs room; a face that smiles does not.

    Raises:
        ValueError: The mask is empty or of another size, or `context` is below 1 or no number.
    """
    if not 1 <= context <= MAX_CONTEXT:
        raise ValueError(f"The context is {context}; give from 1, the region alone, to {MAX_CONTEXT:g} times its side.")
    check_mask(mask, photo[None])
    height, width = mask.shape
    rows, columns = np.flatnonzero(mask.any(axis=1)).tolist(), np.flatnonzero(mask.any(axis=0)).tolist()
    side = max(rows[-1] - rows[0], columns[-1] - columns[0]) + 1
    # No smaller than the least that can be animated, so that a click on a dot works too.
    side = max(round(side * context), 16)
    top, tall = _interval(rows[0], rows[-1], side, height)
    left, wide = _interval(columns[0], columns[-1], side, width)
    place = Place(photo, left, top, wide, tall)
    return photo[place.window], mask[place.window], place


def stitch_region(frames: Frames8, place: Place, feather: float = 8.0) -> Frames8OfOtherSize:
    """Full-size frames: the photo, with the clip of its crop in the place that it was cut from.

    Args:
        frames: Of any size. They are scaled to the place; of other proportions, to the middle part of it that has
            theirs, which is what the host's scaling to a model's size leaves of a crop.
        feather: Width in the photo's pixels over which the clip fades into the photo, inwards from the crop's sides;
            none at the photo's own border.

    Raises:
        ValueError: A negative width, or NaN.
    """
    place = _middle_part(place, frames.shape[2] / frames.shape[1])
    alpha = _border_ramp(place, feather)[..., None]
    below = place.photo[place.window].astype(np.float32)
    stitched = np.repeat(place.photo[None], len(frames), axis=0)
    for whole, frame in zip(stitched, frames, strict=True):
        whole[place.window] = _blend(below, _scaled(frame, (place.width, place.height)), alpha)
    return stitched


def lock_background(frames: Frames8, photo: Image, mask: Mask, feather: float = 2.0) -> Frames8:
    """The frames with the photo's own pixels wherever the object never comes.

    The object is followed through the clip by optical flow; what it sweeps over, with a margin, stays as it was
    sampled.

    Args:
        photo: The first frame as it was given, at the frames' size.
        mask: The object in it.
        feather: Softness of the seam in pixels, outwards from the swept region.

    Raises:
        ValueError: The photo or the mask has another size than the frames, the mask is empty, there is only one frame,
            or the feather is negative.
    """
    if photo.shape != frames.shape[1:]:
        raise ValueError(
            f"The photo is {photo.shape[1]}x{photo.shape[0]} and the frames are {frames.shape[2]}x{frames.shape[1]} "
            "pixels; scale it to the clip."
        )
    swept = swept_region(follow(frames, mask), mask)
    # Grown by as much as the blur reaches inwards, so that the swept region itself is the clip's alone.
    alpha = feather_mask(grow_mask(swept, round(2 * feather)), feather)[..., None]
    below = photo.astype(np.float32)
    return np.stack([_blend(below, frame, alpha) for frame in frames])


def _middle_part(place: Place, aspect: float) -> Place:
    """The largest part around the middle of the place with these proportions (width over height)."""
    wider = aspect * place.height / place.width
    if abs(wider - 1) < ASPECT_TOLERANCE:
        return place
    width = place.width if wider > 1 else round(place.height * aspect)
    height = place.height if wider < 1 else round(place.width / aspect)
    left, top = place.left + (place.width - width) // 2, place.top + (place.height - height) // 2
    return Place(place.photo, left, top, width, height)


def _interval(first: int, last: int, side: int, limit: int) -> tuple[int, int]:
    """Start and length of an interval of `side` around first..last that stays within 0..limit."""
    side = min(side, limit)
    start = round((first + last + 1 - side) / 2)
    return int(np.clip(start, 0, limit - side)), int(side)


def _border_ramp(place: Place, feather: float) -> Float[np.ndarray, "h w"]:
    """1 within the crop, falling to its sides, but not to those that are the photo's own."""
    if not 0 <= feather < np.inf:
        raise ValueError(f"The feather is {feather}; give a width in pixels, 0 for a hard seam.")
    height, width = place.photo.shape[:2]
    down = _ramp(place.height, feather, place.top > 0, place.top + place.height < height)
    across = _ramp(place.width, feather, place.left > 0, place.left + place.width < width)
    return np.minimum(down[:, None], across[None])


def _ramp(length: int, feather: float, at_start: bool, at_end: bool) -> Float[np.ndarray, "n"]:
    index = np.arange(length, dtype=np.float32) + 0.5
    ramp = np.ones(length, np.float32)
    for distance, fades in ((index, at_start), (index[::-1], at_end)):
        if fades and feather > 0:
            ramp = np.minimum(ramp, distance / feather)
    return ramp


def _scaled(frame: Image, size: tuple[int, int]) -> ImageOfOtherSize:
    return np.asarray(PillowImage.fromarray(frame).resize(size, PillowImage.Resampling.LANCZOS))


def _blend(below: np.ndarray, above: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    return np.rint(below + alpha * (above - below)).astype(np.uint8)
