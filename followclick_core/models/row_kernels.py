"""Triton kernels over rows of channels: LayerNorm with positions, the biases of a residual stream, the gated GELU."""

# Triton's functions are compiled from their text; their types are not Python's.
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false, reportIndexIssue=false, reportCallIssue=false
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportUnboundVariable=false

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch_sizes import cdiv, next_power_of_2

MAX_BIASES = 5
# In a LayerNorm's tile, those beyond a row's end included: so few that one warp has them, and no sum is between warps.
NUMBERS = 1024
# Of the largest GPUs: eight on each of some 130 multiprocessors.
ENOUGH_PROGRAMS = 1024


@triton.jit
def _load_rows(x, tile, end, columns: tl.constexpr, R: tl.constexpr, C: tl.constexpr):
    row, column = tile * R + tl.arange(0, R)[:, None], tl.arange(0, C)[None, :]
    return tl.load(x + row.to(tl.int64) * columns + column, (row < end) & (column < columns), 0.0)


@triton.jit
def _norm_rows(
    x, weight, bias, behind, positions, out, rows, columns: tl.constexpr, frames, eps,
    BEHIND: tl.constexpr, PLACED: tl.constexpr, TILES: tl.constexpr, R: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    column = tl.arange(0, C)[None, :]
    known = column < columns
    scale = tl.load(weight + column, known, 0.0).to(tl.float32)
    shift = tl.load(bias + column, known, 0.0).to(tl.float32)
    if BEHIND:
        missing = tl.load(behind + column, known, 0.0)
    first = tl.program_id(0) * TILES
    end = tl.minimum(rows, (first + TILES) * R)
    following = _load_rows(x, first, end, columns, R, C)
    for step in range(TILES):
        tile = first + step
        values = following.to(tl.float32)
        # On its way while this tile is summed up.
        following = _load_rows(x, tile + 1, end, columns, R, C)
        if BEHIND:
            values += missing
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
def _sum_biases(
    b0, b1, b2, b3, b4, weight, bias, behind, last, columns: tl.constexpr, COUNT: tl.constexpr,
    R: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """Row i of `behind` = b_0 + ... + b_i, the last sum left out, and `last` = bias + weight (b_0 + ...)."""
    row = tl.program_id(0) * R + tl.arange(0, R)
    inside = row < columns
    total = tl.load(b0 + row, inside, 0.0).to(tl.float32)
    tl.store(behind + row, total, inside)
    if COUNT > 2:
        total += tl.load(b1 + row, inside, 0.0).to(tl.float32)
        tl.store(behind + columns + row, total, inside)
    if COUNT > 3:
        total += tl.load(b2 + row, inside, 0.0).to(tl.float32)
        tl.store(behind + 2 * columns + row, total, inside)
    if COUNT > 4:
        total += tl.load(b3 + row, inside, 0.0).to(tl.float32)
        tl.store(behind + 3 * columns + row, total, inside)
    product = tl.load(bias + row, inside, 0.0).to(tl.float32)
    for start in range(0, columns, C):
        column = start + tl.arange(0, C)
        known = column < columns
        whole = tl.load(b0 + column, known, 0.0).to(tl.float32) + tl.load(b1 + column, known, 0.0).to(tl.float32)
        if COUNT > 2:
            whole += tl.load(b2 + column, known, 0.0).to(tl.float32)
        if COUNT > 3:
            whole += tl.load(b3 + column, known, 0.0).to(tl.float32)
        if COUNT > 4:
            whole += tl.load(b4 + column, known, 0.0).to(tl.float32)
        at = weight + row[:, None] * columns + column[None, :]
        values = tl.load(at, inside[:, None] & known[None, :], 0.0).to(tl.float32)
        product += tl.sum(values * whole[None, :], 1)
    tl.store(last + row, product, inside)


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


def norm_rows(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, behind: Tensor | None, positions: Tensor | None
) -> Tensor:
    """LayerNorm of each row of x + behind, plus the position of the row's frame.

    Args:
        x: [rows, c], frame after frame of each pixel.
        behind: float32 [c], what each row is still without; None for nothing.
        positions: [f, c]; None for none.
    """
    x = x.contiguous()
    rows, columns = x.shape
    out = torch.empty_like(x)
    width = max(16, next_power_of_2(columns))
    height = max(1, NUMBERS // width)
    # Several tiles of one program share its reading of the parameters, as long as every multiprocessor has programs.
    count = max(1, min(8, next_power_of_2(rows // (height * ENOUGH_PROGRAMS) + 1) // 2))
    with torch.cuda.device_of(x):
        _norm_rows[(cdiv(rows, height * count),)](
            x, weight, bias, x if behind is None else behind, x if positions is None else positions, out, rows, columns,
            1 if positions is None else len(positions), eps,
            BEHIND=behind is not None, PLACED=positions is not None, TILES=count, R=height, C=width,
            # Rows of 1280 numbers are one warp's too.
            num_warps=max(1, width // (2 * NUMBERS)),
        )  # fmt: skip
    return out


def sum_biases(biases: list[Tensor], weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """What a stream without its biases [c] is behind the one with them, and what its last layer's bias then is.

    Returns:
        float32 [len - 1, c], in row i the sum of the first i + 1 biases; float32 [c], bias + weight (sum of all).

    Raises:
        ValueError: fewer than two, or more than the kernel has arguments for.
    """
    if not 2 <= len(biases) <= MAX_BIASES:
        raise ValueError(f"{len(biases)} biases were given; give 2 to {MAX_BIASES}.")
    columns, weight = len(bias), weight.contiguous()
    behind, last = (bias.new_empty(shape, dtype=torch.float32) for shape in ((len(biases) - 1, columns), (columns,)))
    padded = biases + biases[:1] * (MAX_BIASES - len(biases))
    with torch.cuda.device_of(bias):
        _sum_biases[(cdiv(columns, 8),)](
            *padded, weight, bias, behind, last, columns, COUNT=len(biases), R=8, C=256, num_warps=4
        )
    return behind, last


def gate_product(product: Tensor) -> Tensor:
    """value * gelu(gate) of rows [value, gate]: [n, 2 c] -> [n, c]."""
    product = product.contiguous()
    rows, columns = len(product), product.shape[1] // 2
    out = product.new_empty(rows, columns)
    with torch.cuda.device_of(product):
        grid = (cdiv(rows, 8) * cdiv(columns, 256),)
        _gate[grid](product, out, rows, columns, R=8, C=256, num_warps=4)
    return out
