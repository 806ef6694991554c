"""A motion module's last linear layer, the change of layout back and the sum with its input, in one Triton kernel.

The layer's result is never written: each program adds its tile to the picture that it belongs to.
"""

# Triton's functions are compiled from their text; their types are not Python's.
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false, reportIndexIssue=false, reportCallIssue=false
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch_sizes import cdiv
from .layout_kernels import check_frames, is_channels_last, plain


class Tiles(NamedTuple):
    """Pixels, channels and depth of a program's tiles, warps and stages."""

    pixels: int = 128
    channels: int = 64
    depth: int = 64
    warps: int = 4
    stages: int = 3


# Of more channels at once, h is read less often; of 320 they would be half a tile that is not stored.
WIDE_TILES = Tiles(channels=128, warps=8)


@triton.jit
def _add_linear(
    h, weight, bias, x, out, frames, pixels, channels, depth: tl.constexpr, LAST: tl.constexpr,
    P: tl.constexpr, C: tl.constexpr, K: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    # Programs that run together have the same rows of h, which therefore are in the cache.
    across, tiles = tl.cdiv(channels, C), tl.cdiv(pixels, P)
    tile = tl.program_id(0) // across
    channel = tl.program_id(0) % across * C + tl.arange(0, C)
    picture = tile // tiles
    pixel = tile % tiles * P + tl.arange(0, P)
    # Pixels and channels beyond the end are those of the beginning again: read, but not stored.
    row = ((picture // frames).to(tl.int64) * pixels + pixel % pixels) * frames + picture % frames
    k = tl.arange(0, K)
    at_h = h + row[:, None] * depth + k[None, :]
    at_weight = weight + (channel % channels)[None, :] * depth + k[:, None]
    total = tl.zeros([P, C], tl.float32)
    for start in range(0, depth, K):
        if EVEN:
            a, b = tl.load(at_h), tl.load(at_weight)
        else:
            a = tl.load(at_h, k[None, :] < depth - start, 0.0)
            b = tl.load(at_weight, k[:, None] < depth - start, 0.0)
        total = tl.dot(a, b, total, input_precision="ieee")
        at_h += K
        at_weight += K
    total += tl.load(bias + channel, channel < channels, 0.0).to(tl.float32)[None, :]
    inside = (pixel < pixels)[:, None] & (channel < channels)[None, :]
    # Rounded before the sum, as the layer's own result would be.
    total = total.to(out.dtype.element_ty).to(tl.float32)
    start = picture.to(tl.int64) * pixels * channels
    if LAST:
        at = start + pixel[:, None] * channels + channel[None, :]
    else:
        at = start + channel[None, :] * pixels + pixel[:, None]
    total += tl.load(x + at, inside, 0.0).to(tl.float32)
    tl.store(out + at, total.to(out.dtype.element_ty), inside)


def add_linear_to_frames(h: Tensor, weight: Tensor, bias: Tensor, x: Tensor, tiles: Tiles | None = None) -> Tensor:
    """x + (h weight^T + bias) laid out as frames again: (b h w) f c -> (b f) c h w, in memory as x is."""
    check_frames(x, h.shape[1], len(weight))
    h, weight, x = h.contiguous(), weight.contiguous(), plain(x)
    (pictures, channels), pixels = x.shape[:2], x.shape[2] * x.shape[3]
    (frames, depth), out = h.shape[1:], torch.empty_like(x)
    tiles = tiles or (Tiles() if channels % WIDE_TILES.channels else WIDE_TILES)
    grid = (pictures * cdiv(pixels, tiles.pixels) * cdiv(channels, tiles.channels),)
    with torch.cuda.device_of(x):
        _add_linear[grid](
            h, weight, bias, x, out, frames, pixels, channels, depth, LAST=is_channels_last(x), P=tiles.pixels,
            C=tiles.channels, K=tiles.depth, EVEN=depth % tiles.depth == 0, num_warps=tiles.warps,
            num_stages=tiles.stages,
        )  # fmt: skip
    return out
