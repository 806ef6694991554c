"""The noise that clips start from."""

import torch
from torch import Tensor

from ..shapes import Video


def without_temporal_mean(noise: Video, block: int) -> Video:
    """Noise whose frames add up to zero at every place, of the same strength: b c f h w.

    What a model shows where nothing moves it estimates from all frames together, and the mean of their noise is what
    it is wrong by: that mean stays in the clip, and pulls its frames away from the first one. Taken away, what stands
    still stands stiller (benchmarks/noise.py measures it). Noise that correlates over time is the usual remedy for
    flicker (Ge et al. 2023, arXiv:2305.10474); for a model trained on independent noise it has the opposite effect.

    Args:
        block: Longer clips are treated in pieces of so many frames, what the model sees at once. Noise that adds up to
            zero already is returned as it is, and so is that of a single frame.
    """
    return torch.cat([_of_block(part) for part in noise.split(block, dim=2)], dim=2)


def _of_block(noise: Tensor) -> Tensor:
    if noise.shape[2] == 1:
        return noise
    free = noise - noise.mean(dim=2, keepdim=True)
    strength, left = (each.square().sum(dim=(1, 2, 3, 4), keepdim=True).sqrt() for each in (noise, free))
    return free * (strength / left.clamp(min=torch.finfo(noise.dtype).tiny))
