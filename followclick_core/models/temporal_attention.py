"""Attention along time for many pixels at once, without wasted tiles.

A clip has 16 to 32 frames but tens of thousands of pixels, each with an attention of its own. Kernels made for long
sequences give every one of them a tile of 64 rows or more, and want queries, keys and values copied apart first. On an
NVIDIA GPU a small Triton kernel reads the packed product of one linear layer where it lies, one warp per pixel and
head, and writes what the next layer reads. Everywhere else PyTorch's own attention computes the same.
"""

import importlib.util

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

# Triton comes with PyTorch for NVIDIA GPUs, and takes a while to import.
HAS_KERNEL = torch.cuda.is_available() and torch.version.hip is None and importlib.util.find_spec("triton") is not None
if HAS_KERNEL:
    from . import temporal_kernel  # noqa: F401  # registers the operator

Packed = Float[Tensor, "n f three_c"]  # queries, keys and values of n pixels' f frames, side by side
Attended = Float[Tensor, "n f c"]

# CUDA's attention kernels put batch x heads on a grid axis that ends at 65,535.
MAX_ATTENTION_ROWS = 65_535
# Longer clips fill the tiles of the ordinary kernels, and wider heads would not fit into a warp's registers.
MAX_FRAMES, MAX_HEAD_DIM = 64, 160


def attend_over_time(qkv: Packed, num_heads: int) -> Attended:
    """Softmax attention of each pixel's frames to each other, per head; scaled by 1 / sqrt(head width)."""
    if runs_as_kernel(qkv, num_heads):
        return torch.ops.followclick.temporal_attention(qkv, num_heads)
    return attend_with_sdpa(qkv, num_heads)


def runs_as_kernel(qkv: Packed, num_heads: int) -> bool:
    """Whether the Triton kernel takes this product."""
    head_dim = qkv.shape[-1] // (3 * num_heads)
    small = qkv.shape[1] <= MAX_FRAMES and 16 <= head_dim <= MAX_HEAD_DIM
    return HAS_KERNEL and qkv.is_cuda and small and qkv.is_contiguous()


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
