"""What a motion module costs at each level of Stable Diffusion 1.5, by PyTorch's layers and by this pack's kernels.

python benchmarks/motion_module.py --device cuda [--dtype bf16] [--frames 16] [--size 512]

Weights and inputs are random. Every number is the median of CUDA events' times after a warm-up; the inputs of a level
are larger than the cache except at the lowest. First come the two ceilings: a large matrix product, and a large copy,
counting bytes read and written. Then for each level the module as a whole, each of its parts alone with what it reaches
of the ceilings, other tiles of the kernels, and the errors against float32. It ends with the sum over a whole UNet.
"""

import argparse
import copy
import functools
import itertools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from followclick_core.models import gated_linear_kernel, layout_kernels, motion_ops, row_kernels, temporal_kernel
from followclick_core.models.motion_module import MotionModule, frame_positions
from followclick_core.models.temporal_attention import attend_with_sdpa

CLIPS, HEADS, TEXT_TOKENS, TEXT_WIDTH = 2, 8, 77, 768
# Channels, the picture's shrinkage besides the VAE's 8, and a UNet's modules, AnimateDiff v2's middle one included.
LEVELS = ((320, 1, 5), (640, 2, 5), (1280, 4, 5), (1280, 8, 6))


class Bench:
    """Times functions on one device, and says what share of its ceilings they reach."""

    def __init__(self, device: str, dtype: torch.dtype, seconds: float):
        self.device, self.dtype, self.seconds = torch.device(device), dtype, seconds
        self.cuda = self.device.type == "cuda"
        self.flops, self.bandwidth = 1.0, 1.0

    def milliseconds(self, function: Callable[[], object]) -> float:
        for _ in range(2):
            function()
        times: list[float] = []
        self._wait()
        end = time.perf_counter() + self.seconds
        while len(times) < 5 or (time.perf_counter() < end and len(times) < 200):
            times += self._burst(function)
        return statistics.median(times)

    def _burst(self, function: Callable[[], object]) -> list[float]:
        """Ten calls in a row without waiting between them, so that launching them costs nothing."""
        if not self.cuda:
            start = time.perf_counter()
            function()
            return [1000 * (time.perf_counter() - start)]
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(11)]
        marks[0].record()
        for mark in marks[1:]:
            function()
            mark.record()
        self._wait()
        return [before.elapsed_time(after) for before, after in itertools.pairwise(marks)]

    def _wait(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()

    def measure_ceilings(self) -> None:
        side = 8192 if self.cuda else 256
        a, b = (self.random(side, side) for _ in range(2))
        self.flops = 2 * side**3 / self.milliseconds(lambda: a @ b) * 1e3
        source = self.random(side * side * (8 if self.cuda else 1))
        target = torch.empty_like(source)
        self.bandwidth = 2 * source.nbytes / self.milliseconds(lambda: target.copy_(source)) * 1e3
        print(f"ceilings: {self.flops / 1e12:.0f} TFLOP/s, {self.bandwidth / 1e12:.2f} TB/s", flush=True)

    def random(self, *shape: int) -> Tensor:
        return torch.randn(shape, device=self.device, dtype=self.dtype)

    def line(self, name: str, function: Callable[[], object], passes: float, unit: int, flops: float = 0.0) -> float:
        """Time a part and print it.

        Args:
            passes: Bytes that it must move, in tensors of `unit` bytes.
        """
        try:
            taken = self.milliseconds(function)
        except Exception as error:  # other tiles may not fit this device, the rest is wanted all the same
            print(f"    {name:<44} failed: {str(error).splitlines()[0][:80]}", flush=True)
            return float("inf")
        floor = 1e3 * max(passes * unit / self.bandwidth, flops / self.flops)
        rates = f"{passes * unit / taken / 1e9:6.2f} TB/s" + (f" {flops / taken / 1e9:6.0f} TFLOP/s" if flops else "")
        print(f"    {name:<44}{taken:9.4f} ms  floor {floor:8.4f}  {100 * floor / taken:4.0f} %  {rates}", flush=True)
        return taken


def randomised(channels: int, context_dim: int | None, bench: Bench) -> MotionModule:
    module = MotionModule(channels, HEADS, context_dim)
    for name, parameter in module.named_parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
        else:
            torch.nn.init.normal_(parameter, mean=float("norm" in name and "weight" in name), std=0.1)
    return module.to(bench.device, bench.dtype).eval().requires_grad_(False)


def eager(module: MotionModule, x: Tensor, frames: int, text: object) -> Tensor:
    """A module by PyTorch's layers; of the kernels only that of temporal attention."""
    runs_fused = motion_ops.run_fused
    motion_ops.run_fused = lambda *_: False  # type: ignore[assignment]
    try:
        return module(x, frames, text)  # type: ignore[arg-type]
    finally:
        motion_ops.run_fused = runs_fused


def fused(module: MotionModule, x: Tensor, frames: int, text: object) -> Tensor:
    return module.temporal_transformer.forward_fused(x, frames, text)  # type: ignore[arg-type]


def relative(ours: Tensor, reference: Tensor) -> float:
    return float((ours.float() - reference.float()).norm() / reference.float().norm())


def level(bench: Bench, channels: int, side: int, frames: int) -> dict[str, float]:
    """Both ways' milliseconds of one level, with and without a motion text; prints the parts."""
    x = bench.random(CLIPS * frames, channels, side, side)
    tokens = CLIPS * frames * side * side
    print(f"\n{channels} channels, {side} x {side}, {tokens} tokens; a tensor has {x.nbytes / 1e6:.1f} MB", flush=True)
    taken = {}
    for kind, context_dim in (("animatediff", None), ("followclick", TEXT_WIDTH)):
        module = randomised(channels, context_dim, bench)
        text = module.project_text(bench.random(CLIPS, TEXT_TOKENS, TEXT_WIDTH))
        flops = module_flops(tokens, channels, frames, context_dim is not None)
        passes = 49 + 9 * (context_dim is not None)
        for layout, given in (("planes", x), ("channels last", x.to(memory_format=torch.channels_last))):
            for way, run in (("eager", eager), ("fused", fused)):
                call = functools.partial(run, module, given, frames, text)
                name = f"{kind}, {layout}, {way}"
                taken[name] = bench.line(name, call, passes, x.nbytes, flops)
    check(module, x, frames, text)
    parts(bench, module, x, frames)
    return taken


def check(module: MotionModule, x: Tensor, frames: int, text: object) -> None:
    """Errors against float32, on a few pixels."""
    compared = motion_ops.comparisons(x.device, x.dtype, x.shape[1], HEADS, frames)
    errors = {name: relative(ours, theirs) for name, ours, theirs in compared}
    print(f"    operators: {', '.join(f'{name} {error:.1e}' for name, error in errors.items())}")
    x = x[:, :, :4, :4].contiguous()
    reference = copy.deepcopy(module).float()
    wide = tuple(t.float() for t in text) if isinstance(text, tuple) else text
    # What a module adds is what it computes; the input would hide its error.
    truth = eager(reference, x.float(), frames, wide) - x.float()
    ours, old = fused(module, x, frames, text), eager(module, x, frames, text)
    print(
        f"    error against float32: fused {relative(ours - x, truth):.2e}, eager {relative(old - x, truth):.2e}; "
        f"runs fused by itself: {motion_ops.run_fused(x, module.temporal_transformer.proj_in.weight, HEADS)}",
        flush=True,
    )


def module_flops(tokens: int, channels: int, frames: int, with_text: bool) -> float:
    linear = 2 * tokens * channels**2 * (22 + 2 * with_text)
    return linear + 2 * 4 * tokens * frames * channels + with_text * 4 * tokens * TEXT_TOKENS * channels


def parts(bench: Bench, module: MotionModule, x: Tensor, frames: int) -> None:
    """Every part alone, by kernels and by PyTorch where there are both."""
    own = module.temporal_transformer
    pixels = motion_ops.normed_pixels(x, own.norm.weight, own.norm.bias, frames, 32, 1e-6)
    layout_parts(bench, module, x, pixels)
    row_parts(bench, module, pixels)
    attention_parts(bench, module, pixels)
    product_parts(bench, module, pixels.flatten(0, 1))


def layout_parts(bench: Bench, module: MotionModule, x: Tensor, pixels: Tensor) -> None:
    print("   GroupNorm and layout")
    norm, frames, side, unit = module.temporal_transformer.norm, pixels.shape[1], x.shape[-1], x.nbytes
    weights = norm.weight, norm.bias
    for name, given in (("planes", x), ("channels last", x.to(memory_format=torch.channels_last))):
        lines: list[tuple[str, Callable, int]] = [
            ("statistics", lambda g: layout_kernels.group_statistics(g, 32, 1e-6), 1),
            ("norm and layout", lambda g: motion_ops.normed_pixels(g, *weights, frames, 32, 1e-6), 3),
            ("  by PyTorch", lambda g: rearrange(norm(g), "(b f) c h w -> (b h w) f c", f=frames).contiguous(), 3),
            ("layout back and sum", lambda g: motion_ops.add_to_frames(pixels, g), 3),
            ("  by PyTorch", lambda g: g + rearrange(pixels, "(b h w) f c -> (b f) c h w", h=side, w=side), 3),
        ]
        for line, function, passes in lines:
            bench.line(f"{line}, {name}", functools.partial(function, given), passes, unit)


def row_parts(bench: Bench, module: MotionModule, pixels: Tensor) -> None:
    print("   rows")
    (block,), rows, unit = module.temporal_transformer.transformer_blocks, pixels.flatten(0, 1), pixels.nbytes
    norm, channels = block.norms[0], pixels.shape[2]
    positions = frame_positions(pixels.shape[1], channels, pixels.device, pixels.dtype)
    ahead = torch.zeros(channels, device=pixels.device)
    first, rest = row_kernels.pieces(channels, 16)
    tiles = [row_kernels.RowTiles(first, rest, 4096, 8), row_kernels.RowTiles(first, rest, 2048, 4)]
    for numbers, warps in ((4096, 4), (4096, 8), (2048, 4), (2048, 2)):
        tiles.append(row_kernels.RowTiles(2 * first, 0, numbers, warps))
    for each in tiles:
        run = functools.partial(row_kernels.norm_rows, rows, norm.weight, norm.bias, 1e-5, ahead, positions, each)
        bench.line(f"LayerNorm, positions {tuple(each)}", run, 2, unit)
    bench.line("  by PyTorch", lambda: norm(pixels) + positions, 2, unit)
    product = bench.random(len(rows), 8 * channels)
    bench.line("gate", lambda: motion_ops.gate_product(product), 12, unit)
    biases = [norm.bias, norm.weight, norm.bias, norm.weight]
    bench.line("biases", lambda: motion_ops.sum_biases(biases), 0, unit)


def attention_parts(bench: Bench, module: MotionModule, pixels: Tensor) -> None:
    print("   attention")
    (pixel_count, frames, channels), unit = pixels.shape, pixels.nbytes
    tokens = pixel_count * frames
    packed, flops = bench.random(pixel_count, frames, 3 * channels), 4 * tokens * frames * channels
    for together in (1, 2, 4, 8):
        run = functools.partial(temporal_kernel.attend, packed, HEADS, together)
        bench.line(f"over time, {together} heads a program", run, 4, unit, flops)
    bench.line("  by PyTorch", lambda: attend_with_sdpa(packed, HEADS), 4, unit, flops)
    text = module.project_text(bench.random(CLIPS, TEXT_TOKENS, TEXT_WIDTH))
    if text is not None:
        flops = 4 * tokens * TEXT_TOKENS * channels
        q = rearrange(pixels, "(b n) f (heads d) -> b heads (n f) d", b=CLIPS, heads=HEADS)
        bench.line("to the text, by PyTorch", lambda: F.scaled_dot_product_attention(q, *text), 2, unit, flops)


def product_parts(bench: Bench, module: MotionModule, rows: Tensor) -> None:
    print("   matrix products")
    own, (block,) = module.temporal_transformer, module.temporal_transformer.transformer_blocks
    attention, (first, _, last) = block.attention_blocks[0], block.ff.net
    stream, unit, square = rows.clone(), rows.nbytes, 2 * len(rows) * rows.shape[1] ** 2
    weights = [attention.to_q.weight, attention.to_k.weight, attention.to_v.weight]
    packed, to_out, wide = torch.cat(weights), attention.to_out[0].weight.t(), (first.proj.weight, first.proj.bias)
    hidden = bench.random(len(rows), 4 * rows.shape[1])
    lines: list[tuple[str, Callable[[], object], int, int]] = [
        ("weights of q, k, v put together", lambda: torch.cat(weights), 0, 0),
        ("proj_in or proj_out, with bias", lambda: own.proj_out(rows), 2, 1),
        ("q, k, v", lambda: F.linear(rows, packed), 4, 3),
        ("to_out, added in place", lambda: stream.addmm_(rows, to_out), 3, 1),
        ("  with bias, added by PyTorch", lambda: stream + attention.to_out(rows), 3, 1),
        ("ff in", lambda: F.linear(rows, *wide), 9, 8),
        ("ff in and gate, cuBLAS and kernel", lambda: motion_ops.gate_product(F.linear(rows, *wide)), 5, 8),
        ("ff out, added in place", lambda: stream.addmm_(hidden, last.weight.t()), 6, 4),
    ]
    for tiles in gated_tiles(bench.dtype):
        run = functools.partial(gated_linear_kernel.gated_linear, rows, *wide, tiles)
        lines.append((f"ff in and gate, one kernel {tuple(tiles)}", run, 5, 8))
    for name, function, passes, squares in lines:
        bench.line(name, function, passes, unit, squares * square)


def gated_tiles(dtype: torch.dtype) -> list[gated_linear_kernel.Tiles]:
    if dtype == torch.float32:
        return [gated_linear_kernel.WIDE_TILES]
    Tiles = gated_linear_kernel.Tiles
    return [
        Tiles(),
        Tiles(stages=3),
        Tiles(128, 64, 64, warps=4, stages=3),
        Tiles(128, 64, 64, warps=8, stages=3),
        Tiles(256, 64, 64, warps=8, stages=3),
    ]


def main() -> None:
    arguments = _arguments()
    dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[arguments.dtype]
    bench = Bench(arguments.device, dtype, arguments.seconds)
    torch.manual_seed(0)
    started = time.perf_counter()
    with torch.inference_mode():
        print(f"{_name(bench)}, PyTorch {torch.__version__}, {arguments.dtype}, {CLIPS} x {arguments.frames} frames")
        bench.measure_ceilings()
        totals: dict[str, float] = {}
        for channels, shrinkage, modules in LEVELS[: arguments.levels]:
            for name, taken in level(bench, channels, arguments.size // 8 // shrinkage, arguments.frames).items():
                totals[name] = totals.get(name, 0.0) + modules * taken
    print("\nsum over all motion modules of SD1.5:")
    for name in [name for name in totals if name.endswith("eager")]:
        old, new = totals[name], totals[name.replace("eager", "fused")]
        print(f"    {name.removesuffix(' eager'):<28} old {old:8.2f} ms   new {new:8.2f} ms   {old / new:.2f} x")
    print(json.dumps({name: round(taken, 3) for name, taken in totals.items()}))
    print(f"{time.perf_counter() - started:.0f} s")


def _name(bench: Bench) -> str:
    if not bench.cuda:
        return f"CPU, {torch.get_num_threads()} threads"
    driver = subprocess.run(
        ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"], capture_output=True, text=True
    )
    return f"{torch.cuda.get_device_name()}, driver {driver.stdout.strip()}"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: with TRITON_INTERPRET=1, tiny")
    parser.add_argument("--dtype", choices=("fp32", "fp16", "bf16"), default="bf16")
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--size", type=int, default=512, help="of the clip in pixels, a multiple of 64")
    parser.add_argument("--levels", type=int, default=len(LEVELS), help="how many, from the largest picture down")
    parser.add_argument("--seconds", type=float, default=0.06, help="to measure each part for")
    return parser.parse_args()


if __name__ == "__main__":
    main()
