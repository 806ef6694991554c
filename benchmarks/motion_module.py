"""What a motion module costs at each level of Stable Diffusion 1.5, by PyTorch's layers and by this pack's kernels.

python benchmarks/motion_module.py --device cuda [--only modules] [--dtype bf16] [--frames 16] [--size 512]

Weights and inputs are random. On a GPU ten calls are recorded as one graph, so that no launch is in a time; the number
is the median over replays, and beside it stands the processor's time to launch a call without a graph. First come the
two ceilings: a large matrix product, and a large copy, counting bytes read and written. Then the module as a whole at
every level and the sum over a UNet's; then what else could be, alone and within the module. Every line is printed as it
is measured.
"""

import argparse
import contextlib
import copy
import functools
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from benchmarks.graph_clock import Bench, Line
from followclick_core.models import (
    frames_kernel,
    gated_linear_kernel,
    layout_kernels,
    motion_ops,
    temporal_attention,
    temporal_kernel,
    text_attention,
)
from followclick_core.models.motion_module import MotionModule, frame_positions
from followclick_core.models.temporal_attention import attend_with_sdpa

CLIPS, HEADS, TEXT_TOKENS, TEXT_WIDTH = 2, 8, 77, 768
# Channels, the picture's shrinkage besides the VAE's 8, and a UNet's modules, AnimateDiff v2's middle one included.
LEVELS = ((320, 1, 5), (640, 2, 5), (1280, 4, 5), (1280, 8, 6))


def randomised(channels: int, context_dim: int | None, bench: Bench) -> MotionModule:
    module = MotionModule(channels, HEADS, context_dim)
    for name, parameter in module.named_parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
        else:
            torch.nn.init.normal_(parameter, mean=float("norm" in name and "weight" in name), std=0.1)
    return module.to(bench.device, bench.dtype).eval().requires_grad_(False)


@contextlib.contextmanager
def constants(**values: object) -> Iterator[None]:
    """Other values of the constants by which the pack chooses."""
    owners = {name: motion_ops if hasattr(motion_ops, name) else text_attention for name in values}
    before = {name: getattr(owner, name) for name, owner in owners.items()}
    for name, owner in owners.items():
        setattr(owner, name, values[name])
    try:
        yield
    finally:
        for name, owner in owners.items():
            setattr(owner, name, before[name])


def eager(module: MotionModule, x: Tensor, frames: int, text: object) -> Tensor:
    """A module by PyTorch's layers; of the kernels only that of temporal attention."""
    with constants(run_fused=lambda *_: False):
        return module(x, frames, text)  # type: ignore[arg-type]


def fused(module: MotionModule, x: Tensor, frames: int, text: object) -> Tensor:
    return module.temporal_transformer.forward_fused(x, frames, text)  # type: ignore[arg-type]


def relative(ours: Tensor, reference: Tensor) -> float:
    return float((ours.float() - reference.float()).norm() / reference.float().norm())


class Level:
    """One level's input, modules and names."""

    def __init__(self, bench: Bench, channels: int, side: int, frames: int):
        self.bench, self.frames, self.channels = bench, frames, channels
        self.x = bench.random(CLIPS * frames, channels, side, side)
        self.layouts = {"planes": self.x, "channels last": self.x.to(memory_format=torch.channels_last)}
        self.tokens, self.unit = CLIPS * frames * side * side, self.x.nbytes
        self.modules = {
            "animatediff": (randomised(channels, None, bench), None),
            "followclick": self._with_text(randomised(channels, TEXT_WIDTH, bench)),
        }
        self.title = (
            f"{channels} channels, {side} x {side}, {self.tokens} tokens; a tensor has {self.unit / 1e6:.1f} MB"
        )

    def _with_text(self, module: MotionModule) -> tuple[MotionModule, object]:
        return module, module.project_text(self.bench.random(CLIPS, TEXT_TOKENS, TEXT_WIDTH))

    def line(self, kind: str, layout: str, way: str, run: Callable) -> Line:
        module, text = self.modules[kind]
        call = functools.partial(run, module, self.layouts[layout], self.frames, text)
        flops = module_flops(self.tokens, self.channels, self.frames, text is not None)
        return Line(f"{kind}, {layout}, {way}", call, 47 + 9 * (text is not None), flops)

    def lines(self) -> list[Line]:
        ways = {"eager": eager, "fused": fused}
        return [
            self.line(kind, layout, way, run)
            for kind in self.modules
            for layout in self.layouts
            for way, run in ways.items()
        ]


