"""What a motion module computes besides matrix products, as operators that Triton kernels compute without gradients.

PyTorch knows them by name and shape, so `torch.compile` takes them as they are. Called directly they skip PyTorch's
dispatcher, which costs more time than a small kernel runs. Triton is imported when the first of them runs.
"""

import functools
import logging
from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from .temporal_attention import LEAST_CAPABILITY, MAX_HEAD_DIM, attend_with_sdpa

logger = logging.getLogger("followclick")

HOPPER = (9, 0)
# Wider layers have so much arithmetic for each byte that cuBLAS and a pass over its product are as fast.
MAX_GATED_WIDTH = 640
# ||kernel - PyTorch|| / ||PyTorch||: bfloat16 is good for 0.004.
TOLERANCE = 0.01


def _operator(fake: Callable) -> Callable[[Callable], Callable]:
    """Registers a function; `fake` gives a result's shape, layout and type without computing it."""

    def register(function: Callable) -> Callable:
        name = function.__name__
        torch.library.custom_op(f"followclick::{name}", function, mutates_args=()).register_fake(fake)
        registered = getattr(torch.ops.followclick, name)

        @functools.wraps(function)
        def call(*arguments: object) -> object:
            return registered(*arguments) if torch.compiler.is_compiling() else function(*arguments)

        return call

    return register


