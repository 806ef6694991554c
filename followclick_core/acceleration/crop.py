"""Only the part of a clip around the click is sampled; the rest is the photo, as it would have stayed.

Unlike finish.crop_region, which cuts pixels that are then animated at the model's full size, this keeps the clip's
size and the object's size in it: fewer latents are computed, nothing is scaled.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..shapes import MasksOfOtherSize

MAX_CONTEXT = 16.0
# Cells over which the sampled part fades into the photo, inwards from its sides.
FEATHER = 2
# A part of more than this share of the picture is not worth its seam.
LARGEST_SHARE = 0.8


@dataclass(frozen=True)
class LatentBox:
    """A part of the latents, in cells."""

    top: int
    left: int
    height: int
    width: int

    @property
    def window(self) -> tuple[slice, slice]:
        """Rows and columns."""
        return slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)


def latent_box(masks: MasksOfOtherSize, context: float, multiple: int, least: int = 8) -> LatentBox | None:
    """The part of the latents around whatever moves; None where it would be nearly all of them, or nothing moves.

    Args:
        masks: At the latents' size, above 0 where something moves; of several the union counts.
        context: Each side of the part, in sides of the region's bounding box: the object needs room to move in.
        multiple: What sides the UNet takes.
        least: Cells that a side has at least, where the picture has so many; convolutions want surroundings.

    Raises:
        ValueError: `context` is below 1 or no number.
    """
    check_context(context)
    moving = (masks.flatten(0, -3) > 0).any(0)
    if not moving.any():
        return None
    height, width = moving.shape
    top, tall = _interval(moving.any(1), context, multiple, least)
    left, wide = _interval(moving.any(0), context, multiple, least)
    return None if tall * wide > LARGEST_SHARE * height * width else LatentBox(top, left, tall, wide)


def check_context(context: float) -> None:
    """ValueError for a part smaller than the region, or no number."""
    if not 1 <= context <= MAX_CONTEXT:
        raise ValueError(
            f"The part to sample is {context:g} times the region; give from 1, the region alone, to {MAX_CONTEXT:g}."
        )


def _interval(moving: Tensor, context: float, multiple: int, least: int) -> tuple[int, int]:
    """Start and length along one axis."""
    first, last = (int(index) for index in moving.nonzero().flatten()[[0, -1]])
    side = max(round((last - first + 1) * context), least)
    side = min(-(-side // multiple) * multiple, len(moving))
    start = min(max(round((first + last + 1 - side) / 2), 0), len(moving) - side)
    return start, side


def box_share(box: LatentBox, size: tuple[int, int], feather: int = FEATHER) -> Float[Tensor, "h w"]:
    """What the sampled part counts in each cell of latents of `size`: 1 within, falling to its sides, 0 outside.

    It does not fall to those sides that are the picture's own.
    """
    share = torch.zeros(size)
    rows = _ramp(box.height, feather, box.top > 0, box.top + box.height < size[0])
    columns = _ramp(box.width, feather, box.left > 0, box.left + box.width < size[1])
    share[box.window] = torch.minimum(rows[:, None], columns[None])
    return share


def _ramp(length: int, feather: int, at_start: bool, at_end: bool) -> Tensor:
    distance = (torch.arange(length) + 1.0) / (feather + 1)
    ones = torch.ones(length)
    return torch.minimum(distance if at_start else ones, distance.flip(0) if at_end else ones).clamp(max=1.0)
