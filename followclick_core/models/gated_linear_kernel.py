"""A linear layer and its gated GELU in one Triton kernel: the product, eight times its input's width, is never written.

Each program makes the same columns of both halves and gates one by the other before it stores them.
"""

# Triton's functions are compiled from their text; their types are not Python's.
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false, reportIndexIssue=false, reportCallIssue=false
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .row_kernels import gelu


class Tiles(NamedTuple):
    """Rows, columns of each half and depth of a program's tiles, neighbours in one group, warps and stages."""

    rows: int = 128
    columns: int = 128
    depth: int = 64
    group: int = 8
    warps: int = 8
    stages: int = 4


TILES = Tiles()
# Of float32, whose tiles take twice the shared memory.
WIDE_TILES = Tiles(64, 64, 32, warps=4, stages=2)


@triton.jit
def _gated_linear(
    x, weight, bias, out, rows, columns, depth: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, GROUP: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    # Programs that run together share rows of x and columns of the weights in the cache.
    down, across = tl.cdiv(rows, M), tl.cdiv(columns, N)
    per_group = GROUP * across
    first = tl.program_id(0) // per_group * GROUP
    height = tl.minimum(down - first, GROUP)
    row = (first + tl.program_id(0) % per_group % height) * M + tl.arange(0, M)
    column = (tl.program_id(0) % per_group // height) * N + tl.arange(0, N)
    k = tl.arange(0, K)
    # Rows and columns beyond the end are those of the beginning again: read, but not stored.
    at_x = x + (row % rows).to(tl.int64)[:, None] * depth + k[None, :]
    at_value = weight + (column % columns)[None, :] * depth + k[:, None]
    at_gate = at_value + columns * depth
    value = tl.zeros([M, N], tl.float32)
    gate = tl.zeros([M, N], tl.float32)
    for start in range(0, depth, K):
        if EVEN:
            a, v, g = tl.load(at_x), tl.load(at_value), tl.load(at_gate)
        else:
            left = depth - start
            a = tl.load(at_x, k[None, :] < left, 0.0)
            v = tl.load(at_value, k[:, None] < left, 0.0)
            g = tl.load(at_gate, k[:, None] < left, 0.0)
        value = tl.dot(a, v, value, input_precision="ieee")
        gate = tl.dot(a, g, gate, input_precision="ieee")
        at_x += K
        at_value += K
        at_gate += K
    known = column < columns
    value += tl.load(bias + column, known, 0.0).to(tl.float32)[None, :]
    gate += tl.load(bias + columns + column, known, 0.0).to(tl.float32)[None, :]
    at = out + row.to(tl.int64)[:, None] * columns + column[None, :]
    tl.store(at, (value * gelu(gate)).to(out.dtype.element_ty), (row < rows)[:, None] & known[None, :])


def gated_linear(x: Tensor, weight: Tensor, bias: Tensor, tiles: Tiles | None = None) -> Tensor:
    """value * gelu(gate) of [value, gate] = x weight^T + bias: [n, c], [2 d, c], [2 d] -> [n, d]."""
    x, weight = x.contiguous(), weight.contiguous()
    rows, depth = x.shape
    columns = len(weight) // 2
    tiles = tiles or (WIDE_TILES if x.dtype == torch.float32 else TILES)
    out = x.new_empty(rows, columns)
    with torch.cuda.device_of(x):
        _gated_linear[(triton.cdiv(rows, tiles.rows) * triton.cdiv(columns, tiles.columns),)](
            x, weight, bias, out, rows, columns, depth,
            M=tiles.rows, N=tiles.columns, K=tiles.depth, GROUP=tiles.group, EVEN=depth % tiles.depth == 0,
            num_warps=tiles.warps, num_stages=tiles.stages,
        )  # fmt: skip
    return out
