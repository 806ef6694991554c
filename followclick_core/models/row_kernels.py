"""Triton kernels over rows of channels: LayerNorm with positions, the biases of a residual stream, the gated GELU.

A tile of Triton has a power of two of columns, and Stable Diffusion's widths are 5/4 of one: a row is read as two
pieces, so that no lane is idle.
"""

# Triton's functions are compiled from their text; their types are not Python's.
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false, reportIndexIssue=false, reportCallIssue=false
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

MAX_BIASES = 5
# Of the largest GPUs: eight on each of some 130 multiprocessors.
ENOUGH_PROGRAMS = 1024


def pieces(width: int, least: int) -> tuple[int, int]:
    """Two powers of two that together hold `width`: the largest within it, and the next one that holds what is left."""
    first = max(least, 1 << (width.bit_length() - 1))
    rest = width - first
    return first, max(least, 1 << (rest - 1).bit_length()) if rest > 0 else 0


@triton.jit
def _parameters(weight, bias, ahead, column, columns, AHEAD: tl.constexpr):
    """One piece of a norm's weight, bias and of what its input holds ahead of time."""
    inside = column < columns
    early = 0.0
    if AHEAD:
        early = tl.load(ahead + column, inside, 0.0)
    return (
        tl.load(weight + column, inside, 0.0).to(tl.float32),
        tl.load(bias + column, inside, 0.0).to(tl.float32),
        early,
    )


@triton.jit
def _finish(values, weight, bias, positions, out, at, frame, row_inside, column, columns, PLACED: tl.constexpr):
    inside = row_inside & (column < columns)
    values = values * weight + bias
    if PLACED:
        values += tl.load(positions + frame * columns + column, inside, 0.0).to(tl.float32)
    tl.store(out + at + column, values.to(out.dtype.element_ty), inside)


@triton.jit
def _norm_rows(
    x, weight, bias, ahead, positions, out, rows, columns: tl.constexpr, frames, eps,
    AHEAD: tl.constexpr, PLACED: tl.constexpr, TILES: tl.constexpr, R: tl.constexpr, C: tl.constexpr,
    REST: tl.constexpr,
):  # fmt: skip
    column = tl.arange(0, C)[None, :]
    scale, shift, early = _parameters(weight, bias, ahead, column, columns, AHEAD)
    if REST > 0:
        last = C + tl.arange(0, REST)[None, :]
        last_scale, last_shift, last_early = _parameters(weight, bias, ahead, last, columns, AHEAD)
    for tile in range(TILES):
        row = (tl.program_id(0) * TILES + tile) * R + tl.arange(0, R)[:, None]
        row_inside = row < rows
        at, frame = row.to(tl.int64) * columns, row % frames
        values = tl.load(x + at + column, row_inside & (column < columns), 0.0).to(tl.float32) - early
        total = tl.sum(values, 1)
        if REST > 0:
            others = tl.load(x + at + last, row_inside & (last < columns), 0.0).to(tl.float32) - last_early
            total += tl.sum(others, 1)
        mean = (total / columns)[:, None]
        values = tl.where(column < columns, values - mean, 0.0)
        squares = tl.sum(values * values, 1)
        if REST > 0:
            others = tl.where(last < columns, others - mean, 0.0)
            squares += tl.sum(others * others, 1)
        rstd = (1.0 / tl.sqrt(squares / columns + eps))[:, None]
        _finish(values * rstd, scale, shift, positions, out, at, frame, row_inside, column, columns, PLACED)
        if REST > 0:
            _finish(others * rstd, last_scale, last_shift, positions, out, at, frame, row_inside, last, columns, PLACED)


@triton.jit
def _sum_biases(b0, b1, b2, b3, b4, first, ahead, columns, COUNT: tl.constexpr, C: tl.constexpr):
    """first = b0 + b1 + ..., and row i of `ahead` the sum of those after b_i."""
    column = tl.program_id(0) * C + tl.arange(0, C)
    inside = column < columns
    total = tl.zeros([C], tl.float32)
    if COUNT > 4:
        total += tl.load(b4 + column, inside, 0.0).to(tl.float32)
        tl.store(ahead + 3 * columns + column, total, inside)
    if COUNT > 3:
        total += tl.load(b3 + column, inside, 0.0).to(tl.float32)
        tl.store(ahead + 2 * columns + column, total, inside)
    if COUNT > 2:
        total += tl.load(b2 + column, inside, 0.0).to(tl.float32)
        tl.store(ahead + columns + column, total, inside)
    total += tl.load(b1 + column, inside, 0.0).to(tl.float32)
    tl.store(ahead + column, total, inside)
    total += tl.load(b0 + column, inside, 0.0).to(tl.float32)
    tl.store(first + column, total.to(first.dtype.element_ty), inside)


