"""What a motion module computes besides matrix products, as operators that Triton kernels compute without gradients.

PyTorch knows them by name and shape, so `torch.compile` takes them as they are. Called directly they skip PyTorch's
dispatcher, which costs more time than a small kernel runs. Triton is imported when the first of them runs.
"""

import functools
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from .kernel_checks import Comparison, agree, capable
from .temporal_attention import MAX_HEAD_DIM

HOPPER = (9, 0)
# Wider layers have so much arithmetic for each byte that cuBLAS and a pass over its product are as fast.
MAX_GATED_WIDTH = 640
# Up to this width the last layer, the layout back and the sum are one kernel.
MAX_ADDED_WIDTH = 0
# What a kernel can read where it lies.
PLAIN = (Tensor, torch.nn.Parameter)

_unregistered: set[str] = set()


def operator(fake: Callable) -> Callable[[Callable], Callable]:
    """Registers a function; `fake` gives a result's shape, layout and type without computing it.

    A PyTorch that cannot register it can still call it, so nothing but compiled modules goes without.
    """

    def register(function: Callable) -> Callable:
        name = function.__name__
        try:
            torch.library.custom_op(f"followclick::{name}", function, mutates_args=()).register_fake(fake)
            registered = getattr(torch.ops.followclick, name)
        except Exception:  # before 2.4 there is no custom_op, and each version since reads other annotations
            _unregistered.add(name)
            return function

        @functools.wraps(function)
        def call(*arguments: object) -> object:
            return registered(*arguments) if torch.compiler.is_compiling() else function(*arguments)

        return call

    return register


