"""The whole grid as one resumable command: the clips, then every variant of seed 0, of seed 1 and so on."""

import json
import logging
import math
import multiprocessing
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..data.art import ArtPack
from ..files import write_json
from .clips import make_clips
from .runs import RunParams, Workshop, frozen_autoencoder, result_path
from .scenes import ClipParams
from .variants import BASE, Variant

logger = logging.getLogger("followclick")

# A run is not begun when less than this is left of the command's time.
LEAST_SECONDS = 8.0


@dataclass(frozen=True)
class Grid:
    """What is to be run, and where.

    Args:
        weights: A `weights` folder from which all runs take autoencoder, UNet and text encoder.
        steps: Of each run; None: as many as fit into `seconds_per_run`, measured once and then kept.
    """

    folder: Path
    weights: Path
    variants: tuple[Variant, ...]
    seeds: int
    clips: ClipParams = field(default_factory=ClipParams)
    params: RunParams = field(default_factory=RunParams)
    steps: int | None = None
    seconds_per_run: float = 25.0

    @property
    def clip_folder(self) -> Path:
        return self.folder / "clips"

    def missing(self) -> list[tuple[Variant, int]]:
        """Runs without a result, in their order."""
        runs = [(variant, seed) for seed in range(self.seeds) for variant in self.variants]
        return [(variant, seed) for variant, seed in runs if not result_path(self.folder, variant, seed).is_file()]


def run_grid(
    grid: Grid,
    art: Path,
    device: torch.device,
    max_seconds: float = math.inf,
    workers: int = 1,
    scene_workers: int = 0,
) -> bool:
    """Make the clips and run what has no result yet; the same command goes on where the last one stopped.

    Args:
        max_seconds: No run goes on training after that; one that just ended is still scored.
        workers: Processes that train side by side on the device.
        scene_workers: Processes that draw scenes, before the training; 0 draws in this one.

    Returns:
        Whether every run has its result.

    Raises:
        ValueError: The folder holds runs of other settings.
        RuntimeError: A run failed; the others were made nevertheless.
    """
    deadline = time.monotonic() + max_seconds
    (grid.folder / "runs").mkdir(parents=True, exist_ok=True)
    _keep_settings(grid)
    _choose(device)
    if not _make_clips(grid, art, device, scene_workers, deadline):
        return False
    missing = grid.missing()
    if not missing:
        return True
    steps = grid.steps or _calibrated_steps(grid, device)
    if workers == 1:
        failed = _work(grid, steps, str(device), deadline - time.monotonic(), missing, _Turns())
    else:
        failed = _work_side_by_side(grid, steps, device, deadline - time.monotonic(), missing, workers)
    if failed:
        raise RuntimeError(f"{failed} runs of the grid failed; their errors are above.")
    return not grid.missing()


def _keep_settings(grid: Grid) -> None:
    """Write down what the results of this folder have in common, or refuse to mix others in."""
    settings = json.loads(json.dumps({"clips": asdict(grid.clips), "params": asdict(grid.params)}))
    path = grid.folder / "settings.json"
    if path.is_file() and json.loads(path.read_text(encoding="utf-8")) != settings:
        raise ValueError(f"{grid.folder} holds ablations with other settings; name another folder.")
    write_json(path, settings)


def _make_clips(grid: Grid, art: Path, device: torch.device, workers: int, deadline: float) -> bool:
    started = time.monotonic()
    autoencoder = frozen_autoencoder(grid.weights, device)
    done = make_clips(ArtPack.load(art), autoencoder, grid.clips, grid.clip_folder, workers, deadline)
    logger.info("clips: %.0f s", time.monotonic() - started)
    return done


def _calibrated_steps(grid: Grid, device: torch.device) -> int:
    """The number of steps that every run of this folder takes."""
    path = grid.folder / "budget.json"
    if not path.is_file():
        workshop = Workshop(grid.weights, grid.clip_folder, grid.clips, grid.params, device)
        seconds = workshop.seconds_per_step(BASE)
        steps = max(1, round(grid.seconds_per_run / seconds))
        write_json(path, {"seconds_per_step": seconds, "seconds_per_run": grid.seconds_per_run, "steps": steps})
    return json.loads(path.read_text(encoding="utf-8"))["steps"]


class _Turns:
    """Gives every number once; this one within a process."""

    def __init__(self) -> None:
        self._next = 0

    def take(self) -> int:
        self._next += 1
        return self._next - 1


class _SharedTurns:
    """The same among processes."""

    def __init__(self, context: Any):
        self._next = context.Value("i", 0)

    def take(self) -> int:
        with self._next.get_lock():
            self._next.value += 1
            return self._next.value - 1


def _work_side_by_side(
    grid: Grid, steps: int, device: torch.device, seconds: float, missing: Sequence[tuple[Variant, int]], workers: int
) -> int:
    # A process that was forked from one with a GPU cannot use the GPU.
    context = multiprocessing.get_context("spawn")
    turns, failed = _SharedTurns(context), context.Value("i", 0)
    deadline = time.monotonic() + seconds
    processes = []
    for _ in range(min(workers, len(missing))):
        arguments = (grid, steps, str(device), deadline - time.monotonic(), missing, turns, failed, workers)
        processes.append(context.Process(target=_worker, args=arguments, daemon=True))
        processes[-1].start()
    for process in processes:
        process.join()
    return failed.value + sum(process.exitcode != 0 for process in processes)


def _worker(
    grid: Grid,
    steps: int,
    device: str,
    seconds: float,
    missing: Sequence[tuple[Variant, int]],
    turns: _SharedTurns,
    failed: Any,
    workers: int,
) -> None:
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO)
    os.environ["TQDM_DISABLE"] = "1"  # bars of several processes would overwrite each other
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // workers))
    _choose(torch.device(device))
    count = _work(grid, steps, device, seconds, missing, turns)
    with failed.get_lock():
        failed.value += count


def _work(
    grid: Grid,
    steps: int,
    device: str,
    seconds: float,
    missing: Sequence[tuple[Variant, int]],
    turns: _Turns | _SharedTurns,
) -> int:
    """Take runs in turn until none is left or the time is up; how many of them failed."""
    deadline = time.monotonic() + seconds
    workshop = Workshop(grid.weights, grid.clip_folder, grid.clips, grid.params, torch.device(device))
    failed = 0
    while (index := turns.take()) < len(missing):
        variant, seed = missing[index]
        remaining = deadline - time.monotonic()
        if remaining < LEAST_SECONDS:
            break
        started = time.monotonic()
        try:
            done = workshop.run(variant, seed, steps, grid.folder, remaining)
        except Exception:  # one variant that cannot be trained must not cost the others their time
            logger.exception("%s, seed %d failed", variant.name, seed)
            failed += 1
            continue
        state = "done" if done else "to be continued"
        logger.info("%s, seed %d: %s after %.0f s", variant.name, seed, state, time.monotonic() - started)
    return failed


def _choose(device: torch.device) -> None:
    """Recording a training step as a graph happens on the current device."""
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    torch.backends.cudnn.benchmark = True  # every step has the same shapes
