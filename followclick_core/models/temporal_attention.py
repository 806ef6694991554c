"""Attention along time for many pixels at once, without wasted tiles.

A clip has 16 to 32 frames but tens of thousands of pixels, each with an attention of its own. Kernels made for long
sequences give every one of them a tile of 64 rows or more, and want queries, keys and values copied apart first. On an
NVIDIA GPU a small Triton kernel reads the packed product of one linear layer where it lies, one warp per pixel and
head, and writes what the next layer reads. Everywhere else PyTorch's own attention computes the same.
"""

import functools

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from .kernel_checks import Comparison, agree, capable

Packed = Float[Tensor, "n f three_c"]  # queries, keys and values of n pixels' f frames, side by side
Attended = Float[Tensor, "n f c"]

# CUDA's attention kernels put batch x heads on a grid axis that ends at 65,535.
MAX_ATTENTION_ROWS = 65_535
# Longer clips fill the tiles of the ordinary kernels, and wider heads would not fit into a warp's registers.
MAX_FRAMES, MAX_HEAD_DIM = 32, 160


def attend_over_time(qkv: Packed, num_heads: int) -> Attended:
    """Softmax attention of each pixel's frames to each other, per head; scaled by 1 / sqrt(head width)."""
    if runs_as_kernel(qkv, num_heads):
        if not torch.is_grad_enabled() and not torch.compiler.is_compiling():
            from .temporal_kernel import attend  # an operator's call costs more time than a small kernel runs

            return attend(qkv, num_heads)
        return torch.ops.followclick.temporal_attention(qkv, num_heads)
    return attend_with_sdpa(qkv, num_heads)


def runs_as_kernel(qkv: Packed, num_heads: int) -> bool:
    """Whether the Triton kernel takes this product."""
    head_dim = qkv.shape[-1] // (3 * num_heads)
    small = qkv.shape[1] <= MAX_FRAMES and 16 <= head_dim <= MAX_HEAD_DIM
    if not (qkv.is_cuda and small and qkv.is_contiguous()):
        return False
    return kernel_works(qkv.device.index, qkv.dtype, head_dim, torch.is_grad_enabled())


@torch.compiler.assume_constant_result
def kernel_works(device_index: int, dtype: torch.dtype, head_dim: int, training: bool) -> bool:
    """Whether the kernel, and for training its gradient, can be built and computes what PyTorch does; tried once each.

    Triton does not come with every PyTorch, and it needs a C compiler: where anything is missing, PyTorch attends.
    """
    return _kernel_works(device_index, dtype, head_dim, training)


# Within the constant, as torch.compile ignores a cache that it meets and follows what is cached.
@functools.lru_cache(maxsize=64)
def _kernel_works(device_index: int, dtype: torch.dtype, head_dim: int, training: bool) -> bool:
    if not capable(device_index):
        return False
    compare = functools.partial(comparisons, torch.device("cuda", device_index), dtype, head_dim, training)
    return agree("Temporal attention runs", f"heads of {head_dim} channels, {dtype}", compare)


def comparisons(
    device: torch.device, dtype: torch.dtype, head_dim: int, training: bool, frames: int = 16, heads: int = 2
) -> list[Comparison]:
    """Attention, and for training its gradient, beside PyTorch's for the same numbers."""
    from . import temporal_kernel

    def noise(channels: int, seed: int) -> Tensor:
        # Not waves: between those the gradients nearly cancel, and rounding to bfloat16 is as large as what is left.
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(2, frames, channels, generator=generator).to(device, dtype)

    qkv, grad = noise(3 * heads * head_dim, seed=0), noise(heads * head_dim, seed=1)
    with torch.set_grad_enabled(training):
        wide = qkv.float().requires_grad_(training)
        theirs = attend_with_sdpa(wide, heads)
    results = [("attention", temporal_kernel.attend(qkv, heads), theirs.detach())]
    if training:
        (expected,) = torch.autograd.grad(theirs, wide, grad.float())
        results.append(("attention's gradient", temporal_kernel.attend_backward(qkv, grad, heads), expected))
    return results


def attend_with_sdpa(qkv: Packed, num_heads: int) -> Attended:
    """The same by PyTorch's scaled dot product attention, on any device."""
    q, k, v = rearrange(qkv, "n f (three heads d) -> three n heads f d", three=3, heads=num_heads)
    rows = max(1, MAX_ATTENTION_ROWS // num_heads)
    if len(q) <= rows:
        h = F.scaled_dot_product_attention(q, k, v)
    else:
        parts = zip(q.split(rows), k.split(rows), v.split(rows), strict=True)
        h = torch.cat([F.scaled_dot_product_attention(*part) for part in parts])
    return rearrange(h, "n heads f d -> n f (heads d)")
