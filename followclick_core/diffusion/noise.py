"""The noise that clips start from."""

import math

import torch
from torch import Tensor

from ..shapes import Video

# Each two of k frames that add up to zero correlate by -1/(k-1): of fewer, far from the noise of training.
FEWEST_FRAMES = 4


def without_temporal_mean(noise: Video, block: int) -> Video:
    """Noise whose frames add up to zero at every place, of the same strength: b c f h w.

    What a model shows where nothing moves it estimates from all frames together, and the mean of their noise is what
    it is wrong by: that mean stays in the clip, and pulls its frames away from the first one. Taken away, what stands
    still stands stiller (benchmarks/noise.py measures it). Noise that correlates over time is the usual remedy for
    flicker (Ge et al. 2023, arXiv:2305.10474); for a model trained on independent noise it has the opposite effect.

    Args:
        block: Frames that the model sees at once. Longer clips are treated in nearly equal pieces of at most so many,
            and pieces of fewer than FEWEST_FRAMES are left as they are. Noise that adds up to zero already comes back
            unchanged.
    """
    pieces = math.ceil(noise.shape[2] / block)
    return torch.cat([_of_block(part) for part in noise.tensor_split(pieces, dim=2)], dim=2)


def _of_block(noise: Tensor) -> Tensor:
    if noise.shape[2] < FEWEST_FRAMES:
        return noise
    free = noise - noise.mean(dim=2, keepdim=True)
    strength, left = (each.square().sum(dim=(1, 2, 3, 4), keepdim=True).sqrt() for each in (noise, free))
    return free * (strength / left.clamp(min=torch.finfo(noise.dtype).tiny))
