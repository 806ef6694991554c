"""The command ablate: the paper's ablations at demo scale. Nothing heavy is imported with it."""

import argparse
import math
from dataclasses import replace
from pathlib import Path

from .commands import chosen_device

PROGRAM = "python -m followclick_core"

HELP = f"""\
Train and score the variants of the paper's ablations, all for the same number of steps from the same weights, and write
a table and a plot of each. The same command goes on where an interrupted one stopped.

  {PROGRAM} ablate --art build/art.zip --output runs/ablations --device cuda --workers 3 --max-seconds 560
  {PROGRAM} ablate --output runs/ablations --report docs/REPRODUCTION.md

Every run writes one small file into OUTPUT/runs; the report is made of them alone. The clips of the training are made
first, into OUTPUT/clips.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", "--out", required=True, metavar="FOLDER", help="clips, states and results go here")
    parser.add_argument("--art", metavar="ZIP", help="what build-art wrote")
    parser.add_argument("--report", metavar="FILE", help="write tables and plots into this Markdown file; nothing runs")
    parser.add_argument("--model", metavar="FOLDER", help="weights to begin with (default: the shipped ones)")
    parser.add_argument("--variant", action="append", metavar="NAME", help="some of the variants (default: all)")
    parser.add_argument("--seeds", type=_count, default=3, metavar="N", help="runs of each variant (default 3)")
    parser.add_argument("--steps", type=_count, metavar="N", help="of each run, instead of a measured number")
    parser.add_argument(
        "--seconds-per-run", type=float, default=25.0, metavar="S", help="of training, from which steps are measured"
    )
    parser.add_argument("--batch", type=_count, metavar="N", help="clips per step (default 16)")
    parser.add_argument("--size", type=_count, metavar="PX", help="side of the clips (default 64)")
    parser.add_argument("--frames", type=_count, metavar="N", help="length of the clips (default 16)")
    parser.add_argument("--clips", type=_count, metavar="N", help="clips to train on (default 6000)")
    parser.add_argument("--scenes", type=_count, metavar="N", help="held-out clips to score on (default 96)")
    parser.add_argument(
        "--max-seconds", type=float, default=math.inf, metavar="S", help="stop in good order after this"
    )
    parser.add_argument("--workers", type=_count, default=1, metavar="N", help="runs side by side on the device")
    parser.add_argument("--scene-workers", type=int, default=0, metavar="N", help="processes that draw scenes")
    parser.add_argument("--device", default="auto", metavar="NAME", help="auto (default), cpu, cuda, cuda:1, mps")


def run(arguments: argparse.Namespace) -> None:
    if arguments.report:
        _report(arguments)
        return
    if arguments.art is None:
        raise ValueError("Give --art to run the ablations, or --report to write down those that have been run.")
    import logging

    import torch

    from ..ablations.grid import Grid, run_grid
    from ..ablations.variants import find_variants
    from ..animator import best_device
    from ..checkpoint import WEIGHTS_DIR

    if not arguments.quiet:
        logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO)
    name = chosen_device(arguments.device)
    clips, params = _settings(arguments)
    grid = Grid(
        Path(arguments.output),
        Path(arguments.model or WEIGHTS_DIR),
        find_variants(arguments.variant),
        arguments.seeds,
        clips,
        params,
        arguments.steps,
        arguments.seconds_per_run,
    )
    finished = run_grid(
        grid,
        Path(arguments.art),
        best_device() if name is None else torch.device(name),
        arguments.max_seconds,
        arguments.workers,
        arguments.scene_workers,
    )
    if not arguments.quiet:
        left = len(grid.missing())
        state = "finished" if finished else f"not finished, {left} runs are left; the same command goes on with them"
        print(f"The ablations in {arguments.output} are {state}.")


def _settings(arguments: argparse.Namespace):
    from ..ablations.runs import RunParams
    from ..ablations.scenes import ClipParams

    chosen = {
        "size": arguments.size,
        "num_frames": arguments.frames,
        "train": arguments.clips,
        "held_out": arguments.scenes,
        "sweep": arguments.scenes and max(1, arguments.scenes // 2),
    }
    clips = replace(ClipParams(), **{key: value for key, value in chosen.items() if value is not None})
    params = RunParams() if arguments.batch is None else replace(RunParams(), batch_size=arguments.batch)
    return clips, params


def _report(arguments: argparse.Namespace) -> None:
    from ..ablations.report import write_report

    write_report(Path(arguments.output), Path(arguments.report))
    if not arguments.quiet:
        print(f"{arguments.report} has the ablations of {arguments.output}.")


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no count; give a whole number from 1")
    return int(text)
