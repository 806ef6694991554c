"""Attention from all frames and pixels of a clip to its motion text, by PyTorch or by a kernel for short texts."""

import functools

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from . import motion_ops
from .kernel_checks import Comparison, agree, capable
from .temporal_attention import MAX_HEAD_DIM

Queries = Float[Tensor, "n f c"]  # of all clips' pixels, one clip after the other
TextTensor = Float[Tensor, "clips heads tokens d"]

# Of a longer text the weights would not fit into registers.
MAX_TOKENS = 128
# The kernel's tiles are as many tokens wide, or a multiple.
TOKENS_AT_ONCE = 16


def attend_to_text(q: Queries, k: TextTensor, v: TextTensor) -> Queries:
    """Softmax attention of each query to its clip's text, per head; scaled by 1 / sqrt(head width)."""
    return motion_ops.attend_text(q, k, v) if runs_as_kernel(q, k) else attend_with_sdpa(q, k, v)


def attend_with_sdpa(q: Queries, k: TextTensor, v: TextTensor) -> Queries:
    """The same by PyTorch's scaled dot product attention, on any device."""
    clips, heads, _, _ = k.shape
    by_head = rearrange(q, "(b hw) f (heads d) -> b heads (hw f) d", b=clips, heads=heads)
    h = F.scaled_dot_product_attention(by_head, k, v)
    return rearrange(h, "b heads (hw f) d -> (b hw) f (heads d)", f=q.shape[1])


def runs_as_kernel(q: Queries, k: TextTensor) -> bool:
    """Whether the Triton kernel takes these queries and this text; it has no gradient."""
    tokens, head_dim = k.shape[2:]
    small = 0 < tokens <= MAX_TOKENS and 16 <= head_dim <= MAX_HEAD_DIM
    narrow = q.dtype == k.dtype and q.dtype in (torch.float16, torch.bfloat16)
    if not (q.is_cuda and small and narrow) or torch.is_grad_enabled() or motion_ops.compiles_unregistered():
        return False
    return kernel_works(q.device.index, q.dtype, head_dim, -(-tokens // TOKENS_AT_ONCE) * TOKENS_AT_ONCE)


@torch.compiler.assume_constant_result
def kernel_works(device_index: int, dtype: torch.dtype, head_dim: int, tokens: int) -> bool:
    """Whether the kernel can be built and computes what PyTorch does; tried once each.

    A longer text takes more shared memory, which a smaller GPU may not have.
    """
    return _kernel_works(device_index, dtype, head_dim, tokens)


# Within the constant, as torch.compile ignores a cache that it meets and follows what is cached.
@functools.lru_cache(maxsize=64)
def _kernel_works(device_index: int, dtype: torch.dtype, head_dim: int, tokens: int) -> bool:
    if not capable(device_index):
        return False
    compare = functools.partial(comparisons, torch.device("cuda", device_index), dtype, head_dim, tokens)
    return agree("Attention to motion texts runs", f"heads of {head_dim} channels, {tokens} tokens, {dtype}", compare)


def comparisons(
    device: torch.device, dtype: torch.dtype, head_dim: int, tokens: int = 77, heads: int = 2, pixels: int = 20
) -> list[Comparison]:
    """The kernel's attention of two clips beside PyTorch's for the same numbers."""
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    q = noise(2 * pixels, 5, heads * head_dim)
    # As `TemporalAttention.project_text` gives them.
    k, v = (noise(2, tokens, heads, head_dim).transpose(1, 2) for _ in range(2))
    theirs = attend_with_sdpa(q.float(), k.float(), v.float())
    return [("attention to the text", motion_ops.attend_text(q, k, v), theirs)]
