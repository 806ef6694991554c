"""Triton kernels around a motion module: GroupNorm with the change of layout into it, and the change back with its sum.

A UNet keeps pictures, one after the other: [(b f), c, h, w], planes or channels last in memory. Attention over time
reads pixels: [(b h w), f, c]. Both changes read and write in runs of 128 bytes; GroupNorm reads its input twice, as
its statistics must be known before the first number is normed.
"""

# Triton's functions are compiled from their text; their types are not Python's.
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false, reportIndexIssue=false, reportCallIssue=false
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch_sizes import cdiv, next_power_of_2

PIXELS, CHANNELS = 64, 64  # of one tile
# Numbers, pixels: with so few a program has 16 in each thread, and all programs of a call run at once.
STATISTICS_BLOCK, STATISTICS_PIXELS = 2048, 32
# Pictures are split until there are so many programs, about eight on each multiprocessor of a large GPU.
ENOUGH_PROGRAMS, MAX_PARTS = 1024, 32


@triton.jit
def _add_values(values, inside, share, means, squares):
    """Each lane's mean and sum of squared distances with one more value (Welford): no difference of large sums."""
    apart = tl.where(inside, values.to(tl.float32) - means, 0.0)
    means += apart * share
    return means, squares + apart * (values.to(tl.float32) - means)