def _pixels_of(x: Tensor, _weight: Tensor, _bias: Tensor, num_frames: int, _groups: int, _eps: float) -> Tensor:
    return x.new_empty(len(x) // num_frames * x.shape[2] * x.shape[3], num_frames, x.shape[1])


@operator(_pixels_of)
def normed_pixels(x: Tensor, weight: Tensor, bias: Tensor, num_frames: int, groups: int, eps: float) -> Tensor:
    """GroupNorm of each frame, laid out by pixels: (b f) c h w -> (b h w) f c."""
    from . import layout_kernels

    return layout_kernels.normed_pixels(x, weight, bias, num_frames, groups, eps)


def _frames_like(*arguments: Tensor) -> Tensor:
    from .layout_kernels import plain

    return torch.empty_like(plain(arguments[-1]))


@operator(_frames_like)
def add_to_frames(h: Tensor, x: Tensor) -> Tensor:
    """x + h laid out as frames again: (b h w) f c -> (b f) c h w, in memory as x is if that is one of two layouts."""
    from . import layout_kernels

    return layout_kernels.add_to_frames(h, x)


@operator(_frames_like)
def add_linear_to_frames(h: Tensor, weight: Tensor, bias: Tensor, x: Tensor) -> Tensor:
    """x + (h weight^T + bias), as `add_to_frames` lays it out."""
    from . import frames_kernel

    return frames_kernel.add_linear_to_frames(h, weight, bias, x)


@operator(lambda x, *_: torch.empty_like(x.contiguous()))
def norm_rows(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, ahead: Tensor | None, positions: Tensor | None
) -> Tensor:
    """LayerNorm of each row of x - ahead, plus the position of the row's frame; see `row_kernels.norm_rows`."""
    from . import row_kernels

    return row_kernels.norm_rows(x, weight, bias, eps, ahead, positions)


def _sums_of(biases: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    like = biases[0]
    return torch.empty_like(like), like.new_empty(len(biases) - 1, len(like), dtype=torch.float32)


@operator(_sums_of)
def sum_biases(biases: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The sum of all biases [c], and float32 [len - 1, c]: in row i the sum of those after the i-th."""
    from . import row_kernels

    return row_kernels.sum_biases(list(biases))


@operator(lambda product: product.new_empty(len(product), product.shape[1] // 2))
def gate_product(product: Tensor) -> Tensor:
    """value * gelu(gate) of rows [value, gate]: [n, 2 c] -> [n, c]."""
    from . import row_kernels

    return row_kernels.gate_product(product)


@operator(lambda x, weight, _bias: x.new_empty(len(x), len(weight) // 2))
def gated_linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """value * gelu(gate) of [value, gate] = x weight^T + bias: [n, c], [2 d, c], [2 d] -> [n, d]."""
    from . import gated_linear_kernel

    return gated_linear_kernel.gated_linear(x, weight, bias)


@torch.compiler.assume_constant_result
def is_hopper(device_index: int) -> bool:
    """Whether a GPU has the shared memory and the matrix units that the tiles of `gated_linear` are made for."""
    return _is_hopper(device_index)


# Within the constant, as torch.compile ignores a cache that it meets and follows what is cached.
@functools.lru_cache(maxsize=16)
def _is_hopper(device_index: int) -> bool:
    return torch.version.hip is None and torch.cuda.get_device_capability(device_index) == HOPPER


def gated(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`gated_linear` in the way that is faster here."""
    narrow = x.dtype != torch.float32 and x.shape[1] <= MAX_GATED_WIDTH
    if narrow and x.is_cuda and is_hopper(x.device.index):
        return gated_linear(x, weight, bias)
    return gate_product(F.linear(x, weight, bias))


def add_projected(h: Tensor, weight: Tensor, bias: Tensor, x: Tensor) -> Tensor:
    """`add_linear_to_frames` in the way that is faster here."""
    if x.dtype != torch.float32 and len(weight) <= MAX_ADDED_WIDTH:
        return add_linear_to_frames(h, weight, bias, x)
    return add_to_frames(F.linear(h, weight, bias), x)


def run_fused(x: Tensor, weights: Sequence[Tensor], num_heads: int) -> bool:
    """Whether a module with this input runs by these operators: on a GPU, without gradients.

    Args:
        weights: The first layer's, [c, c], and one of each submodule that might keep its weights in a way of its own.
    """
    channels = weights[0].shape[0]
    return (
        x.is_cuda
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled()
        # Kernels read memory as it is; shards (FSDP) and packed weights become whole only where their layer is called.
        and all(type(weight) in PLAIN and weight.dtype == x.dtype for weight in weights)
        and x.dtype in (torch.float32, torch.float16, torch.bfloat16)
        and channels // num_heads <= MAX_HEAD_DIM
        and not (_unregistered and torch.compiler.is_compiling())
        and operators_work(x.device.index, x.dtype, channels)
    )


@torch.compiler.assume_constant_result
def operators_work(device_index: int, dtype: torch.dtype, channels: int) -> bool:
    """Whether the kernels can be built for this GPU, type and width, and compute what PyTorch does; tried once each."""
    return _operators_work(device_index, dtype, channels)


@functools.lru_cache(maxsize=64)
def _operators_work(device_index: int, dtype: torch.dtype, channels: int) -> bool:
    if not capable(device_index):
        return False
    compare = functools.partial(comparisons, torch.device("cuda", device_index), dtype, channels)
    return agree("Motion modules run", f"{channels} channels, {dtype}", compare)


def comparisons(
    device: torch.device,
    dtype: torch.dtype,
    channels: int,
    frames: int = 16,
    size: int = 3,
    clips: int = 2,
) -> list[Comparison]:
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
    square = wave(channels, channels, speed=2.3) / channels**0.5
    projected = F.linear(rows.float(), square.float(), bias.float())
    projected = rearrange(projected, "(b h w f) c -> (b f) c h w", f=frames, h=size, w=size) + planes
    results = []
    for name, x in (("planes", planes), ("channels last", planes.contiguous(memory_format=torch.channels_last))):
        results.append((f"GroupNorm, {name}", normed_pixels(x, weight, bias, frames, groups, 1e-6), normed))
        pixels = rows.view(-1, frames, channels)
        results.append((f"sum, {name}", add_to_frames(pixels, x), added))
        results.append((f"linear layer and sum, {name}", add_projected(pixels, square, bias, x), projected))
    biases = [wave(channels, speed=speed) for speed in (0.2, 0.3, 0.4, 0.5)]
    first, ahead = sum_biases(biases)
    tails = [torch.stack(biases[index:]).float().sum(0) for index in range(4)]
    results += [("first sum of biases", first, tails[0]), ("sums of biases", ahead, torch.stack(tails[1:]))]
    mean_free = F.layer_norm(rows.float() - tails[1], (channels,), weight.float(), bias.float(), 1e-5)
    placed = mean_free + positions.float().repeat(len(rows) // frames, 1)
    results.append(("LayerNorm", norm_rows(rows, weight, bias, 1e-5, tails[1], positions), placed))
    plain = F.layer_norm(rows.float(), (channels,), weight.float(), bias.float(), 1e-5)
    results.append(("plain LayerNorm", norm_rows(rows, weight, bias, 1e-5, None, None), plain))
    product = wave(24, 8 * channels, speed=1.9)
    value, gate = product.float().chunk(2, dim=-1)
    results.append(("gate", gate_product(product), value * F.gelu(gate)))
    # Of the hidden channels a part, which the same program computes: all of them would be most of the memory.
    hidden = 2 * min(4 * channels, 256)
    wide, wide_bias = wave(hidden, channels, speed=2.1) / channels**0.5, wave(hidden, speed=1.1)
    value, gate = F.linear(rows.float(), wide.float(), wide_bias.float()).chunk(2, dim=-1)
    results.append(("gated linear layer", gated(rows, wide, wide_bias), value * F.gelu(gate)))
    return results
