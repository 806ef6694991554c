"""A linear layer and its gated GELU in one Triton kernel: the product, eight times its input's width, is never written.

Each program makes the same columns of both halves and gates one by the other before it stores them. The GPU's copying
unit (TMA) reads and writes for it, as descriptors say: so no addresses are in registers, and tiles can be large.
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

# Older Tritons do not have it; `motion_ops.gates_work` says so and goes without this kernel.
from triton.tools.tensor_descriptor import TensorDescriptor

from .launch_sizes import cdiv
from .row_kernels import gelu


class Tiles(NamedTuple):
    """Rows, columns of each half and depth of a program's tiles, neighbours in one group, warps and stages."""

    rows: int = 128
    columns: int = 128
    depth: int = 64
    group: int = 8
    warps: int = 8
    stages: int = 4


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
    x, weight, bias, out, rows, columns, depth: tl.constexpr, STEPS: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Of x [rows, depth], weight [2, columns, depth] and out [rows, columns], as descriptors.

    Both halves' columns are one operand, so that each number of x is read from shared memory once for both.
    """
    tiles = tl.cdiv(rows, M) * tl.cdiv(columns, N)
    for step in tl.range(0, STEPS, flatten=True):
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
    columns, tiles = len(weight) // 2, tiles or Tiles()
    out = x.new_empty(rows, columns)
    count = cdiv(rows, tiles.rows) * cdiv(columns, tiles.columns)
    # A multiprocessor has room for one program, which takes one tile after the other.
    programs = min(count, multiprocessors(x.device))
    with torch.cuda.device_of(x):
        _gated_linear[(programs,)](
            TensorDescriptor.from_tensor(x, [tiles.rows, tiles.depth]),
            TensorDescriptor.from_tensor(weight.view(2, columns, depth), [2, tiles.columns, tiles.depth]),
            bias,
            TensorDescriptor.from_tensor(out, [tiles.rows, tiles.columns]),
            rows, columns, depth, cdiv(count, programs), M=tiles.rows, N=tiles.columns, K=tiles.depth,
            GROUP=tiles.group, num_warps=tiles.warps, num_stages=tiles.stages,
        )  # fmt: skip
    return out


@functools.lru_cache(maxsize=16)
def multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
