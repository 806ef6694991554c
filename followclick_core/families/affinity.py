"""PIA's motion magnitude: how alike each frame is to the first (Zhang et al. 2023, arXiv:2312.13964).

PIA's extra mask channel holds one number per frame, its affinity to the first frame: 1 asks for the same picture, less
for more motion. Here the clicked region alone follows that curve, and around it the affinity stays 1.
"""

import itertools

import torch
from torch import Tensor

from ..shapes import Video

# PIA's three published curves; a longer clip goes on with the last number.
SMALL = (1, 0.9, 0.85, 0.85, 0.85, 0.8)
MEDIUM = (1, 0.8, 0.8, 0.8, 0.79, 0.78, 0.75)
LARGE = (1, 0.8, 0.7, 0.7, 0.7, 0.7, 0.7, 0.7, 0.7, 0.7, 0.6, 0.5, 0.5)

# The magnitudes, in pixels per frame at 512 pixels of width, for which the nodes name the same three degrees.
ANCHORS: tuple[tuple[float, tuple[float, ...]], ...] = ((0, (1,)), (2, SMALL), (6, MEDIUM), (16, LARGE))
DEFAULT_MAGNITUDE = 6.0


def affinity_at(frame: int, magnitude: float) -> float:
    """Affinity of frame number `frame` to the first: between the curves of the two anchors around the magnitude."""
    magnitude = min(max(magnitude, ANCHORS[0][0]), ANCHORS[-1][0])
    for (low, low_curve), (high, high_curve) in itertools.pairwise(ANCHORS):
        if magnitude <= high:
            share = (magnitude - low) / (high - low)
            return (1 - share) * _at(low_curve, frame) + share * _at(high_curve, frame)
    raise AssertionError("the last anchor bounds the magnitude")


def regional_affinity(first_frame: Video, magnitude: Tensor | None, shares: Tensor | None = None) -> Video:
    """The first-frame condition with its region mask turned into affinities: 1 outside, the curve inside.

    Args:
        first_frame: Region mask and first-frame latents, b 5 f h w.
        magnitude: Pixels per frame at 512 pixels of width, [b] or [b, f], or with `shares` one of each region, [b, r];
            None takes a moderate one.
        shares: Each region's share of a place, b r h w, summing to one.
    """
    clips, num_frames = first_frame.shape[0], first_frame.shape[2]
    if magnitude is None:
        magnitude = first_frame.new_full((clips,), DEFAULT_MAGNITUDE)
    if shares is None:
        of_frames = magnitude.reshape(clips, -1).expand(clips, num_frames).tolist()
        rows = [[affinity_at(frame, each) for frame, each in enumerate(row)] for row in of_frames]
        affinity = first_frame.new_tensor(rows)[:, None, :, None, None]
    else:
        curves = [
            [[affinity_at(frame, each) for frame in range(num_frames)] for each in row] for row in magnitude.tolist()
        ]
        affinity = torch.einsum("brf,brhw->bfhw", first_frame.new_tensor(curves), shares.to(first_frame))[:, None]
    mask, latents = first_frame[:, :1], first_frame[:, 1:]
    return torch.cat([1 - mask * (1 - affinity), latents], dim=1)


def _at(curve: tuple[float, ...], frame: int) -> float:
    return curve[min(frame, len(curve) - 1)]
