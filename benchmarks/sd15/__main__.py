"""The command: see the package's own text, or --help."""

import argparse
import json
import os
import shlex
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch

import benchmarks.sd15

from . import stages
from .host import DTYPES, MEMORY, WIDTH, Host
from .measure import Budget, Timing, calls, ceilings, noting_errors, steps
from .profiling import join_feed_forward, profile_call
from .report import Results, markdown
from .variants import Shape, Variant, build
from .work import KINDS, MOTION, Work, count_flops, count_step, unet_work

PARTS = ("steps", "profile", "calls", "sampling", "whole")
WARM_UP_STEPS = 2


def main(arguments: list[str] | None = None) -> Results:
    given = _arguments(arguments)
    device, dtype = torch.device(given.device), DTYPES[given.dtype]
    command = shlex.join(["python", "-m", "benchmarks.sd15", *(sys.argv[1:] if arguments is None else arguments)])
    budget, shares = Budget(given.seconds), _seconds(given.part_seconds)
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        host = Host(
            given.comfyui.expanduser(), Path(folder), given.device, dtype, given.width, given.memory, given.gpu_gib
        )
        results: Results = {
            "machine": _machine(device, given.dtype),
            "command": command,
            "ceilings": asdict(ceilings(device, dtype, given.matrix)),
            "cells": [],
            "calls": {},
            "profiles": [],
        }
        run = _Run(given, host, results)
        for part in given.parts.split(","):
            if not budget.is_spent():
                getattr(run, part)(budget.at_most(shares.get(part)))
                run.write()
    print(markdown(results))
    return results


class _Run:
    """The parts of one run; each adds to the results."""

    def __init__(self, given: argparse.Namespace, host: Host, results: Results):
        self._given, self._host, self._results = given, host, results
        self._shapes = [
            Shape(size, frames, given.cfg) for size in _numbers(given.sizes) for frames in _numbers(given.frames)
        ]
        if given.shapes:
            self._shapes = [Shape(*map(int, shape.split("x")), given.cfg) for shape in given.shapes.split(",")]
        names = [name for name in given.variants.split(",") if name]
        self._variants = build(host, names, given.adapter, given.chain)
        self._vae: object = None

    def steps(self, budget: Budget) -> None:
        """Sampling steps at each size and length."""
        given, device = self._given, self._host.device
        for index, shape in enumerate(self._shapes):
            if budget.is_spent():
                break
            share = budget.left(0.6 / (len(self._shapes) - index))
            timings = steps(self._variants, shape, device, share, budget, count=given.steps, rounds=given.rounds)
            found = {name: self._step(self._variants[name], shape, timing) for name, timing in timings.items()}
            self._results["cells"].append({"title": str(shape), "variants": found, "floors": self._floors(shape)})
            self.write()

    def profile(self, budget: Budget) -> None:
        """Kernels of one step, at the first size and length."""
        shape = self._shapes[0]
        grouped = {}
        for name, variant in self._variants.items():
            if not budget.is_spent():
                with noting_errors(Timing()):
                    grouped[name] = profile_call(variant, shape, self._host.device)
        kind = self._fullest()
        work = unet_work(kind, shape, self._given.width).parts
        join_feed_forward(grouped, work)
        found = {
            name: [
                {"stage": stage, "part": part, "seconds": g.seconds, "calls": g.calls, "kernels": g.top(5)}
                for (stage, part), g in groups.items()
            ]
            for name, groups in grouped.items()
        }
        floors = {f"{stage}|{part}": self._in_bytes(each) for (stage, part), each in work.items() if part}
        medians = {
            name: values["median"]
            for cell in self._results["cells"]
            if cell["title"] == str(shape)
            for name, values in cell["variants"].items()
        }
        self._results["profiles"].append(
            {"title": str(shape), "variants": found, "floors": floors, "kind": kind, "steps": medians}
        )

    def calls(self, budget: Budget) -> None:
        """The segmenter, and the autoencoder at each size and length."""
        segmenter = stages.vit_b(self._host)
        functions = stages.segmenter_calls(self._host, segmenter, 1024)
        for shape in self._shapes:
            functions |= stages.autoencoder_calls(self._autoencoder(), shape)
        for name, timing in calls(functions, self._host.device, self._given.rounds, budget.left(0.5)).items():
            self._results["calls"][name] = {**_values(timing), "bytes": functions[name].bytes}
            if timing.error is None:
                self._results["calls"][name]["counted"] = count_flops(functions[name]).flops

    def sampling(self, budget: Budget) -> None:
        """All steps of a clip, at the first size and length."""
        self._clips(stages.sampling_calls, budget)

    def whole(self, budget: Budget) -> None:
        """From picture to clip, at the first size and length."""
        self._clips(partial(stages.whole_calls, self._autoencoder()), budget)

    def _clips(self, make: Callable[..., dict], budget: Budget) -> None:
        given, device, shape = self._given, self._host.device, self._shapes[0]
        # What is built or moved at first is so in a clip of few steps too.
        warm = calls(make(self._variants, shape, WARM_UP_STEPS), device, 1, budget, warm_up=0, until=budget)
        failed = {name: timing for name, timing in warm.items() if timing.error is not None}
        ready = zip(self._variants.items(), warm, strict=True)
        functions = make({name: each for (name, each), call in ready if call not in failed}, shape, given.whole_steps)
        found = calls(functions, device, given.rounds, budget, warm_up=0, until=budget)
        self._results["calls"] |= {name: _values(timing) for name, timing in (failed | found).items()}

    def write(self) -> None:
        if self._given.output:
            self._given.output.mkdir(parents=True, exist_ok=True)
            (self._given.output / "sd15.json").write_text(json.dumps(self._results, indent=1))
            (self._given.output / "sd15.md").write_text(markdown(self._results))

    def _autoencoder(self) -> object:
        self._vae = self._vae or self._host.vae()
        return self._vae

    def _step(self, variant: Variant, shape: Shape, timing: Timing) -> Results:
        found = _values(timing)
        if variant.kind is not None:
            found["analytic"] = unet_work(variant.kind, shape, self._given.width).total.flops
        if timing.error is None and self._given.count and variant.name not in _chain_names(self._given.chain):
            with noting_errors(Timing()):  # by its layers it may need more memory than there is
                counted = count_step(variant, shape, self._host.core)
                found |= {"counted": counted.flops, "unknown": counted.unknown}
        return found

    def _floors(self, shape: Shape) -> Results:
        floors = {}
        for kind in sorted({each.kind for each in self._variants.values() if each.kind}, key=KINDS.index):
            for stage, work in unet_work(kind, shape, self._given.width).stages().items():
                name = f"{stage} ({kind})" if stage == MOTION else stage
                floors.setdefault(name, self._in_bytes(work))
            floors[f"all of {kind}"] = self._in_bytes(unet_work(kind, shape, self._given.width).total)
        return floors

    def _in_bytes(self, work: Work) -> Results:
        size = self._host.dtype.itemsize
        return {"flops": work.flops, "products": size * work.products, "modules": size * work.modules}

    def _fullest(self) -> str:
        return max((each.kind for each in self._variants.values() if each.kind), key=KINDS.index)


