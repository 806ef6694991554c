"""Time by the device's own events, memory by its allocator, and what the device can do at best."""

import gc
import itertools
import statistics
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from .variants import Shape, Variant, by_turns

GIB = 2**30
NO_TIME = "no time was left"


class Clock:
    """Moments on the device, of which the seconds between are asked for afterwards: marking one waits for nothing."""

    def __init__(self, device: torch.device):
        self._cuda = device.type == "cuda"
        self._marks: list = []

    def mark(self) -> None:
        if self._cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append(event)
        else:
            self._marks.append(time.perf_counter())

    def intervals(self) -> list[float]:
        if not self._cuda:
            return [after - before for before, after in itertools.pairwise(self._marks)]
        torch.cuda.synchronize()
        return [before.elapsed_time(after) / 1000 for before, after in itertools.pairwise(self._marks)]


class Budget:
    """Seconds that a run may take; parts ask before they go on."""

    def __init__(self, seconds: float):
        self._end = time.monotonic() + seconds

    def left(self, share: float = 1.0) -> "Budget":
        """A budget of its own for the next part: this share of what is left."""
        return Budget(max(0.0, share * (self._end - time.monotonic())))

    def at_most(self, seconds: float | None) -> "Budget":
        """What is left, but no more than so many seconds."""
        left = max(0.0, self._end - time.monotonic())
        return Budget(left if seconds is None else min(left, seconds))

    def is_spent(self) -> bool:
        return time.monotonic() > self._end


@dataclass
class Timing:
    """Seconds of every measured call, the peak of memory in bytes (None on a CPU), and what went wrong, if it did."""

    seconds: list[float] = field(default_factory=list)
    peak: int | None = None
    error: str | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.seconds) if self.seconds else float("nan")

    @property
    def fastest(self) -> float:
        return min(self.seconds, default=float("nan"))


@dataclass(frozen=True)
class Ceilings:
    """What the device was measured to do: multiply-adds counted as two operations, bytes read plus bytes written."""

    flops: float  # per second, of one large matrix product in the run's number format
    bytes: float  # per second, of a large copy
    matrix: int  # side of that product


def ceilings(device: torch.device, dtype: torch.dtype, matrix: int | None = None) -> Ceilings:
    """Args: matrix: Side of the product; None takes 8192 on a GPU, 1024 on a CPU."""
    cuda = device.type == "cuda"
    side = matrix or (8192 if cuda else 1024)
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    product = torch.empty_like(a)
    seconds = repeat(lambda: torch.mm(a, b, out=product), device, 20 if cuda else 5)
    source = torch.randn((2**30 if cuda else 2**26) // 4, device=device)
    target = torch.empty_like(source)
    copied = repeat(lambda: target.copy_(source), device, 20 if cuda else 5)
    return Ceilings(2 * side**3 / seconds, 2 * source.nbytes / copied, side)


def repeat(call: Callable[[], object], device: torch.device, times: int) -> float:
    """The median seconds of a call after three that warm up."""
    for _ in range(3):
        call()
    clock = Clock(device)
    clock.mark()
    for _ in range(times):
        call()
        clock.mark()
    return statistics.median(clock.intervals())


def steps(
    variants: dict[str, Variant], shape: Shape, device: torch.device, budget: Budget, until: Budget, **numbers: int
) -> dict[str, Timing]:
    """Seconds of each sampling step of each variant, in turns, and the peak of memory of each by itself.

    Args:
        budget: Rounds end early when it is spent, but there is one at least.
        until: Variants that have not begun when it is spent are left out.
        numbers: `count` steps of each sampling, of which the first is not counted, and `rounds`.
    """
    timings = {name: Timing() for name in variants}
    for variant in variants.values():
        if until.is_spent():
            timings[variant.name].error = NO_TIME
            continue
        with noting_errors(timings[variant.name]):
            timings[variant.name].peak = _peak(variant, variants, shape, device)
    for index, variant in by_turns(variants, numbers["rounds"]):
        if index and budget.is_spent():
            break
        if timings[variant.name].error is None:
            with noting_errors(timings[variant.name]):
                clock = Clock(device)
                variant.sample(shape, numbers["count"], clock.mark)
                timings[variant.name].seconds += clock.intervals()
    return timings


def calls(
    functions: Mapping[str, Callable[[], object]],
    device: torch.device,
    rounds: int,
    budget: Budget,
    warm_up: int = 1,
    until: Budget | None = None,
) -> dict[str, Timing]:
    """Seconds and peak of memory of each function, in turns, after `warm_up` rounds that are not counted.

    Args:
        budget: Rounds end early when it is spent, but there is one at least.
        until: When it is spent, functions that have not run once are left out too.
    """
    timings = {name: Timing() for name in functions}
    for index in range(rounds + warm_up):
        if index > warm_up and budget.is_spent():
            break
        for name, function in functions.items():
            if until is not None and until.is_spent() and not timings[name].seconds:
                timings[name].error = timings[name].error or NO_TIME
            if timings[name].error is None:
                with noting_errors(timings[name]):
                    before = _start_peak(device)
                    clock = Clock(device)
                    clock.mark()
                    function()
                    clock.mark()
                    taken = clock.intervals()
                    timings[name].peak = _more_memory(before)
                    if index >= warm_up:
                        timings[name].seconds += taken
    return timings


def _peak(variant: Variant, variants: dict[str, Variant], shape: Shape, device: torch.device) -> int | None:
    """Bytes that a variant takes, weights and all: nothing of it is on the device before."""
    if device.type == "cuda":
        for other in variants.values():
            other.unload()
        gc.collect()
        torch.cuda.empty_cache()
    before = _start_peak(device)
    variant.sample(shape, 2, lambda: None)
    return _more_memory(before)


def _start_peak(device: torch.device) -> int | None:
    if device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def _more_memory(before: int | None) -> int | None:
    return None if before is None else torch.cuda.max_memory_allocated() - before


class noting_errors:  # noqa: N801  # reads as a with statement
    """One variant that runs out of memory, or whose pack is broken, does not end the comparison."""

    def __init__(self, timing: Timing):
        self._timing = timing

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> bool:
        if not isinstance(error, Exception):
            return False
        traceback.print_exception(error, limit=-3)
        self._timing.error = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        return True
