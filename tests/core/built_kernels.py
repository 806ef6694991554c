"""A program: what a GPU's programs of the kernels keep outside registers; prints bytes by kernel and size.

Made by the compiler alone, without a GPU, for one of compute capability 9.0. A process of its own, as others have
Triton interpret.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from followclick_core.models import frames_kernel, gated_linear_kernel, row_kernels, temporal_kernel, text_kernel

SHARED = 227 * 1024  # bytes that one program can have on such a GPU


def spilled(kernel: triton.runtime.JITFunction, types: dict[str, str], constants: dict, **options: int) -> int:
    """Bytes that a kernel writes to memory for want of registers; its pointers and integers are multiples of 16.

    `types` and `constants` together are the kernel's arguments.
    """
    names = [name for name in kernel.arg_names if name in types]
    aligned = {(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in names if types[name][0] in "*i"}
    signature = {name: types.get(name, "constexpr") for name in kernel.arg_names}
    source = ASTSource(kernel, signature, constants, aligned)
    built = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    assert built.metadata.shared <= SHARED, (kernel, constants, built.metadata.shared)
    with tempfile.TemporaryDirectory() as folder:
        ptx = Path(folder) / "kernel.ptx"
        ptx.write_text(built.asm["ptx"])
        assembler = Path(triton.__file__).parent / "backends/nvidia/bin/ptxas"
        command = [assembler, "-v", "--gpu-name=sm_90a", ptx, "-o", Path(folder) / "kernel"]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    return int(re.search(r"(\d+) bytes spill stores", told)[1])  # type: ignore[index]


def attention(frames: int, width: int) -> int:
    columns, rest = temporal_kernel.pieces(width)
    constants = {"heads": 8, "head_dim": width, "F": frames, "D": columns, "REST": rest}
    types = {"qkv": "*fp32", "out": "*fp32", "scale": "fp32", "frames": "i32"}
    warps = temporal_kernel.attention_warps(torch.float32, frames, columns + rest)
    return spilled(temporal_kernel._forward, types, constants, num_warps=warps)


def gated_linear(channels: int) -> int:
    tiles = gated_linear_kernel.Tiles()
    types = {
        "x": f"tensordesc<bf16[{tiles.rows}, {tiles.depth}]>",
        "weight": f"tensordesc<bf16[2, {tiles.columns}, {tiles.depth}]>",
        "bias": "*bf16",
        "out": f"tensordesc<bf16[{tiles.rows}, {tiles.columns}]>",
        "rows": "i32",
        "columns": "i32",
    }
    sizes = {"M": tiles.rows, "N": tiles.columns, "K": tiles.depth, "GROUP": tiles.group}
    constants = {"depth": channels, "STEPS": 20, **sizes}
    options = {"num_warps": tiles.warps, "num_stages": tiles.stages}
    return spilled(gated_linear_kernel._gated_linear, types, constants, **options)


def add_linear(channels: int, tiles: frames_kernel.Tiles, last: bool) -> int:
    types = dict.fromkeys(("h", "weight", "x", "out"), "*bf16") | {"bias": "*fp32"}
    types |= dict.fromkeys(("frames", "pixels", "channels"), "i32")
    sizes = {"P": tiles.pixels, "C": tiles.channels, "K": tiles.depth}
    constants = {"depth": channels, "LAST": last, "EVEN": True, **sizes}
    return spilled(frames_kernel._add_linear, types, constants, num_warps=tiles.warps, num_stages=tiles.stages)


def norm_rows(channels: int, dtype: str) -> int:
    types = dict.fromkeys(("x", "weight", "bias", "positions", "out"), f"*{dtype}") | {"behind": "*fp32"}
    types |= {"rows": "i32", "frames": "i32", "eps": "fp32"}
    width = triton.next_power_of_2(channels)
    constants = {"columns": channels, "BEHIND": True, "PLACED": True, "TILES": 8, "C": width}
    return spilled(row_kernels._norm_rows, types, {**constants, "R": max(1, row_kernels.NUMBERS // width)}, num_warps=1)


def text_attention(width: int, tokens: int) -> int:
    types = dict.fromkeys(("q", "k", "v", "out"), "*bf16") | {"scale": "fp32", "rows": "i32", "tokens": "i32"}
    (first, more), (columns, rest) = temporal_kernel.pieces(tokens), temporal_kernel.pieces(width)
    sizes = {"M": text_kernel.ROWS, "T": first, "MORE": more, "D": columns, "REST": rest}
    constants = {"heads": 8, "head_dim": width, "STEPS": 4, **sizes}
    options = {"num_warps": text_kernel.WARPS, "num_stages": text_kernel.STAGES}
    return spilled(text_kernel._text_attention, types, constants, **options)


def main() -> None:
    found: dict[str, int] = {}
    if "attention" in sys.argv:
        found |= {f"attention {sizes}": attention(*sizes) for sizes in ((16, 40), (16, 80), (16, 160), (32, 160))}
    if "modules" in sys.argv:
        found |= {f"gated linear layer {width}": gated_linear(width) for width in (320, 640, 1280)}
        for width, tiles in ((320, frames_kernel.Tiles()), (640, frames_kernel.WIDE_TILES)):
            found |= {f"last layer {width}, {last}": add_linear(width, tiles, last) for last in (False, True)}
        for dtype in ("bf16", "fp32"):
            found |= {f"LayerNorm {width}, {dtype}": norm_rows(width, dtype) for width in (320, 640, 1280)}
        for width in (40, 80, 160):
            found |= {f"attention to {tokens} tokens {width}": text_attention(width, tokens) for tokens in (77, 128)}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
