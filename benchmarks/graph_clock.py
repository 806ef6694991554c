"""Times of parts of a model as recorded graphs, so without their launches, beside the ceilings of the device."""

import concurrent.futures
import contextlib
import itertools
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

CALLS = 10  # in one graph


class Line(NamedTuple):
    """A part to time; `passes` are the bytes that it must move, in tensors of the level's size."""

    name: str
    run: Callable[[], object]
    passes: float
    flops: float = 0.0


class Bench:
    """Times functions on one device, and says what share of its ceilings they reach."""

    def __init__(self, device: str, dtype: torch.dtype, seconds: float, threads: int):
        self.device, self.dtype, self.seconds, self.threads = torch.device(device), dtype, seconds, threads
        self.cuda = self.device.type == "cuda"
        self.flops, self.bandwidth = 1.0, 1.0
        self.stream = torch.cuda.Stream() if self.cuda else None

    def milliseconds(self, function: Callable[[], object]) -> tuple[float, float]:
        """Of a call on the device, and of the processor's time to launch it."""
        self._wait()  # for inputs that another stream makes
        with torch.cuda.stream(self.stream):
            function()
            self._wait()
            start = time.perf_counter()
            function()
            launch = 1000 * (time.perf_counter() - start)
            self._wait()
            if not self.cuda:
                return launch, launch
            taken = self._replays(function)
            torch.cuda.empty_cache()  # a graph's memory is its own, and the next one's cannot be made of it
            return taken, launch

    def _replays(self, function: Callable[[], object]) -> float:
        graph = torch.cuda.CUDAGraph()
        graph.capture_begin()
        try:
            for _ in range(CALLS):
                function()
        finally:
            graph.capture_end()
        graph.replay()
        times: list[float] = []
        end = time.perf_counter() + self.seconds
        while len(times) < 3 or (time.perf_counter() < end and len(times) < 100):
            marks = [torch.cuda.Event(enable_timing=True) for _ in range(4)]
            marks[0].record()
            for mark in marks[1:]:
                graph.replay()
                mark.record()
            self._wait()
            times += [before.elapsed_time(after) / CALLS for before, after in itertools.pairwise(marks)]
        return statistics.median(times)

    def _wait(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()

    def prepare(self, functions: list[Callable[[], object]]) -> None:
        """Run each once, several at a time: building kernels is most of the time that this program takes."""
        if not self.cuda or self.threads < 2:
            return

        def run(function: Callable[[], object]) -> None:
            # Whatever fails here fails again, and is told of, where it is measured.
            with torch.inference_mode(), contextlib.suppress(Exception):
                function()

        run(functions[0])  # what is set up once
        with concurrent.futures.ThreadPoolExecutor(self.threads) as pool:
            list(pool.map(run, functions[1:]))
        self._wait()

    def measure_ceilings(self) -> None:
        side = 8192 if self.cuda else 256
        a, b = (self.random(side, side) for _ in range(2))
        self.flops = 2 * side**3 / self.milliseconds(lambda: a @ b)[0] * 1e3
        source = self.random(side * side * (8 if self.cuda else 1))
        target = torch.empty_like(source)
        self.bandwidth = 2 * source.nbytes / self.milliseconds(lambda: target.copy_(source))[0] * 1e3
        print(f"ceilings: {self.flops / 1e12:.0f} TFLOP/s, {self.bandwidth / 1e12:.2f} TB/s", flush=True)

    def random(self, *shape: int) -> Tensor:
        return torch.randn(shape, device=self.device, dtype=self.dtype)

    def lines(self, title: str, lines: list[Line], unit: int) -> None:
        print(f"   {title}", flush=True)
        for line in lines:
            self.line(line, unit)

    def line(self, line: Line, unit: int) -> float:
        """Time a part and print it; `unit`: bytes of a tensor of this level."""
        name, run, passes, flops = line
        try:
            taken, launch = self.milliseconds(run)
        except Exception as error:  # other tiles may not fit this device, the rest is wanted all the same
            print(f"    {name:<44} failed: {str(error).splitlines()[0][:80]}", flush=True)
            return float("inf")
        floor = 1e3 * max(passes * unit / self.bandwidth, flops / self.flops)
        rates = f"{passes * unit / taken / 1e9:6.2f} TB/s" + (f" {flops / taken / 1e9:6.0f} TFLOP/s" if flops else "")
        share = f"floor {floor:8.4f} {100 * floor / taken:4.0f} %"
        print(f"    {name:<44}{taken:9.4f} ms  {share}  launch {launch:7.3f}  {rates}", flush=True)
        return taken
