"""A linear layer and its gated GELU in one Triton kernel: the product, eight times its input's width, is never written.

Each program makes the same columns of both halves and gates one by the other before it stores them.
"""

# Triton's functions are compiled from their text; their types are not Python's.
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false, reportIndexIssue=false, reportCallIssue=false
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false

import functools
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch_sizes import cdiv
from .row_kernels import gelu


class Tiles(NamedTuple):
    """Rows, columns of each half and depth of a program's tiles, neighbours in one group, warps and stages.

    `resident` programs for each multiprocessor take one tile after the other, and the GPU's copying unit (TMA) reads
    for them; 0 for a program to each tile, whose threads read for themselves.
    """

    rows: int = 128
    columns: int = 128
    depth: int = 64
    group: int = 8
    warps: int = 8
    stages: int = 3
    resident: int = 0


# Up to 384 columns a tile is over after six steps or fewer: two programs for each multiprocessor, one of which
# multiplies while the other gates.
NARROW, NARROW_TILES, TILES = 384, Tiles(columns=64), Tiles()
# Of float32, whose tiles take twice the shared memory.
WIDE_TILES = Tiles(64, 64, 32, warps=4, stages=2)


@triton.jit
def _place(tile, rows, columns, M: tl.constexpr, N: tl.constexpr, GROUP: tl.constexpr):
    """First row and column of a tile; those that run together share rows of x and columns of the weights."""
    down, across = tl.cdiv(rows, M), tl.cdiv(columns, N)
    per_group = GROUP * across
    first = tile // per_group * GROUP
    height = tl.minimum(down - first, GROUP)
    return (first + tile % per_group % height) * M, tile % per_group // height * N


@triton.jit
def _gated_linear(
    x, weight, bias, out, rows, columns, depth: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, GROUP: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    row, column = _place(tl.program_id(0), rows, columns, M, N, GROUP)
    row += tl.arange(0, M)
    column += tl.arange(0, N)
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


@triton.jit
def _gated_linear_stream(
    x, weight, bias, out, rows, columns, depth: tl.constexpr, STEPS: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, GROUP: tl.constexpr, FLAT: tl.constexpr,
):  # fmt: skip
    """The same by descriptors: x [rows, depth], weight [2, columns, depth], out [rows, columns].

    Both halves' columns are one operand, so that each number of x is read from shared memory once for both.
    """
    tiles = tl.cdiv(rows, M) * tl.cdiv(columns, N)
    for step in tl.range(0, STEPS, flatten=FLAT):
        # Some programs make one of the first tiles again, rather than wait for those that have one more.
        tile = (tl.program_id(0) + step * tl.num_programs(0)) % tiles
        row, column = _place(tile, rows, columns, M, N, GROUP)
        both = tl.zeros([M, 2 * N], tl.float32)
        for start in range(0, depth, K):
            columns_of_both = tl.reshape(weight.load([0, column, start]), [2 * N, K])
            both = tl.dot(x.load([row, start]), tl.trans(columns_of_both), both, input_precision="ieee")
        value, gate = tl.split(tl.permute(tl.reshape(both, [M, 2, N]), (0, 2, 1)))
        place = column + tl.arange(0, N)
        known = place < columns
        value += tl.load(bias + place, known, 0.0).to(tl.float32)[None, :]
        gate += tl.load(bias + columns + place, known, 0.0).to(tl.float32)[None, :]
        out.store([row, column], (value * gelu(gate)).to(out.dtype))


def gated_linear(x: Tensor, weight: Tensor, bias: Tensor, tiles: Tiles | None = None) -> Tensor:
    """value * gelu(gate) of [value, gate] = x weight^T + bias: [n, c], [2 d, c], [2 d] -> [n, d]."""
    x, weight = x.contiguous(), weight.contiguous()
    rows, depth = x.shape
    columns = len(weight) // 2
    tiles = tiles or (WIDE_TILES if x.dtype == torch.float32 else NARROW_TILES if depth <= NARROW else TILES)
    out = x.new_empty(rows, columns)
    count = cdiv(rows, tiles.rows) * cdiv(columns, tiles.columns)
    sizes = {"M": tiles.rows, "N": tiles.columns, "K": tiles.depth, "GROUP": tiles.group}
    options = {"num_warps": tiles.warps, "num_stages": tiles.stages}
    with torch.cuda.device_of(x):
        if not tiles.resident:
            even = depth % tiles.depth == 0
            _gated_linear[(count,)](x, weight, bias, out, rows, columns, depth, EVEN=even, **sizes, **options)
            return out
        # Not every Triton has it, and other tiles do not ask for it.
        from triton.tools.tensor_descriptor import TensorDescriptor

        programs = min(count, tiles.resident * multiprocessors(x.device))
        descriptors = (
            TensorDescriptor.from_tensor(x, [tiles.rows, tiles.depth]),
            TensorDescriptor.from_tensor(weight.view(2, columns, depth), [2, tiles.columns, tiles.depth]),
            bias,
            TensorDescriptor.from_tensor(out, [tiles.rows, tiles.columns]),
        )
        _gated_linear_stream[(programs,)](
            *descriptors,
            rows,
            columns,
            depth,
            cdiv(count, programs),
            FLAT=tiles.resident == 1,
            **sizes,
            **options,
        )
    return out


@functools.lru_cache(maxsize=16)
def multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