def _pixels_of(x: Tensor, _weight: Tensor, _bias: Tensor, num_frames: int, _groups: int, _eps: float) -> Tensor:
    return x.new_empty(len(x) // num_frames * x.shape[2] * x.shape[3], num_frames, x.shape[1])


@_operator(_pixels_of)
def normed_pixels(x: Tensor, weight: Tensor, bias: Tensor, num_frames: int, groups: int, eps: float) -> Tensor:
    """GroupNorm of each frame, laid out by pixels: (b f) c h w -> (b h w) f c."""
    from . import layout_kernels

    return layout_kernels.normed_pixels(x, weight, bias, num_frames, groups, eps)


@_operator(lambda _h, x: torch.empty_like(x))
def add_to_frames(h: Tensor, x: Tensor) -> Tensor:
    """x + h laid out as frames again: (b h w) f c -> (b f) c h w, in memory as x is."""
    from . import layout_kernels

    return layout_kernels.add_to_frames(h, x)


@_operator(lambda x, *_: torch.empty_like(x.contiguous()))
def norm_rows(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, ahead: Tensor | None, positions: Tensor | None
) -> Tensor:
    """LayerNorm of each row of x - ahead, plus the position of the row's frame; see `row_kernels.norm_rows`."""
    from . import row_kernels

    return row_kernels.norm_rows(x, weight, bias, eps, ahead, positions)


def _sums_of(biases: list[Tensor]) -> tuple[Tensor, Tensor]:
    like = biases[0]
    return torch.empty_like(like), like.new_empty(len(biases) - 1, len(like), dtype=torch.float32)


@_operator(_sums_of)
def sum_biases(biases: list[Tensor]) -> tuple[Tensor, Tensor]:
    """The sum of all biases [c], and float32 [len - 1, c]: in row i the sum of those after the i-th."""
    from . import row_kernels

    return row_kernels.sum_biases(biases)


@_operator(lambda product: product.new_empty(len(product), product.shape[1] // 2))
def gate_product(product: Tensor) -> Tensor:
    """value * gelu(gate) of rows [value, gate]: [n, 2 c] -> [n, c]."""
    from . import row_kernels

    return row_kernels.gate_product(product)


@_operator(lambda x, weight, _bias: x.new_empty(len(x), len(weight) // 2))
def gated_linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """value * gelu(gate) of [value, gate] = x weight^T + bias: [n, c], [2 d, c], [2 d] -> [n, d]."""
    from . import gated_linear_kernel

    return gated_linear_kernel.gated_linear(x, weight, bias)


@torch.compiler.assume_constant_result
@functools.lru_cache(maxsize=16)
def is_hopper(device_index: int) -> bool:
    """Whether a GPU has the shared memory and the matrix units that the tiles of `gated_linear` are made for."""
    return torch.version.hip is None and torch.cuda.get_device_capability(device_index) == HOPPER


def gated(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`gated_linear` in the way that is faster here."""
    narrow = x.dtype != torch.float32 and x.shape[1] <= MAX_GATED_WIDTH
    if narrow and x.is_cuda and is_hopper(x.device.index):
        return gated_linear(x, weight, bias)
    return gate_product(F.linear(x, weight, bias))


def run_fused(x: Tensor, weight: Tensor, num_heads: int) -> bool:
    """Whether a module with this input and first weight runs by these operators: on a GPU, without gradients."""
    return (
        x.is_cuda
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled(x.device.type)
        and x.dtype == weight.dtype
        and x.dtype in (torch.float32, torch.float16, torch.bfloat16)
        and weight.shape[0] // num_heads <= MAX_HEAD_DIM
        and operators_work(x.device.index, x.dtype, weight.shape[0], num_heads)
    )


@torch.compiler.assume_constant_result
@functools.lru_cache(maxsize=64)
def operators_work(device_index: int, dtype: torch.dtype, channels: int, num_heads: int) -> bool:
    """Whether the kernels can be built for this GPU, type and width, and compute what PyTorch does; tried once each."""
    if torch.version.hip is not None or torch.cuda.get_device_capability(device_index) < LEAST_CAPABILITY:
        return False
    try:
        with torch.no_grad():
            for name, ours, theirs in comparisons(torch.device("cuda", device_index), dtype, channels, num_heads):
                error = (ours.float() - theirs.float()).norm() / theirs.float().norm()
                if not error < TOLERANCE:
                    raise ArithmeticError(f"{name} is off by {error:.2g}")
    except Exception as error:  # a missing, old or broken Triton fails in many ways, none of which should stop anybody
        logger.info("Motion modules of %d channels run without their Triton kernels: %s", channels, error)
        return False
    return True


def comparisons(
    device: torch.device,
    dtype: torch.dtype,
    channels: int,
    num_heads: int,
    frames: int = 16,
    size: int = 3,
    clips: int = 2,
) -> list[tuple[str, Tensor, Tensor]]:
    """Each operator's result beside PyTorch's for the same numbers, with its name."""
    groups = 32

    def wave(*shape: int, speed: float = 0.37) -> Tensor:
        count = torch.Size(shape).numel()
        return (torch.arange(count, device=device, dtype=torch.float32) * speed).sin().view(shape).to(dtype)

    weight, bias, positions = wave(channels, speed=1.7), wave(channels, speed=0.9), wave(frames, channels, speed=1.3)
    planes = wave(clips * frames, channels, size, size) + wave(clips * frames, 1, 1, 1, speed=0.5)
    normed = F.group_norm(planes.float(), groups, weight.float(), bias.float(), 1e-6)
    normed = rearrange(normed, "(b f) c h w -> (b h w) f c", f=frames)
    rows = normed.flatten(0, 1).to(dtype)
    added = rearrange(rows, "(b h w f) c -> (b f) c h w", f=frames, h=size, w=size) + planes
    results = []
    for name, x in (("planes", planes), ("channels last", planes.contiguous(memory_format=torch.channels_last))):
        results.append((f"GroupNorm, {name}", normed_pixels(x, weight, bias, frames, groups, 1e-6), normed))
        results.append((f"sum, {name}", add_to_frames(rows.view(-1, frames, channels), x), added))
    biases = [wave(channels, speed=speed) for speed in (0.2, 0.3, 0.4, 0.5)]
    first, ahead = sum_biases(biases)
    tails = [torch.stack(biases[index:]).float().sum(0) for index in range(4)]
    results += [("first sum of biases", first, tails[0]), ("sums of biases", ahead, torch.stack(tails[1:]))]
    mean_free = F.layer_norm(rows.float() - tails[1], (channels,), weight.float(), bias.float(), 1e-5)
    placed = mean_free + positions.float().repeat(len(rows) // frames, 1)
    results.append(("LayerNorm", norm_rows(rows, weight, bias, 1e-5, tails[1], positions), placed))
    plain = F.layer_norm(rows.float(), (channels,), weight.float(), bias.float(), 1e-5)
    results.append(("plain LayerNorm", norm_rows(rows, weight, bias, 1e-5, None, None), plain))
    wide, wide_bias = wave(8 * channels, channels, speed=2.1) / channels**0.5, wave(8 * channels, speed=1.1)
    product = F.linear(rows, wide, wide_bias)
    value, gate = F.linear(rows.float(), wide.float(), wide_bias.float()).chunk(2, dim=-1)
    results.append(("gate", gate_product(product), value * F.gelu(gate)))
    results.append(("gated linear layer", gated(rows, wide, wide_bias), value * F.gelu(gate)))
    packed = wave(4, frames, 3 * channels, speed=1.9)
    from .temporal_kernel import attend

    results.append(("attention", attend(packed, num_heads), attend_with_sdpa(packed.float(), num_heads)))
    return results