def measure_modules(bench: Bench, levels: list[tuple[Level, int]]) -> None:
    """Both ways of all levels, and their sums over a UNet."""
    # One level's widths and layouts share kernels: of each level the longest way in each layout.
    bench.prepare([line.run for level, _ in levels for line in (level.lines()[5], level.lines()[7])])
    totals: dict[str, float] = {}
    for level, modules in levels:
        print(f"\n{level.title}", flush=True)
        for line in level.lines():
            totals[line.name] = totals.get(line.name, 0.0) + modules * bench.line(line, level.unit)
    print("\nsum over all motion modules of SD1.5:")
    for name in [name for name in totals if name.endswith("eager")]:
        old, new = totals[name], totals[name.replace("eager", "fused")]
        print(f"    {name.removesuffix(' eager'):<28} old {old:8.2f} ms   new {new:8.2f} ms   {old / new:.2f} x")
    print(json.dumps({name: round(taken, 3) for name, taken in totals.items()}), flush=True)


def ways_lines(level: Level) -> list[Line]:
    """The module with other choices than it makes by itself."""

    def under(values: dict[str, object]) -> Callable:
        def run(*arguments: object) -> Tensor:
            with constants(**values):
                return fused(*arguments)  # type: ignore[arg-type]

        return run

    kinds: list[tuple[str, str, dict[str, object]]] = [
        ("animatediff", "as it is", {}),
        ("animatediff", "cuBLAS and gate", {"gates_work": lambda *_: False}),
        ("animatediff", "layout back after proj_out", {"MAX_ADDED_WIDTH": 0}),
        ("followclick", "as it is", {}),
        ("followclick", "text by PyTorch", {"MAX_TOKENS": 0}),
    ]
    return [level.line(kind, "planes", name, under(values)) for kind, name, values in kinds]