@triton.jit
def _plane_statistics(x, mean, rstd, size: tl.constexpr, eps, BLOCK: tl.constexpr):
    """Of one group of one frame, whose channels' planes lie one behind the other.

    Lanes keep moments of their own, which meet only at the end: sums across warps at each step would cost more time
    than reading. A program for each size: with one for all, the loop has half as many instructions again.
    """
    group = tl.program_id(0).to(tl.int64)
    at = x + group * size + tl.arange(0, BLOCK)
    means = tl.zeros([BLOCK], tl.float32)
    squares = tl.zeros([BLOCK], tl.float32)
    counts = tl.zeros([BLOCK], tl.float32)
    for block in range(0, size, BLOCK):
        inside = block + tl.arange(0, BLOCK) < size
        counts += inside.to(tl.float32)
        means, squares = _add_values(
            tl.load(at + block, inside, 0.0), inside, 1.0 / (block // BLOCK + 1), means, squares
        )
    middle = tl.sum(means * counts, 0) / size
    total = tl.sum(squares + counts * (means - middle) * (means - middle), 0)
    tl.store(mean + group, middle)
    tl.store(rstd + group, 1.0 / tl.sqrt(total / size + eps))


@triton.jit
def _channel_moments(x, moments, pixels, channels, part, P: tl.constexpr, C: tl.constexpr):
    """Mean and sum of squared distances of each channel over one part of one frame, channels last."""
    channel = tl.program_id(0) * C + tl.arange(0, C)
    frame = tl.program_id(2).to(tl.int64)
    first = tl.program_id(1) * part
    last = tl.minimum(first + part, pixels)
    start = x + frame * pixels * channels + channel[None, :]
    known = (channel < channels)[None, :]
    means = tl.zeros([P, C], tl.float32)
    squares = tl.zeros([P, C], tl.float32)
    counts = tl.zeros([P, 1], tl.float32)
    step = 0
    while step < part:
        pixel = first + step + tl.arange(0, P)[:, None]
        inside = pixel < last
        counts += inside.to(tl.float32)
        values = tl.load(start + pixel * channels, inside & known, 0.0)
        means, squares = _add_values(values, inside & known, 1.0 / (step // P + 1), means, squares)
        step += P
    middle = tl.sum(means * counts, 0) / (last - first)
    apart = means - middle[None, :]
    at = moments + ((frame * tl.num_programs(1) + tl.program_id(1)) * 2) * channels + channel
    tl.store(at, middle, channel < channels)
    tl.store(at + channels, tl.sum(squares + counts * apart * apart, 0), channel < channels)


@triton.jit
def _join_moments(moments, mean, rstd, parts, part, pixels, channels, width, eps, S: tl.constexpr, W: tl.constexpr):
    """Of one group of one frame, from its channels' parts."""
    group = tl.program_id(0)
    frame = tl.program_id(1).to(tl.int64)
    s, w = tl.arange(0, S)[:, None], tl.arange(0, W)[None, :]
    inside = (s < parts) & (w < width)
    at = moments + (frame * parts + s) * 2 * channels + group * width + w
    means = tl.load(at, inside, 0.0)
    squares = tl.load(at + channels, inside, 0.0)
    counts = tl.where(inside, tl.minimum(part, pixels - s * part), 0).to(tl.float32)
    size = pixels * width * 1.0
    middle = tl.sum(tl.sum(means * counts, 1), 0) / size
    apart = means - middle
    total = tl.sum(tl.sum(squares + counts * apart * apart, 1), 0)
    at = frame * tl.num_programs(0) + group
    tl.store(mean + at, middle)
    tl.store(rstd + at, 1.0 / tl.sqrt(total / size + eps))


@triton.jit
def _tile(frames, pixels, channels, P: tl.constexpr, C: tl.constexpr):
    """This program's frame, its channels [1, C] and pixels [P, 1], and where they begin among the pixels' rows."""
    across, tiles = tl.cdiv(channels, C), tl.cdiv(pixels, P)
    channel = tl.program_id(0) % across * C + tl.arange(0, C)[None, :]
    tile = tl.program_id(0) // across
    picture = tile // tiles
    pixel = (tile % tiles) * P + tl.arange(0, P)[:, None]
    row = ((picture // frames).to(tl.int64) * pixels + pixel) * frames + picture % frames
    return picture.to(tl.int64), channel, pixel, row * channels


@triton.jit
def _normalise(
    x, weight, bias, mean, rstd, out, frames, pixels, channels, width, groups, LAST: tl.constexpr, P: tl.constexpr,
    C: tl.constexpr,
):  # fmt: skip
    picture, channel, pixel, rows = _tile(frames, pixels, channels, P, C)
    inside = (pixel < pixels) & (channel < channels)
    start = x + picture * pixels * channels
    if LAST:
        values = tl.load(start + pixel * channels + channel, inside, 0.0)
    else:
        values = tl.load(start + channel * pixels + pixel, inside, 0.0)
    known = channel < channels
    group = picture * groups + channel // width
    scale = tl.load(rstd + group, known, 0.0) * tl.load(weight + channel, known, 0.0).to(tl.float32)
    shift = tl.load(bias + channel, known, 0.0).to(tl.float32)
    values = (values.to(tl.float32) - tl.load(mean + group, known, 0.0)) * scale + shift
    tl.store(out + rows + channel, values.to(out.dtype.element_ty), inside)


@triton.jit
def _add_back(h, bias, x, out, frames, pixels, channels, LAST: tl.constexpr, P: tl.constexpr, C: tl.constexpr):
    picture, channel, pixel, rows = _tile(frames, pixels, channels, P, C)
    inside = (pixel < pixels) & (channel < channels)
    values = tl.load(h + rows + channel, inside, 0.0).to(tl.float32)
    values += tl.load(bias + channel, channel < channels, 0.0).to(tl.float32)
    if LAST:
        at = picture * pixels * channels + pixel * channels + channel
    else:
        at = picture * pixels * channels + channel * pixels + pixel
    values += tl.load(x + at, inside, 0.0).to(tl.float32)
    tl.store(out + at, values.to(out.dtype.element_ty), inside)


def is_channels_last(x: Tensor) -> bool:
    return not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


def plain(x: Tensor) -> Tensor:
    """In one of the two layouts that the kernels read."""
    return x if is_channels_last(x) else x.contiguous()


def check_frames(x: Tensor, num_frames: int, channels: int) -> None:
    """Refuses pictures, (b f) c h w, of other channels or of no whole number of clips.

    The kernels would read and write beyond a tensor's end.

    Raises:
        ValueError: says what came and what is wanted.
    """
    if x.shape[1] != channels:
        raise ValueError(f"A motion module of {channels} channels got pictures of {x.shape[1]}; give it {channels}.")
    if num_frames < 1 or len(x) % num_frames:
        raise ValueError(
            f"{len(x)} pictures are not a whole number of clips of {num_frames} frames; give a multiple of the frames."
        )


def group_statistics(x: Tensor, groups: int, eps: float) -> tuple[Tensor, Tensor]:
    """Mean and 1 / standard deviation of each frame's groups of channels, float32 [frames, groups]."""
    (pictures, channels), pixels = x.shape[:2], x.shape[2] * x.shape[3]
    mean, rstd = x.new_empty(2, pictures, groups, dtype=torch.float32)
    width = channels // groups
    if not is_channels_last(x):
        size = width * pixels
        block = min(STATISTICS_BLOCK, next_power_of_2(size))
        _plane_statistics[(pictures * groups,)](x, mean, rstd, size, eps, BLOCK=block, num_warps=4)
        return mean, rstd
    wanted = ENOUGH_PROGRAMS // (pictures * cdiv(channels, CHANNELS))
    part = cdiv(pixels, max(1, min(MAX_PARTS, wanted, pixels // STATISTICS_PIXELS)))
    parts = cdiv(pixels, part)
    moments = x.new_empty(pictures, parts, 2, channels, dtype=torch.float32)
    grid = (cdiv(channels, CHANNELS), parts, pictures)
    _channel_moments[grid](x, moments, pixels, channels, part, P=STATISTICS_PIXELS, C=CHANNELS, num_warps=4)
    sizes = {"S": next_power_of_2(parts), "W": next_power_of_2(width)}
    _join_moments[(groups, pictures)](
        moments, mean, rstd, parts, part, pixels, channels, width, eps, **sizes, num_warps=1
    )
    return mean, rstd


def normed_pixels(x: Tensor, weight: Tensor, bias: Tensor, num_frames: int, groups: int, eps: float) -> Tensor:
    """GroupNorm of each frame, laid out by pixels: (b f) c h w -> (b h w) f c."""
    check_frames(x, num_frames, len(weight))
    x = plain(x)
    (pictures, channels), pixels = x.shape[:2], x.shape[2] * x.shape[3]
    with torch.cuda.device_of(x):  # Triton launches on the current device, wherever the tensors are
        mean, rstd = group_statistics(x, groups, eps)
        out = x.new_empty(pictures // num_frames * pixels, num_frames, channels)
        grid = (cdiv(channels, CHANNELS) * cdiv(pixels, PIXELS) * pictures,)
        _normalise[grid](
            x, weight, bias, mean, rstd, out, num_frames, pixels, channels, channels // groups, groups,
            LAST=is_channels_last(x), P=PIXELS, C=CHANNELS, num_warps=4,
        )  # fmt: skip
    return out


def add_to_frames(h: Tensor, bias: Tensor, x: Tensor) -> Tensor:
    """x + (h + bias) laid out as frames again: (b h w) f c -> (b f) c h w, in memory as x is."""
    check_frames(x, h.shape[1], h.shape[2])
    h, x = h.contiguous(), plain(x)
    (pictures, channels), pixels = x.shape[:2], x.shape[2] * x.shape[3]
    out = torch.empty_like(x)
    grid = (cdiv(channels, CHANNELS) * cdiv(pixels, PIXELS) * pictures,)
    with torch.cuda.device_of(x):
        _add_back[grid](
            h, bias, x, out, h.shape[1], pixels, channels, LAST=is_channels_last(x), P=PIXELS, C=CHANNELS, num_warps=4
        )
    return out
