"""The Triton kernel of temporal attention and its gradient, registered with PyTorch as operators.

One program, of one warp where that suffices, attends for one pixel and one head. It reads queries, keys and
values out of the packed product and keeps the whole table of weights in registers; the gradient computes it again.
"""

# Triton's functions are compiled from their text; their types are not Python's.
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false, reportIndexIssue=false, reportCallIssue=false
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch_sizes import next_power_of_2


@triton.jit
def _piece(pointer, row_stride, frames, first, head_dim, F: tl.constexpr, D: tl.constexpr):
    """Addresses and mask of D columns of a head from the first on."""
    f, d = tl.arange(0, F)[:, None], first + tl.arange(0, D)[None, :]
    return pointer + f * row_stride + d, (f < frames) & (d < head_dim)


@triton.jit
def _softmax(scores, frames, F: tl.constexpr):
    scores = tl.where(tl.arange(0, F)[None, :] < frames, scores, -float("inf"))
    weights = tl.exp(scores - tl.max(scores, 1)[:, None])
    return weights / tl.sum(weights, 1)[:, None]


@triton.jit
def _weights(q, k, scale, frames, F: tl.constexpr):
    return _softmax(tl.dot(q, tl.trans(k), input_precision="ieee") * scale, frames, F)


@triton.jit
def _forward(
    qkv, out, scale, frames, heads: tl.constexpr, head_dim: tl.constexpr,
    F: tl.constexpr, D: tl.constexpr, REST: tl.constexpr,
):  # fmt: skip
    """A head's columns are read as two powers of two, D and REST: SD1.5's 40, 80 and 160 are 5/4 of one."""
    pixel, head = (tl.program_id(0) // heads).to(tl.int64), tl.program_id(0) % heads
    width = heads * head_dim
    start = qkv + pixel * frames * 3 * width + head * head_dim
    at, mask = _piece(start, 3 * width, frames, 0, head_dim, F, D)
    q, k, v = tl.load(at, mask, 0.0), tl.load(at + width, mask, 0.0), tl.load(at + 2 * width, mask, 0.0)
    scores = tl.dot(q, tl.trans(k), input_precision="ieee")
    if REST > 0:
        at, rest_mask = _piece(start, 3 * width, frames, D, head_dim, F, REST)
        q, k = tl.load(at, rest_mask, 0.0), tl.load(at + width, rest_mask, 0.0)
        rest_v = tl.load(at + 2 * width, rest_mask, 0.0)
        scores = tl.dot(q, tl.trans(k), scores, input_precision="ieee")
    weights = _softmax(scores * scale, frames, F).to(v.dtype)
    start = out + pixel * frames * width + head * head_dim
    at, mask = _piece(start, width, frames, 0, head_dim, F, D)
    tl.store(at, tl.dot(weights, v, input_precision="ieee").to(out.dtype.element_ty), mask)
    if REST > 0:
        at, rest_mask = _piece(start, width, frames, D, head_dim, F, REST)
        tl.store(at, tl.dot(weights, rest_v, input_precision="ieee").to(out.dtype.element_ty), rest_mask)


@triton.jit
def _backward(
    qkv, grad, grad_qkv, scale, frames, heads: tl.constexpr, head_dim: tl.constexpr, F: tl.constexpr, D: tl.constexpr
):
    pixel, head = (tl.program_id(0) // heads).to(tl.int64), tl.program_id(0) % heads
    width = heads * head_dim
    offset = pixel * frames * 3 * width + head * head_dim
    at, mask = _piece(qkv + offset, 3 * width, frames, 0, head_dim, F, D)
    q, k, v = (
        tl.load(at, mask, 0.0),
        tl.load(at + width, mask, 0.0),
        tl.load(at + 2 * width, mask, 0.0),
    )
    at, mask = _piece(grad + pixel * frames * width + head * head_dim, width, frames, 0, head_dim, F, D)
    g = tl.load(at, mask, 0.0)
    weights = _weights(q, k, scale, frames, F)
    grad_v = tl.dot(tl.trans(weights.to(g.dtype)), g, input_precision="ieee")
    grad_weights = tl.dot(g, tl.trans(v), input_precision="ieee")
    grad_scores = weights * (grad_weights - tl.sum(grad_weights * weights, 1)[:, None]) * scale
    grad_scores = grad_scores.to(q.dtype)
    grad_q = tl.dot(grad_scores, k, input_precision="ieee")
    grad_k = tl.dot(tl.trans(grad_scores), q, input_precision="ieee")
    at, mask = _piece(grad_qkv + offset, 3 * width, frames, 0, head_dim, F, D)
    kind = grad_qkv.dtype.element_ty
    tl.store(at, grad_q.to(kind), mask)
    tl.store(at + width, grad_k.to(kind), mask)
    tl.store(at + 2 * width, grad_v.to(kind), mask)


def _launch(kernel, tensors: tuple[Tensor, ...], num_heads: int, **sizes: int) -> None:
    pixels, frames, packed = tensors[0].shape
    head_dim = packed // (3 * num_heads)
    with torch.cuda.device_of(tensors[0]):  # Triton launches on the current device, wherever the tensors are
        kernel[(pixels * num_heads,)](*tensors, 1 / math.sqrt(head_dim), frames, num_heads, head_dim, **sizes)


def pieces(width: int) -> tuple[int, int]:
    """Two powers of two that together hold `width`: the largest within it, and the next one that holds what is left.

    Both are 16 or more, the least that a tensor core takes; the second is 0 where nothing is left.
    """
    first = max(16, 1 << (width.bit_length() - 1))
    rest = width - first
    return first, max(16, 1 << (rest - 1).bit_length()) if rest > 0 else 0


def attention_warps(dtype: torch.dtype, rows: int, columns: int) -> int:
    """A warp for each 16 rows, the height of a tensor core's tile: so no row of weights is spread over warps.

    Wide heads of float32, which has no tensor cores at full precision, would not fit into so few warps' registers.
    """
    return rows // 4 if dtype == torch.float32 and columns > 80 else rows // 16


def attend(qkv: Tensor, num_heads: int) -> Tensor:
    """Attention of n pixels' frames, [n, f, 3 c] -> [n, f, c]."""
    # A compiler that pads its buffers may hand over others than it was shown.
    qkv = qkv.contiguous()
    frames, packed = qkv.shape[1:]
    out = qkv.new_empty(len(qkv), frames, packed // 3)
    rows = max(16, next_power_of_2(frames))
    columns, rest = pieces(packed // (3 * num_heads))
    warps = attention_warps(qkv.dtype, rows, columns + rest)
    _launch(_forward, (qkv, out), num_heads, F=rows, D=columns, REST=rest, num_warps=warps)
    return out


def attend_backward(qkv: Tensor, grad: Tensor, num_heads: int) -> Tensor:
    """The gradient of `attend`: [n, f, 3 c] and [n, f, c] -> [n, f, 3 c]."""
    qkv, grad = qkv.contiguous(), grad.contiguous()
    grad_qkv = torch.empty_like(qkv)
    rows = max(16, next_power_of_2(qkv.shape[1]))
    columns = max(16, next_power_of_2(qkv.shape[2] // (3 * num_heads)))
    warps = 1 if rows * columns <= 1024 else 4
    _launch(_backward, (qkv, grad, grad_qkv), num_heads, F=rows, D=columns, num_warps=warps)
    return grad_qkv


@torch.library.custom_op("followclick::temporal_attention", mutates_args=())
def _temporal_attention(qkv: Tensor, num_heads: int) -> Tensor:
    return attend(qkv, num_heads)


@torch.library.custom_op("followclick::temporal_attention_backward", mutates_args=())
def _temporal_attention_backward(qkv: Tensor, grad: Tensor, num_heads: int) -> Tensor:
    return attend_backward(qkv, grad, num_heads)


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
