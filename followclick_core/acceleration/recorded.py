"""Calls that are recorded as one graph of the GPU and then replayed, so that no kernel waits for Python.

Good for small clips, whose kernels take less time than launching them. Where the GPU is busy anyway nothing is gained.
"""

import logging
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

logger = logging.getLogger("followclick")

Function = Callable[[Sequence[Tensor | None]], Tensor]
Replay = Callable[[], Tensor]
Recorder = Callable[[Function, Sequence[Tensor | None]], Replay]

# Ordinary calls of a kind before it is recorded: allocations, choices of kernels, and what is kept for later steps.
CALLS_BEFORE_RECORDING = 2


@dataclass
class _Recording:
    inputs: list[Tensor | None]
    replay: Replay

    def __call__(self, tensors: Sequence[Tensor | None]) -> Tensor:
        for own, new in zip(self.inputs, tensors, strict=True):
            if own is not None and new is not None:
                own.copy_(new)
        return self.replay().clone()  # the next replay writes over it


class RecordedCalls:
    """Runs functions of tensors; from the third call with a key and sizes on, by replaying the first of these calls.

    What a function reads besides its tensors must be the same, and at the same place, for equal keys. A function that
    cannot be recorded runs as it is from then on, and the log says so.

    Args:
        record: How to record; on a GPU `record_cuda_graph`.
    """

    def __init__(self, record: Recorder):
        self._record = record
        self._calls: dict[Hashable, int] = {}
        self._recordings: dict[Hashable, _Recording] = {}
        self._failed = False

    def __call__(self, key: Hashable, function: Function, tensors: Sequence[Tensor | None]) -> Tensor:
        if self._failed:
            return function(tensors)
        key = (key, *(None if each is None else (each.shape, each.dtype, each.device) for each in tensors))
        if key not in self._recordings:
            self._calls[key] = self._calls.get(key, 0) + 1
            if self._calls[key] <= CALLS_BEFORE_RECORDING:
                return function(tensors)
            try:
                inputs = [None if each is None else each.clone() for each in tensors]
                self._recordings[key] = _Recording(inputs, self._record(function, inputs))
            except RuntimeError as error:  # what cannot be captured: a copy from the CPU, a look at a number
                logger.warning("Sampling goes on without CUDA graphs: %s", error)
                self.clear()
                self._failed = True
                return function(tensors)
        return self._recordings[key](tensors)

    def clear(self) -> None:
        """Give the memory of all recordings back."""
        self._recordings.clear()
        self._calls.clear()


def record_cuda_graph(function: Function, inputs: Sequence[Tensor | None]) -> Replay:
    """Record one call on the current CUDA device.

    Raises:
        RuntimeError: it does what a graph cannot hold.
    """
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        output = function(inputs)

    def replay() -> Tensor:
        graph.replay()
        return output

    return replay
