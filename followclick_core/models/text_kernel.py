"""The Triton kernel of attention from all frames and pixels of a clip to its motion text.

A text is short: a head's keys and values stay on the multiprocessor while a program goes through many pixels' queries,
and each query's weights are in registers whole. Queries are read, and results written, where the linear layers have
them.
"""

# Triton's functions are compiled from their text; their types are not Python's.
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false, reportIndexIssue=false, reportCallIssue=false
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportPossiblyUnboundVariable=false

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch_sizes import cdiv
from .temporal_kernel import pieces

ROWS, WARPS, STAGES = 64, 4, 2  # of a tile of queries; and how many of them are under way
# Tiles that a program makes at most, and programs that are enough for a large GPU, several rounds of all that it runs.
MAX_STEPS, ENOUGH_PROGRAMS = 8, 4096


@triton.jit
def _part(start, row, rows, heads: tl.constexpr, head_dim: tl.constexpr, FIRST: tl.constexpr, D: tl.constexpr):
    """Addresses and mask of D columns of a head, from FIRST on, in rows of all heads."""
    column = FIRST + tl.arange(0, D)
    at = start + row.to(tl.int64)[:, None] * (heads * head_dim) + column[None, :]
    return at, (row < rows)[:, None] & (column < head_dim)[None, :]


@triton.jit
def _text_attention(
    q, k, v, out, scale, rows, tokens, heads: tl.constexpr, head_dim: tl.constexpr, STEPS: tl.constexpr,
    M: tl.constexpr, T: tl.constexpr, MORE: tl.constexpr, D: tl.constexpr, REST: tl.constexpr,
):  # fmt: skip
    """Tokens are T and MORE and a head's columns D and REST, powers of two: 77 are 64 and 16, 40 are 32 and 16.

    `scale` is for powers of two instead of e.
    """
    head, clip = tl.program_id(0) % heads, tl.program_id(1).to(tl.int64)
    texts = clip * tokens * heads * head_dim + head * head_dim
    pixels = clip * rows * heads * head_dim + head * head_dim
    token = tl.arange(0, T)
    place, known = _part(texts, token, tokens, heads, head_dim, 0, D)
    k0, v0 = tl.load(k + place, known, 0.0), tl.load(v + place, known, 0.0)
    if REST > 0:
        place, known = _part(texts, token, tokens, heads, head_dim, D, REST)
        k1, v1 = tl.load(k + place, known, 0.0), tl.load(v + place, known, 0.0)
    if MORE > 0:
        later = T + tl.arange(0, MORE)
        place, known = _part(texts, later, tokens, heads, head_dim, 0, D)
        k2, v2 = tl.load(k + place, known, 0.0), tl.load(v + place, known, 0.0)
        if REST > 0:
            place, known = _part(texts, later, tokens, heads, head_dim, D, REST)
            k3, v3 = tl.load(k + place, known, 0.0), tl.load(v + place, known, 0.0)
    first = tl.program_id(0) // heads * STEPS
    for step in tl.range(0, STEPS):
        row = (first + step) * M + tl.arange(0, M)
        at, inside = _part(pixels, row, rows, heads, head_dim, 0, D)
        q0 = tl.load(q + at, inside, 0.0)
        scores = tl.dot(q0, tl.trans(k0), input_precision="ieee")
        if MORE > 0:
            others = tl.dot(q0, tl.trans(k2), input_precision="ieee")
        if REST > 0:
            rest, inside_rest = _part(pixels, row, rows, heads, head_dim, D, REST)
            q1 = tl.load(q + rest, inside_rest, 0.0)
            scores = tl.dot(q1, tl.trans(k1), scores, input_precision="ieee")
            if MORE > 0:
                others = tl.dot(q1, tl.trans(k3), others, input_precision="ieee")
        scores = tl.where((token < tokens)[None, :], scores * scale, -float("inf"))
        most = tl.max(scores, 1)
        if MORE > 0:
            others = tl.where((later < tokens)[None, :], others * scale, -float("inf"))
            most = tl.maximum(most, tl.max(others, 1))
            others = tl.exp2(others - most[:, None])
        weights = tl.exp2(scores - most[:, None])
        total = tl.sum(weights, 1)
        weights = weights.to(v0.dtype)
        result = tl.dot(weights, v0, input_precision="ieee")
        if MORE > 0:
            total += tl.sum(others, 1)
            others = others.to(v0.dtype)
            result = tl.dot(others, v2, result, input_precision="ieee")
        tl.store(out + at, (result / total[:, None]).to(out.dtype.element_ty), inside)
        if REST > 0:
            result = tl.dot(weights, v1, input_precision="ieee")
            if MORE > 0:
                result = tl.dot(others, v3, result, input_precision="ieee")
            tl.store(out + rest, (result / total[:, None]).to(out.dtype.element_ty), inside_rest)


def attend_text(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of n pixels' f frames to their clip's text: [n, f, c], twice [clips, heads, tokens, d] -> [n, f, c]."""
    q, (clips, heads, tokens, head_dim) = q.contiguous(), k.shape
    # Copied only if they do not lie as a linear layer wrote them.
    k, v = (t.transpose(1, 2).contiguous() for t in (k, v))
    out = torch.empty_like(q)
    rows = q.numel() // (clips * heads * head_dim)
    tiles, steps = cdiv(rows, ROWS), 1
    while steps < MAX_STEPS and tiles * heads * clips >= 2 * steps * ENOUGH_PROGRAMS:
        steps *= 2
    (first_tokens, more), (columns, rest) = pieces(tokens), pieces(head_dim)
    with torch.cuda.device_of(q):
        _text_attention[(cdiv(tiles, steps) * heads, clips)](
            q, k, v, out, math.log2(math.e) / math.sqrt(head_dim), rows, tokens, heads, head_dim, steps, M=ROWS,
            T=first_tokens, MORE=more, D=columns, REST=rest, num_warps=WARPS, num_stages=STAGES,
        )  # fmt: skip
    return out