def check(level: Level) -> None:
    """Errors against float32, on a few pixels."""
    (module, text), x, frames = level.modules["followclick"], level.x, level.frames
    compared = motion_ops.comparisons(x.device, x.dtype, x.shape[1], frames)
    compared += temporal_attention.comparisons(x.device, x.dtype, x.shape[1] // HEADS, False, frames, HEADS)
    if x.dtype != torch.float32:
        compared += text_attention.comparisons(x.device, x.dtype, x.shape[1] // HEADS, TEXT_TOKENS)
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
        f"runs fused by itself: {motion_ops.run_fused(x, (module.temporal_transformer.proj_in.weight,), HEADS)}",
        flush=True,
    )


def module_flops(tokens: int, channels: int, frames: int, with_text: bool) -> float:
    linear = 2 * tokens * channels**2 * (22 + 2 * with_text)
    return linear + 2 * 4 * tokens * frames * channels + with_text * 4 * tokens * TEXT_TOKENS * channels


def layout_lines(level: Level) -> list[Line]:
    own, frames, side = level.modules["animatediff"][0].temporal_transformer, level.frames, level.x.shape[-1]
    norm, weights, last = own.norm, (own.norm.weight, own.norm.bias), (own.proj_out.weight, own.proj_out.bias.float())
    pixels, square = level.bench.random(level.tokens // frames, frames, level.channels), square_flops(level)

    def after_cublas(x: Tensor) -> Tensor:
        return motion_ops.add_to_frames(F.linear(pixels, last[0]), last[1], x)

    kinds: list[tuple[str, Callable, int, float]] = [
        ("statistics", lambda x: layout_kernels.group_statistics(x, 32, 1e-6), 1, 0),
        ("norm and layout", lambda x: motion_ops.normed_pixels(x, *weights, frames, 32, 1e-6), 3, 0),
        ("  by PyTorch", lambda x: rearrange(norm(x), "(b f) c h w -> (b h w) f c", f=frames).contiguous(), 3, 0),
        ("layout back and sum", lambda x: motion_ops.add_to_frames(pixels, last[1], x), 3, 0),
        ("  by PyTorch", lambda x: x + rearrange(pixels, "(b h w) f c -> (b f) c h w", h=side, w=side), 3, 0),
        ("proj_out, layout back and sum", after_cublas, 3, square),
    ]
    for tiles in frame_tiles(level.bench.dtype):
        run = functools.partial(frames_kernel.add_linear_to_frames, pixels, *last, tiles=tiles)
        kinds.append((f"  in one {tuple(tiles)}", run, 3, square))
    return [
        Line(f"{name}, {layout}", functools.partial(run, x), passes, flops)
        for layout, x in level.layouts.items()
        for name, run, passes, flops in kinds
    ]


def frame_tiles(dtype: torch.dtype) -> list[frames_kernel.Tiles]:
    return [] if dtype == torch.float32 else [frames_kernel.Tiles(), frames_kernel.WIDE_TILES]


def square_flops(level: Level) -> float:
    """Of a linear layer as wide as the level."""
    return 2.0 * level.tokens * level.channels**2


def row_lines(level: Level) -> list[Line]:
    bench, channels = level.bench, level.channels
    own = level.modules["animatediff"][0].temporal_transformer
    norm = own.transformer_blocks[0].norms[0]
    rows = bench.random(level.tokens, channels)
    positions = frame_positions(level.frames, channels, rows.device, rows.dtype)
    behind = torch.zeros(channels, device=rows.device)
    run = functools.partial(motion_ops.norm_rows, rows, norm.weight, norm.bias, 1e-5, behind, positions)
    product = bench.random(level.tokens, 8 * channels)
    pixels, biases = rows.view(-1, level.frames, channels), [norm.bias, norm.weight, norm.bias, norm.weight]
    return [
        Line("LayerNorm, positions", run, 2),
        Line("  by PyTorch", lambda: norm(pixels) + positions, 2),
        Line("gate", lambda: motion_ops.gate_product(product), 12),
        Line("biases", lambda: motion_ops.sum_biases(biases, own.proj_out.weight, norm.bias), 0),
    ]


def attention_lines(level: Level) -> list[Line]:
    packed = level.bench.random(level.tokens // level.frames, level.frames, 3 * level.channels)
    flops = 4.0 * level.tokens * level.frames * level.channels
    _, text = level.modules["followclick"]
    pixels = level.bench.random(level.tokens // level.frames, level.frames, level.channels)
    wide = 4.0 * level.tokens * TEXT_TOKENS * level.channels
    return [
        Line("over time", lambda: temporal_kernel.attend(packed, HEADS), 4, flops),
        Line("  by PyTorch", lambda: attend_with_sdpa(packed, HEADS), 4, flops),
        Line("to the text, by PyTorch", lambda: text_attention.attend_with_sdpa(pixels, *text), 2, wide),  # type: ignore[misc]
        Line("  by a kernel", lambda: motion_ops.attend_text(pixels, *text), 2, wide),  # type: ignore[misc]
    ]


def product_lines(level: Level) -> list[Line]:
    own = level.modules["animatediff"][0].temporal_transformer
    attention, block = own.transformer_blocks[0].attention_blocks[0], own.transformer_blocks[0]
    channels, square = level.channels, square_flops(level)
    rows, stream = (level.bench.random(level.tokens, channels) for _ in range(2))
    hidden, last = level.bench.random(level.tokens, 4 * channels), block.ff.net[2].weight.t()
    packed, to_out = attention.packed_weight(), attention.to_out[0].weight.t()
    weights = [attention.to_q.weight, attention.to_k.weight, attention.to_v.weight]
    wide = block.ff.net[0].proj
    return [
        Line("weights of q, k, v put together", attention.packed_weight, 0),
        Line("proj_in", lambda: F.linear(rows, own.proj_in.weight), 2, square),
        Line("  with bias", lambda: own.proj_in(rows), 2, square),
        Line("q, k, v", lambda: F.linear(rows, packed), 4, 3 * square),
        Line("  and their weights put together", lambda: F.linear(rows, attention.packed_weight()), 4, 3 * square),
        Line("  as three products into one", lambda: three_products(rows, weights), 4, 3 * square),
        Line("to_out, added in place", lambda: stream.addmm_(rows, to_out), 3, square),
        Line("  with bias, added by PyTorch", lambda: stream + attention.to_out(rows), 3, square),
        Line("ff in", lambda: F.linear(rows, wide.weight, wide.bias), 9, 8 * square),
        Line("ff out, added in place", lambda: stream.addmm_(hidden, last), 6, 4 * square),
    ]


def three_products(rows: Tensor, weights: list[Tensor]) -> Tensor:
    """Queries, keys and values written side by side by cuBLAS, so that their weights need not be."""
    out = rows.new_empty(len(rows), sum(len(weight) for weight in weights))
    for weight, part in zip(weights, out.split([len(weight) for weight in weights], dim=1), strict=True):
        torch.mm(rows, weight.t(), out=part)
    return out


def gated_lines(level: Level) -> list[Line]:
    wide = level.modules["animatediff"][0].temporal_transformer.transformer_blocks[0].ff.net[0].proj
    rows, flops, parameters = (
        level.bench.random(level.tokens, level.channels),
        8 * square_flops(level),
        wide.parameters(),
    )
    weight, bias = parameters

    def after_cublas() -> Tensor:
        return motion_ops.gate_product(F.linear(rows, weight, bias))

    lines = [Line("ff in and gate, cuBLAS and kernel", after_cublas, 5, flops)]
    if level.bench.dtype != torch.float32:
        for stages in (3, 4):
            tiles = gated_linear_kernel.Tiles(stages=stages)
            run = functools.partial(gated_linear_kernel.gated_linear, rows, weight, bias, tiles)
            lines.append(Line(f"  one kernel {tuple(tiles)}", run, 5, flops))
    return lines


PARTS: dict[str, tuple[str, Callable[[Level], list[Line]]]] = {
    "gated": ("ff in and gate", gated_lines),
    "layout": ("GroupNorm and layout", layout_lines),
    "rows": ("rows", row_lines),
    "ways": ("the module in other ways", ways_lines),
    "products": ("matrix products", product_lines),
    "attention": ("attention", attention_lines),
}


def main() -> None:
    arguments = _arguments()
    dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[arguments.dtype]
    bench = Bench(arguments.device, dtype, arguments.seconds, arguments.threads)
    torch.manual_seed(0)
    started = time.perf_counter()
    with torch.inference_mode():
        print(f"{_name(bench)}, PyTorch {torch.__version__}, {arguments.dtype}, {CLIPS} x {arguments.frames} frames")
        bench.measure_ceilings()
        levels = [
            (Level(bench, channels, arguments.size // 8 // shrinkage, arguments.frames), modules)
            for channels, shrinkage, modules in LEVELS[: arguments.levels]
        ]
        if "modules" in arguments.only:
            measure_modules(bench, levels)
        for part in arguments.only:
            print(f"\n{part}: {time.perf_counter() - started:.0f} s so far", flush=True)
            for level, _ in levels:
                if part == "errors":
                    check(level)
                elif part in PARTS:
                    title, make = PARTS[part]
                    lines = make(level)
                    if part != "ways":  # which change what all threads see
                        bench.prepare([line.run for line in lines])
                    bench.lines(f"{title}, {level.title}", lines, level.unit)
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
    parser.add_argument("--seconds", type=float, default=0.03, help="to measure each part for")
    parser.add_argument("--threads", type=int, default=8, help="that build kernels at once")
    choices = ("modules", *PARTS, "errors")
    parser.add_argument("--only", nargs="+", choices=choices, default=choices, help="parts to measure, in this order")
    return parser.parse_args()


if __name__ == "__main__":
    main()
