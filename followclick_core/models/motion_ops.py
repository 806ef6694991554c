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
# Up to this width the last layer, the layout back and the sum are one kernel; of 1280 channels cuBLAS is faster.
MAX_ADDED_WIDTH = 640
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
def add_to_frames(h: Tensor, bias: Tensor, x: Tensor) -> Tensor:
    """x + (h + bias) as frames again: (b h w) f c -> (b f) c h w, in memory as x is if that is one of two layouts."""
    from . import layout_kernels

    return layout_kernels.add_to_frames(h, bias, x)


@operator(lambda x, *_: torch.empty_like(x.contiguous()))
def norm_rows(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, behind: Tensor | None, positions: Tensor | None
) -> Tensor:
    """LayerNorm of each row of x + behind, plus the position of the row's frame; see `row_kernels.norm_rows`."""
    from . import row_kernels

    return row_kernels.norm_rows(x, weight, bias, eps, behind, positions)


def _sums_of(biases: Sequence[Tensor], _weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    wide = bias.float()
    return wide.new_empty(len(biases) - 1, len(bias)), torch.empty_like(wide)


@operator(_sums_of)
def sum_biases(biases: Sequence[Tensor], weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """float32 [len - 1, c], in row i the sum of the first i + 1 biases; float32 [c], bias + weight (sum of all)."""
    from . import row_kernels

    return row_kernels.sum_biases(list(biases), weight, bias)


@operator(lambda q, *_: torch.empty_like(q.contiguous()))
def attend_text(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of n pixels' f frames to their clip's text: [n, f, c], twice [clips, heads, tokens, d] -> [n, f, c]."""
    from . import text_kernel

    return text_kernel.attend_text(q, k, v)


@operator(lambda product: product.new_empty(len(product), product.shape[1] // 2))
def gate_product(product: Tensor) -> Tensor:
    """value * gelu(gate) of rows [value, gate]: [n, 2 c] -> [n, c]."""
    from . import row_kernels

    return row_kernels.gate_product(product)


@operator(lambda x, weight, _bias: x.new_empty(len(x), len(weight) // 2))
def gated(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """value * gelu(gate) of [value, gate] = x weight^T + bias: [n, c], [2 d, c], [2 d] -> [n, d]."""
    if _describable(x, weight) and is_hopper(x.device.index) and gates_work(x.device.index, x.dtype, x.shape[1]):
        from .gated_linear_kernel import gated_linear

        return gated_linear(x, weight, bias)
    return gate_product(F.linear(x, weight, bias))


@operator(_frames_like)
def add_projected(h: Tensor, weight: Tensor, bias: Tensor, x: Tensor) -> Tensor:
    """x + (h weight^T + bias), as `add_to_frames` lays it out."""
    narrow = len(weight) <= MAX_ADDED_WIDTH and x.dtype != torch.float32
    if narrow and x.is_cuda and is_hopper(x.device.index):
        from .frames_kernel import add_linear_to_frames

        return add_linear_to_frames(h, weight, bias, x)
    return add_to_frames(F.linear(h, weight), bias, x)


def _describable(x: Tensor, weight: Tensor) -> bool:
    """Whether descriptors can tell where rows lie (from multiples of 16 bytes on), and tiles have room for the type."""
    widths = x.shape[1], len(weight) // 2  # of what is read and of what is written
    return (
        x.is_cuda
        and x.dtype in (torch.float16, torch.bfloat16)
        and all(t.data_ptr() % 16 == 0 for t in (x, weight))
        and all(width % 8 == 0 for width in widths)
    )


@functools.lru_cache(maxsize=16)
def is_hopper(device_index: int) -> bool:
    """Whether a GPU has the shared memory and the matrix units that the tiles of products are made for."""
    return torch.version.hip is None and torch.cuda.get_device_capability(device_index) == HOPPER


@functools.lru_cache(maxsize=64)
def gates_work(device_index: int, dtype: torch.dtype, channels: int) -> bool:
    """Whether `gated_linear_kernel`, which needs a newer Triton than the others do, can be built and is right."""

    def compare() -> list[Comparison]:
        from .gated_linear_kernel import gated_linear

        return gated_comparisons(gated_linear, torch.device("cuda", device_index), dtype, channels)

    return agree("Gated layers of motion modules run", f"{channels} channels, {dtype}", compare)


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
        and not compiles_unregistered()
        and operators_work(x.device.index, x.dtype, channels)
    )


def compiles_unregistered() -> bool:
    """Whether torch.compile is tracing and would follow a bare launch, as a PyTorch without custom operators does."""
    return bool(_unregistered) and torch.compiler.is_compiling()


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
    groups, wave = 32, functools.partial(_wave, device, dtype)
    weight, bias, positions = wave(channels, speed=1.7), wave(channels, speed=0.9), wave(frames, channels, speed=1.3)
    planes = wave(clips * frames, channels, size, size) + wave(clips * frames, 1, 1, 1, speed=0.5)
    normed = F.group_norm(planes.float(), groups, weight.float(), bias.float(), 1e-6)
    normed = rearrange(normed, "(b f) c h w -> (b h w) f c", f=frames)
    rows = normed.flatten(0, 1).to(dtype)
    added = rearrange(rows.float() + bias.float(), "(b h w f) c -> (b f) c h w", f=frames, h=size, w=size) + planes
    square = wave(channels, channels, speed=2.3) / channels**0.5
    projected = F.linear(rows.float(), square.float(), bias.float())
    projected = rearrange(projected, "(b h w f) c -> (b f) c h w", f=frames, h=size, w=size) + planes
    results = []
    for name, x in (("planes", planes), ("channels last", planes.contiguous(memory_format=torch.channels_last))):
        results.append((f"GroupNorm, {name}", normed_pixels(x, weight, bias, frames, groups, 1e-6), normed))
        pixels = rows.view(-1, frames, channels)
        results.append((f"sum, {name}", add_to_frames(pixels, bias.float(), x), added))
        results.append((f"linear layer and sum, {name}", add_projected(pixels, square, bias.float(), x), projected))
    biases = [wave(channels, speed=speed) for speed in (0.2, 0.3, 0.4, 0.5)]
    sums = torch.stack(biases).float().cumsum(0)
    behind, last = sum_biases(biases, square, bias)
    results += [("sums of biases", behind, sums[:3]), ("last bias", last, square.float() @ sums[3] + bias.float())]
    mean_free = F.layer_norm(rows.float() + sums[1], (channels,), weight.float(), bias.float(), 1e-5)
    placed = mean_free + positions.float().repeat(len(rows) // frames, 1)
    results.append(("LayerNorm", norm_rows(rows, weight, bias, 1e-5, sums[1], positions), placed))
    plain = F.layer_norm(rows.float(), (channels,), weight.float(), bias.float(), 1e-5)
    results.append(("plain LayerNorm", norm_rows(rows, weight, bias, 1e-5, None, None), plain))
    product = wave(24, 8 * channels, speed=1.9)
    value, gate = product.float().chunk(2, dim=-1)
    results.append(("gate", gate_product(product), value * F.gelu(gate)))
    # In the way that is chosen, so that the choice is made before a caller records its calls as a graph.
    return results + gated_comparisons(gated, device, dtype, channels)


def gated_comparisons(
    compute: Callable[[Tensor, Tensor, Tensor], Tensor], device: torch.device, dtype: torch.dtype, channels: int
) -> list[Comparison]:
    """What computes a gated linear layer beside PyTorch's."""
    wave = functools.partial(_wave, device, dtype)
    # Of the hidden channels a part, which the same program computes: all of them would be most of the memory.
    hidden = 2 * min(4 * channels, 256)
    rows = wave(160, channels, speed=1.2)
    weight, bias = wave(hidden, channels, speed=2.1) / channels**0.5, wave(hidden, speed=1.1)
    value, gate = F.linear(rows.float(), weight.float(), bias.float()).chunk(2, dim=-1)
    return [("gated linear layer", compute(rows, weight, bias), value * F.gelu(gate))]


def _wave(device: torch.device, dtype: torch.dtype, *shape: int, speed: float = 0.37) -> Tensor:
    count = torch.Size(shape).numel()
    return (torch.arange(count, device=device, dtype=torch.float32) * speed).sin().view(shape).to(dtype)