@triton.jit
def gelu(x):
    """The exact one, x Phi(x)."""
    return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))


@triton.jit
def _gate(product, out, rows, columns: tl.constexpr, R: tl.constexpr, C: tl.constexpr):
    across = tl.cdiv(columns, C)
    row = (tl.program_id(0) // across * R + tl.arange(0, R))[:, None]
    column = (tl.program_id(0) % across * C + tl.arange(0, C))[None, :]
    inside = (row < rows) & (column < columns)
    row = row.to(tl.int64)
    at = product + row * 2 * columns + column
    value = tl.load(at, inside, 0.0).to(tl.float32)
    gate = tl.load(at + columns, inside, 0.0).to(tl.float32)
    tl.store(out + row * columns + column, (value * gelu(gate)).to(out.dtype.element_ty), inside)


class RowTiles(NamedTuple):
    """Columns of a tile's two pieces, numbers in the first, and warps."""

    columns: int
    rest: int
    numbers: int = 4096
    warps: int = 8


def row_tiles(columns: int) -> RowTiles:
    if columns <= 512:  # a row for a warp, whose sums need no other
        return RowTiles(max(16, triton.next_power_of_2(columns)), 0, numbers=4096, warps=4)
    return RowTiles(triton.next_power_of_2(columns), 0)


def norm_rows(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    ahead: Tensor | None,
    positions: Tensor | None,
    tiles: RowTiles | None = None,
) -> Tensor:
    """LayerNorm of each row of x - ahead, plus the position of the row's frame.

    Args:
        x: [rows, c], frame after frame of each pixel.
        ahead: float32 [c], what of x does not belong to it yet; None for nothing.
        positions: [f, c]; None for none.
    """
    x = x.contiguous()
    rows, columns = x.shape
    out = torch.empty_like(x)
    tiles = tiles or row_tiles(columns)
    height = max(1, tiles.numbers // tiles.columns)
    # Several tiles of one program share its reading of the parameters, as long as every multiprocessor has programs.
    count = max(1, min(8, triton.next_power_of_2(rows // (height * ENOUGH_PROGRAMS) + 1) // 2))
    with torch.cuda.device_of(x):
        _norm_rows[(triton.cdiv(rows, height * count),)](
            x, weight, bias, x if ahead is None else ahead, x if positions is None else positions, out, rows, columns,
            1 if positions is None else len(positions), eps,
            AHEAD=ahead is not None, PLACED=positions is not None, TILES=count, R=height, C=tiles.columns,
            REST=tiles.rest, num_warps=tiles.warps,
        )  # fmt: skip
    return out


def sum_biases(biases: list[Tensor]) -> tuple[Tensor, Tensor]:
    """The sum of all biases [c], and float32 [len - 1, c]: in row i the sum of those after the i-th.

    Raises:
        ValueError: fewer than two, or more than the kernel has arguments for.
    """
    if not 2 <= len(biases) <= MAX_BIASES:
        raise ValueError(f"{len(biases)} biases were given; give 2 to {MAX_BIASES}.")
    columns = len(biases[0])
    first = torch.empty_like(biases[0])
    ahead = first.new_empty(len(biases) - 1, columns, dtype=torch.float32)
    padded = biases + biases[:1] * (MAX_BIASES - len(biases))
    with torch.cuda.device_of(first):
        _sum_biases[(triton.cdiv(columns, 128),)](*padded, first, ahead, columns, COUNT=len(biases), C=128, num_warps=4)
    return first, ahead


def gate_product(product: Tensor) -> Tensor:
    """value * gelu(gate) of rows [value, gate]: [n, 2 c] -> [n, c]."""
    product = product.contiguous()
    rows, columns = len(product), product.shape[1] // 2
    out = product.new_empty(rows, columns)
    with torch.cuda.device_of(product):
        grid = (triton.cdiv(rows, 8) * triton.cdiv(columns, 256),)
        _gate[grid](product, out, rows, columns, R=8, C=256, num_warps=4)
    return out