def _values(timing: Timing) -> Results:
    return {**asdict(timing), "median": timing.median, "fastest": timing.fastest}


def _chain_names(chains: list[str]) -> set[str]:
    """A chain may compile its model, and what is compiled passes by the counter: its base says what it computes."""
    return {chain.partition("=")[0].strip() for chain in chains}


def _machine(device: torch.device, dtype: str) -> str:
    cores = f"CPU, {torch.get_num_threads()} of {os.cpu_count()} cores"
    name = torch.cuda.get_device_name() if device.type == "cuda" else cores
    return f"{name}, {dtype}, PyTorch {torch.__version__}"


def _seconds(text: str) -> dict[str, float]:
    """`part=seconds,...`"""
    return {part: float(seconds) for part, seconds in (each.split("=") for each in text.split(",") if each)}


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.sd15",
        description=benchmarks.sd15.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--comfyui", type=Path, default=Path.home() / "ComfyUI", help="its folder")
    add("--variants", default="plain,animatediff,followclick,diffusers", help="separated by commas")
    add("--adapter", action="append", default=[], metavar="FILE[=ARGUMENT]", help="another pack's; see adapters/")
    add(
        "--chain",
        action="append",
        default=[],
        metavar="NAME=VARIANT|NODE(INPUT=VALUE)",
        help="a variant with more nodes on its MODEL",
    )
    add("--parts", default=",".join(PARTS), help=f"of {', '.join(PARTS)}")
    add("--sizes", default="512", help="sides of the clip in pixels, separated by commas")
    add("--frames", default="16", help="lengths, separated by commas")
    add("--shapes", help="instead of both: SIZExFRAMES, separated by commas")
    add("--cfg", type=float, default=7.5, help="1 samples one clip, more two at once")
    add("--dtype", choices=tuple(DTYPES), default="bf16")
    add("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    add("--rounds", type=int, default=5)
    add("--steps", type=int, default=4, help="of each sampling; the first one is not counted")
    add("--whole-steps", type=int, default=25, help="of a whole clip")
    add("--seconds", type=float, default=1e9, help="after which no further part or round begins")
    add("--no-count", dest="count", action="store_false", help="leave PyTorch's counter out, and count by hand alone")
    add("--part-seconds", default="", metavar="PART=SECONDS,...", help="the same for single parts")
    add("--memory", choices=MEMORY, default="normal", help="how the host keeps weights, as its options of these names")
    add("--gpu-gib", type=float, help="let only so much of the GPU's memory be there, as on a smaller one")
    add("--width", type=int, default=WIDTH, help="channels of the UNet; SD1.5's is 320, less is for trying things out")
    add("--matrix", type=int, help="side of the matrix product that serves as the ceiling")
    add("--folder", type=Path, help="for motion model files of 2 GB in all, in memory for instance")
    add("--output", type=Path, help="folder for sd15.json and sd15.md")
    given = parser.parse_args(arguments)
    if given.gpu_gib is not None and given.device != "cuda":
        parser.error("--gpu-gib limits a GPU's memory; leave it out on a CPU.")
    return given


if __name__ == "__main__":
    main()
