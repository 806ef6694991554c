"""The Triton kernel of temporal attention and its gradient, registered with PyTorch as operators.

One program, of one warp where that suffices, attends for one pixel and one head. It reads queries, keys and values out
of the packed product and keeps the whole table of weights in registers; the gradient computes that table again.
"""

# Triton's functions are compiled from their text; their types are not Python's.
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false, reportIndexIssue=false, reportCallIssue=false
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false

import math

import torch
import triton
import triton.language as tl
from torch import Tensor


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
    with torch.cuda.device_of(tensors[0]):  # Triton launches on the current device, wherever the tensors are
        kernel[(pixels * num_heads,)](
            *tensors, 1 / math.sqrt(head_dim), frames, num_heads, head_dim, **sizes, num_warps=warps
        )


@torch.library.custom_op("followclick::temporal_attention", mutates_args=())
def _temporal_attention(qkv: Tensor, num_heads: int) -> Tensor:
    # A compiler that pads its buffers may hand over others than it was shown.
    qkv = qkv.contiguous()
    out = qkv.new_empty(*qkv.shape[:2], qkv.shape[2] // 3)
    _launch(_forward, (qkv, out), num_heads)
    return out


@torch.library.custom_op("followclick::temporal_attention_backward", mutates_args=())
def _temporal_attention_backward(qkv: Tensor, grad: Tensor, num_heads: int) -> Tensor:
    qkv, grad = qkv.contiguous(), grad.contiguous()
    grad_qkv = torch.empty_like(qkv)
    _launch(_backward, (qkv, grad, grad_qkv), num_heads)
    return grad_qkv


@_temporal_attention.register_fake
def _(qkv: Tensor, num_heads: int) -> Tensor:
    return qkv.new_empty(*qkv.shape[:2], qkv.shape[2] // 3)


@_temporal_attention_backward.register_fake
def _(qkv: Tensor, grad: Tensor, num_heads: int) -> Tensor:
    return torch.empty_like(qkv.contiguous())


def _keep(ctx, inputs: tuple[Tensor, int], output: Tensor) -> None:
    ctx.save_for_backward(inputs[0])
    ctx.num_heads = inputs[1]


def _differentiate(ctx, grad: Tensor) -> tuple[Tensor, None]:
    (qkv,) = ctx.saved_tensors
    return torch.ops.followclick.temporal_attention_backward(qkv, grad, ctx.num_heads), None


_temporal_attention.register_autograd(_differentiate, setup_context=_keep)
