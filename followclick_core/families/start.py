"""How a motion model without any input for a first frame sets out from one: training-free, by where sampling starts.

The clip starts as the first frame in every frame, with noise of some strength on it (as image-to-image does), and what
lies outside the region is put back at every step (as inpainting does). The noise decides how far the clip may depart
from the picture, so it stands in for the motion magnitude, which such a model cannot be told.
"""

import itertools

import torch
from torch import Tensor

from ..conditioning import resize_mask
from ..shapes import Masks, OtherFrames

# (pixels per frame at 512 pixels of width, share of the noise schedule that is walked). Chosen, not measured.
STRENGTHS = ((0.0, 0.3), (2.0, 0.5), (6.0, 0.7), (16.0, 0.9), (32.0, 1.0))


def start_strength(magnitude: float) -> float:
    """Share of the noise schedule, 0..1, that sampling walks down from, for a motion magnitude."""
    magnitude = min(max(magnitude, STRENGTHS[0][0]), STRENGTHS[-1][0])
    for (low, low_strength), (high, high_strength) in itertools.pairwise(STRENGTHS):
        if magnitude <= high:
            return low_strength + (magnitude - low) / (high - low) * (high_strength - low_strength)
    raise AssertionError("the last entry bounds the magnitude")


def start_latents(latents: Tensor, num_frames: int) -> Tensor:
    """The first frame's latents, 1 4 h w, as the clip to start from, f 4 h w."""
    return latents.expand(num_frames, -1, -1, -1).clone()


def moving_mask(masks: Masks, num_frames: int, size: tuple[int, int]) -> OtherFrames:
    """Where the clip may change, f 1 h w: in no part of frame 0, which is the picture; later, in every region.

    Args:
        masks: The regions, n 1 h w.
        size: (height, width) of the latents.
    """
    joined = resize_mask(masks, size).amax(dim=0, keepdim=True)
    moving = joined.repeat(num_frames, 1, 1, 1)
    moving[0] = 0
    return moving


def late_sigmas(sigmas: Tensor, levels: Tensor, strength: float) -> Tensor:
    """Those of the sampling's noise levels that lie within the strength.

    At least the last step is left where it ends without noise. A part of a sampling, which leaves the rest to another
    pass, may keep no step: only its last level then, with as much noise as the next pass begins with.

    Args:
        sigmas: Descending noise levels of a sampling, the last is where it ends.
        levels: Ascending noise levels of the schedule, one per timestep.
    """
    start = levels[max(0, round(strength * len(levels)) - 1)].to(sigmas)
    first = int((sigmas > start * (1 + 1e-4)).sum())
    least = 1 if sigmas[-1] > 0 else 2
    return sigmas[max(0, min(first, len(sigmas) - least)) :]


def strongest(magnitudes: list[Tensor]) -> float | None:
    """The largest of the magnitudes of all regions, or None where none is given."""
    return max(float(torch.as_tensor(each).max()) for each in magnitudes) if magnitudes else None
