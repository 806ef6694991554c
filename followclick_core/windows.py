"""Clips of any length, and loops: the model sees overlapping windows of the frames, and their predictions blend.

At every step each window is predicted by itself, and where windows overlap their predictions are averaged with weights
that fall towards a window's ends (as FreeNoise does, Qiu et al. 2023, arXiv:2310.15169). So neighbouring windows share
their overlap's latents from the first step to the last.

A first-frame model takes a window's first frame for the given photo. Only for the window at frame 0 this is true: any
other one would jump back to the photo. It is told instead that its photo is what the step so far makes of its own first
frame, the prediction of the windows before it (`continued_condition`).
"""

import math

import torch
from torch import Tensor

from .conditioning import first_frame_condition
from .shapes import OtherVideo, Video


def context_windows(num_frames: int, length: int, overlap: int, loop: bool = False) -> list[list[int]]:
    """Frame numbers of each window, in the order in which they are to be predicted; the first begins at frame 0.

    Windows are spread evenly, so they overlap by at least `overlap`. In a loop frame 0 follows the last frame: windows
    go round, and a clip that fits into one window has two, the second one turned by half.

    Raises:
        ValueError: a window without frames, or an overlap that is not shorter than the window.
    """
    if length < 1:
        raise ValueError(f"A context window has {length} frames; give at least 1, 16 is what the models learned.")
    if not 0 <= overlap < length:
        raise ValueError(
            f"Context windows of {length} frames cannot overlap by {overlap}; give 0 to {length - 1}, a quarter is "
            "usual."
        )
    size = min(length, num_frames)
    stride = max(1, size - overlap)
    if loop and num_frames > 1:
        count = max(2, math.ceil(num_frames / stride))
        starts = [index * num_frames // count for index in range(count)]
    else:
        count = 1 + math.ceil((num_frames - size) / stride)
        starts = [round(index * (num_frames - size) / max(1, count - 1)) for index in range(count)]
    return [[(start + offset) % num_frames for offset in range(size)] for start in starts]


def window_weights(length: int) -> list[float]:
    """A pyramid: 1 at both ends, rising by 1 per frame towards the middle."""
    return [float(min(index, length - 1 - index) + 1) for index in range(length)]


def continued_condition(condition: Video, window: list[int], first_latents: Tensor, layout: str) -> OtherVideo:
    """The first-frame condition of a window that does not begin at frame 0: as if a clip began at its first frame.

    Args:
        condition: That of the whole clip, b 5 f h w.
        first_latents: The window's first frame, as predicted so far, b 4 h w.
        layout: See `conditioning.first_frame_condition`.
    """
    mask = condition[:, :1, 0]  # every layout has it on frame 0
    return first_frame_condition(first_latents.to(condition), mask, len(window), layout)


def blend_windows(parts: list[Tensor], windows: list[list[int]], num_frames: int, dim: int) -> Tensor:
    """The weighted mean of the windows' predictions, each with its frames along `dim`."""
    shape = list(parts[0].shape)
    shape[dim] = num_frames
    total, norm = parts[0].new_zeros(shape), parts[0].new_zeros(num_frames)
    column = [-1 if axis == dim else 1 for axis in range(len(shape))]
    for part, window in zip(parts, windows, strict=True):
        weights = torch.tensor(window_weights(len(window)), device=part.device, dtype=part.dtype)
        frames = torch.tensor(window, device=part.device)
        total.index_add_(dim, frames, part * weights.view(column))
        norm.index_add_(0, frames, weights)
    return total / norm.view(column)
