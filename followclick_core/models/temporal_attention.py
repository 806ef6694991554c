"""Attention along time for many pixels at once, without wasted tiles.

A clip has 16 to 32 frames but tens of thousands of pixels, each with an attention of its own. Kernels made for long
sequences give every one of them a tile of 64 rows or more, and want queries, keys and values copied apart first. On an
NVIDIA GPU a small Triton kernel reads the packed product of one linear layer where it lies, one warp per pixel and
head, and writes what the next layer reads. Everywhere else PyTorch's own attention computes the same.
"""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:  # not made for this platform
    triton = None  # type: ignore[assignment]

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
    return triton is not None and qkv.is_cuda and torch.version.hip is None and small and qkv.is_contiguous()


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


if triton is not None:

    @triton.jit
    def _tile(pointer, row_stride, frames, head_dim, F: tl.constexpr, D: tl.constexpr):
        """Addresses and mask of one pixel's [frames, head_dim] in one head, padded to [F, D]."""
        f, d = tl.arange(0, F)[:, None], tl.arange(0, D)[None, :]
        return pointer + f * row_stride + d, (f < frames) & (d < head_dim)

    @triton.jit
    def _weights(q, k, scale, frames, F: tl.constexpr):
        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        scores = tl.where(tl.arange(0, F)[None, :] < frames, scores, -float("inf"))
        weights = tl.exp(scores - tl.max(scores, 1)[:, None])
        return weights / tl.sum(weights, 1)[:, None]

    @triton.jit
    def _forward(qkv, out, scale, frames, heads, head_dim, F: tl.constexpr, D: tl.constexpr):
        pixel, head = (tl.program_id(0) // heads).to(tl.int64), tl.program_id(0) % heads
        width = heads * head_dim
        start = qkv + pixel * frames * 3 * width + head * head_dim
        at, mask = _tile(start, 3 * width, frames, head_dim, F, D)
        q, k, v = (
            tl.load(at, mask, 0.0),
            tl.load(at + width, mask, 0.0),
            tl.load(at + 2 * width, mask, 0.0),
        )
        weights = _weights(q, k, scale, frames, F)
        h = tl.dot(weights.to(v.dtype), v, input_precision="ieee")
        at, mask = _tile(out + pixel * frames * width + head * head_dim, width, frames, head_dim, F, D)
        tl.store(at, h.to(out.dtype.element_ty), mask)

    @triton.jit
    def _backward(qkv, grad, grad_qkv, scale, frames, heads, head_dim, F: tl.constexpr, D: tl.constexpr):
        pixel, head = (tl.program_id(0) // heads).to(tl.int64), tl.program_id(0) % heads
        width = heads * head_dim
        offset = pixel * frames * 3 * width + head * head_dim
        at, mask = _tile(qkv + offset, 3 * width, frames, head_dim, F, D)
        q, k, v = (
            tl.load(at, mask, 0.0),
            tl.load(at + width, mask, 0.0),
            tl.load(at + 2 * width, mask, 0.0),
        )
        at, mask = _tile(grad + pixel * frames * width + head * head_dim, width, frames, head_dim, F, D)
        g = tl.load(at, mask, 0.0)
        weights = _weights(q, k, scale, frames, F)
        grad_v = tl.dot(tl.trans(weights.to(g.dtype)), g, input_precision="ieee")
        grad_weights = tl.dot(g, tl.trans(v), input_precision="ieee")
        grad_scores = weights * (grad_weights - tl.sum(grad_weights * weights, 1)[:, None]) * scale
        grad_scores = grad_scores.to(q.dtype)
        grad_q = tl.dot(grad_scores, k, input_precision="ieee")
        grad_k = tl.dot(tl.trans(grad_scores), q, input_precision="ieee")
        at, mask = _tile(grad_qkv + offset, 3 * width, frames, head_dim, F, D)
        kind = grad_qkv.dtype.element_ty
        tl.store(at, grad_q.to(kind), mask)
        tl.store(at + width, grad_k.to(kind), mask)
        tl.store(at + 2 * width, grad_v.to(kind), mask)

    def _launch(kernel, tensors: tuple[Tensor, ...], num_heads: int) -> None:
        pixels, frames, packed = tensors[0].shape
        head_dim = packed // (3 * num_heads)
        sizes = {"F": max(16, triton.next_power_of_2(frames)), "D": max(16, triton.next_power_of_2(head_dim))}
        warps = 1 if sizes["F"] * sizes["D"] <= 1024 else 4
        kernel[(pixels * num_heads,)](
            *tensors, 1 / math.sqrt(head_dim), frames, num_heads, head_dim, **sizes, num_warps=warps
        )

    @torch.library.custom_op("followclick::temporal_attention", mutates_args=())
    def _temporal_attention(qkv: Tensor, num_heads: int) -> Tensor:
        out = qkv.new_empty(*qkv.shape[:2], qkv.shape[2] // 3)
        _launch(_forward, (qkv, out), num_heads)
        return out

    @torch.library.custom_op("followclick::temporal_attention_backward", mutates_args=())
    def _temporal_attention_backward(qkv: Tensor, grad: Tensor, num_heads: int) -> Tensor:
        grad_qkv = torch.empty_like(qkv)
        _launch(_backward, (qkv, grad, grad_qkv), num_heads)
        return grad_qkv

    @_temporal_attention.register_fake
    def _(qkv: Tensor, num_heads: int) -> Tensor:
        return qkv.new_empty(*qkv.shape[:2], qkv.shape[2] // 3)

    @_temporal_attention_backward.register_fake
    def _(qkv: Tensor, grad: Tensor, num_heads: int) -> Tensor:
        return torch.empty_like(qkv)

    def _keep(ctx, inputs: tuple[Tensor, int], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])
        ctx.num_heads = inputs[1]

    def _differentiate(ctx, grad: Tensor) -> tuple[Tensor, None]:
        (qkv,) = ctx.saved_tensors
        return torch.ops.followclick.temporal_attention_backward(qkv, grad.contiguous(), ctx.num_heads), None

    _temporal_attention.register_autograd(_differentiate, setup_context=_keep)
