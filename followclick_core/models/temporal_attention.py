"""Attention along time for many pixels at once, without wasted tiles.

A clip has 16 to 32 frames but tens of thousands of pixels, each with an attention of its own. Kernels made for long
sequences give every one of them a tile of 64 rows or more, and want queries, keys and values copied apart first. On an
NVIDIA GPU a small Triton kernel reads the packed product of one linear layer where it lies, one warp per pixel and
head, and writes what the next layer reads. Everywhere else PyTorch's own attention computes the same.
"""

import functools
import logging

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

logger = logging.getLogger("followclick")

Packed = Float[Tensor, "n f three_c"]  # queries, keys and values of n pixels' f frames, side by side
Attended = Float[Tensor, "n f c"]

# CUDA's attention kernels put batch x heads on a grid axis that ends at 65,535.
MAX_ATTENTION_ROWS = 65_535
# Longer clips fill the tiles of the ordinary kernels, and wider heads would not fit into a warp's registers.
MAX_FRAMES, MAX_HEAD_DIM = 32, 160
# bfloat16 products need tensor cores of this generation.
LEAST_CAPABILITY = (8, 0)


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
    return qkv.is_cuda and small and qkv.is_contiguous() and kernel_works(qkv.device.index)


@torch.compiler.assume_constant_result
@functools.lru_cache(maxsize=16)
def kernel_works(device_index: int) -> bool:
    """Whether the kernel can be built for this GPU and then computes what PyTorch does; tried once for each.

    Triton does not come with every PyTorch, and it needs a C compiler: where anything is missing, PyTorch attends.
    """
    if torch.version.hip is not None or torch.cuda.get_device_capability(device_index) < LEAST_CAPABILITY:
        return False
    try:
        from . import temporal_kernel  # noqa: F401  # registers the operator; takes a while

        with torch.no_grad():
            qkv = torch.linspace(-1, 1, 2 * 16 * 96, device=f"cuda:{device_index}").sin().view(2, 16, 96)
            ours, theirs = torch.ops.followclick.temporal_attention(qkv, 2), attend_with_sdpa(qkv, 2)
            if not torch.allclose(ours, theirs, atol=1e-3):
                raise ArithmeticError(f"it is off by {(ours - theirs).abs().max():.2g}")
    except Exception as error:  # a missing, old or broken Triton fails in many ways, none of which should stop anybody
        logger.info("Temporal attention runs without its Triton kernel: %s", error)
        return False
    return True


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
