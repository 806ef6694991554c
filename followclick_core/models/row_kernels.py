"""Triton kernels over rows of channels: LayerNorm with positions, the biases of a residual stream, the gated GELU."""

# Triton's functions are compiled from their text; their types are not Python's.
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false, reportIndexIssue=false, reportCallIssue=false
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportUnboundVariable=false

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch_sizes import cdiv, next_power_of_2

MAX_BIASES = 5
# Of the largest GPUs: eight on each of some 130 multiprocessors.
ENOUGH_PROGRAMS = 1024


@triton.jit
def _load_rows(x, tile, end, columns: tl.constexpr, R: tl.constexpr, C: tl.constexpr):
    row, column = tile * R + tl.arange(0, R)[:, None], tl.arange(0, C)[None, :]
    return tl.load(x + row.to(tl.int64) * columns + column, (row < end) & (column < columns), 0.0)


@triton.jit
def _norm_rows(
    x, weight, bias, ahead, positions, out, rows, columns: tl.constexpr, frames, eps,
    AHEAD: tl.constexpr, PLACED: tl.constexpr, TILES: tl.constexpr, R: tl.constexpr, C: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    column = tl.arange(0, C)[None, :]
    known = column < columns
    scale = tl.load(weight + column, known, 0.0).to(tl.float32)
    shift = tl.load(bias + column, known, 0.0).to(tl.float32)
    if AHEAD:
        others = tl.load(ahead + column, known, 0.0)
    first = tl.program_id(0) * TILES
    end = tl.minimum(rows, (first + TILES) * R)
    if EARLY:
        following = _load_rows(x, first, end, columns, R, C)
    for step in range(TILES):
        tile = first + step
        if EARLY:
            values = following.to(tl.float32)
            # On its way while this tile is summed up.
            following = _load_rows(x, tile + 1, end, columns, R, C)
        else:
            values = _load_rows(x, tile, end, columns, R, C).to(tl.float32)
        if AHEAD:
            values -= others
        mean = tl.sum(values, 1) / columns
        values = tl.where(known, values - mean[:, None], 0.0)
        rstd = 1.0 / tl.sqrt(tl.sum(values * values, 1) / columns + eps)
        values = values * rstd[:, None] * scale + shift
        row = tile * R + tl.arange(0, R)[:, None]
        inside = (row < rows) & known
        if PLACED:
            values += tl.load(positions + row % frames * columns + column, inside, 0.0).to(tl.float32)
        tl.store(out + row.to(tl.int64) * columns + column, values.to(out.dtype.element_ty), inside)


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
    """The exact one, x Phi(x), to 5e-7.

    It is max(x, 0) - |x| Phi(-|x|), and log2 Phi(-|x|) is nearly a parabola: so a polynomial of degree 5, fitted to the
    least largest error of the product, and one power take the place of erf, which would be most of a gated layer's
    instructions besides its matrix product.
    """
    far = tl.abs(x)
    power = -0.00047330925 * far + 0.0070845569
    power = power * far - 0.051827382
    power = power * far - 0.45999244
    power = power * far - 1.1507879
    power = power * far - 1.0000377
    # Of infinity the rest would be infinity times zero.
    return tl.where(x == float("inf"), x, tl.maximum(x, 0.0) - far * tl.exp2(power))


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
    """Numbers in a tile, those beyond a row's end included; warps; whether the next tile is loaded early."""

    numbers: int = 4096
    warps: int = 8
    early: bool = False


def row_tiles(columns: int) -> RowTiles:
    # Of 512 columns a warp has a row, whose sums need no other warp.
    return RowTiles(numbers=2048, warps=4) if columns <= 512 else RowTiles()


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
    width = max(16, next_power_of_2(columns))
    height = max(1, tiles.numbers // width)
    # Several tiles of one program share its reading of the parameters, as long as every multiprocessor has programs.
    count = max(1, min(8, next_power_of_2(rows // (height * ENOUGH_PROGRAMS) + 1) // 2))
    with torch.cuda.device_of(x):
        _norm_rows[(cdiv(rows, height * count),)](
            x, weight, bias, x if ahead is None else ahead, x if positions is None else positions, out, rows, columns,
            1 if positions is None else len(positions), eps,
            AHEAD=ahead is not None, PLACED=positions is not None, TILES=count, R=height, C=width, EARLY=tiles.early,
            num_warps=tiles.warps,
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
        _sum_biases[(cdiv(columns, 128),)](*padded, first, ahead, columns, COUNT=len(biases), C=128, num_warps=4)
    return first, ahead


def gate_product(product: Tensor) -> Tensor:
    """value * gelu(gate) of rows [value, gate]: [n, 2 c] -> [n, c]."""
    product = product.contiguous()
    rows, columns = len(product), product.shape[1] // 2
    out = product.new_empty(rows, columns)
    with torch.cuda.device_of(product):
        grid = (cdiv(rows, 8) * cdiv(columns, 256),)
        _gate[grid](product, out, rows, columns, R=8, C=256, num_warps=4)
    return out
