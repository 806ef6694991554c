"""Clips of any length, and loops: the model sees overlapping windows of the frames, and their predictions blend.

At every step each window is predicted by itself, and where windows overlap their predictions are averaged with weights
that fall towards a window's ends (as FreeNoise does, Qiu et al. 2023, arXiv:2310.15169). So neighbouring windows share
their overlap's latents from the first step to the last.

A first-frame model takes a window's first frame for the given photo. Only for the window at frame 0 this is true: any
other one would jump back to the photo. It is told instead that its photo is what the step so far makes of its own first
frame, the prediction of the windows before it, and that the region has gone where the object went
(`continued_condition`).

Tried on clips of 32 frames with the demo model: left at the photo, an object that moves is held back where windows
begin; continued but with the mask where it was, it slows down once it has left that; a mask that grows over all that
changed tears the background along.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from .conditioning import first_frame_condition
from .shapes import Masks, OtherVideo, Video

Latents = Float[Tensor, "b 4 h w"]

# What a shift by a latent cell costs, in squared latent units summed over the four channels; grows with its square.
SHIFT_PRICE = 0.002


def context_windows(num_frames: int, length: int, overlap: int, loop: bool = False) -> list[list[int]]:
    """Frame numbers of each window, in the order in which they are to be predicted; the first begins at frame 0.

    Windows are spread evenly, so they overlap by at least `overlap`. A loop leaves the photo twice: forwards through
    its first half, and backwards from frame 0 through the last frame and on. Both ways show the same motion, so they
    meet in the middle, and what follows the last frame is the photo.

    Raises:
        ValueError: a window without frames, or an overlap that is not shorter than the window; and where the clip does
            not fit in one window, no overlap: each continues from a frame of those before.
    """
    if length < min(2, num_frames):
        raise ValueError(f"A context window has {length} frames; give at least 2, 16 is what the models learned.")
    least = 0 if num_frames <= length else 1
    if not least <= overlap < length:
        raise ValueError(
            f"Context windows of {length} frames cannot overlap by {overlap}; give 1 to {length - 1}, a quarter is "
            "usual. Each window continues from a frame that it shares with those before."
        )
    size = min(length, num_frames)
    # Of a loop each way counts until a little after the middle (_fade).
    way = num_frames if not loop else max(size, min(num_frames, num_frames // 2 + _half_fade(overlap) + 1))
    count = 1 + math.ceil((way - size) / max(1, size - overlap))
    starts = [round(index * (way - size) / max(1, count - 1)) for index in range(count)]
    forwards = [[start + offset for offset in range(size)] for start in starts]
    if not loop or num_frames == 1:
        return forwards
    return forwards + [[-frame % num_frames for frame in window] for window in forwards]


def window_weights(window: list[int], num_frames: int, overlap: int = 0, loop: bool = False) -> list[float]:
    """What each frame of a window counts: a pyramid, 1 at both ends and rising by 1 per frame towards the middle.

    Args:
        overlap: Of a loop, also over how many frames in its middle the two ways pass into each other.
    """
    pyramid = [float(min(index, len(window) - 1 - index) + 1) for index in range(len(window))]
    if not loop or len(window) == 1:
        return pyramid
    backwards = window[1] == (window[0] - 1) % num_frames and num_frames > 2
    distances = [-frame % num_frames if backwards else frame for frame in window]
    return [weight * _fade(at, num_frames, overlap) for weight, at in zip(pyramid, distances, strict=True)]


def _half_fade(overlap: int) -> int:
    return max(1, overlap // 2)


def _fade(distance: int, num_frames: int, overlap: int) -> float:
    """1 in the half of a loop next to the photo, 0 in the other; those of both ways sum to one."""
    half = _half_fade(overlap)
    return min(1.0, max(0.0, (num_frames / 2 + half - distance) / (2 * half)))


def continued_condition(condition: Video, window: list[int], first_latents: Tensor, layout: str) -> OtherVideo:
    """The first-frame condition of a window that does not begin at frame 0: as if a clip began at its first frame.

    Args:
        condition: That of the whole clip, b 5 f h w; only its frame 0 counts.
        first_latents: The window's first frame, as predicted so far, b 4 h w.
        layout: See `conditioning.first_frame_condition`.
    """
    mask, photo = condition[:, :1, 0], condition[:, 1:, 0]  # every layout has both on frame 0
    first_latents = first_latents.to(condition)
    return first_frame_condition(first_latents, followed_mask(mask, photo, first_latents), len(window), layout)


def followed_mask(mask: Masks, photo: Latents, later: Latents) -> Masks:
    """The mask shifted to where its part of `photo` lies in `later`: the shift of least squared difference.

    Few steps into sampling `later` is a blur that every shift matches alike; therefore shifts cost a little, and the
    mask stays. A turning or growing object keeps the mask of the photo's size.

    Args:
        mask: 0..1, at the latents' size.
        photo, later: Latents, b 4 h w; SHIFT_PRICE refers to their unit scale.
    """
    height, width = mask.shape[-2:]
    reach = height // 2, width // 2
    # sum_x m(x) (photo(x) - later(x + d))^2, expanded into two correlations over d; the third term is the same for all.
    padded = F.pad(later, (reach[1], reach[1], reach[0], reach[0]))
    correlated = _correlate(padded, photo * mask) * -2 + _correlate(padded.square(), mask.expand_as(photo))
    y, x = (torch.arange(-most, most + 1, device=mask.device, dtype=mask.dtype) for most in reach)
    price = SHIFT_PRICE * (y[:, None].square() + x.square())
    difference = correlated / mask.sum((-3, -2, -1)).clamp(min=1e-6)[:, None, None] + price
    best = difference.flatten(1).argmin(1).tolist()
    return torch.stack(
        [
            _shifted(each, index // len(x) - reach[0], index % len(x) - reach[1])
            for each, index in zip(mask, best, strict=True)
        ]
    )


def _correlate(images: Tensor, kernels: Tensor) -> Tensor:
    """Of each image with its own kernel, summed over channels: b h w."""
    return F.conv2d(images.flatten(0, 1)[None], kernels, groups=len(kernels))[0]


def _shifted(mask: Tensor, down: int, right: int) -> Tensor:
    """The mask, 1 h w, moved by whole cells; what leaves the picture is gone."""
    height, width = mask.shape[-2:]
    padded = F.pad(mask, (width, width, height, height))
    return padded[:, height - down : 2 * height - down, width - right : 2 * width - right]


def blend_windows(
    parts: list[Tensor], windows: list[list[int]], weights: list[list[float]], num_frames: int, dim: int
) -> Tensor:
    """The weighted mean of the windows' predictions, each with its frames along `dim`."""
    shape = list(parts[0].shape)
    shape[dim] = num_frames
    total, norm = parts[0].new_zeros(shape), parts[0].new_zeros(num_frames)
    column = [-1 if axis == dim else 1 for axis in range(len(shape))]
    for part, window, counts in zip(parts, windows, weights, strict=True):
        weight = torch.tensor(counts, device=part.device, dtype=part.dtype)
        frames = torch.tensor(window, device=part.device)
        total.index_add_(dim, frames, part * weight.view(column))
        norm.index_add_(0, frames, weight)
    return total / norm.view(column)
