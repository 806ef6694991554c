"""A pool of generated samples, each used a few times before a new one takes its place.

Generating and encoding a clip costs as much as a training step on it, so every clip serves several steps, with other
noise and timesteps. What the pool holds at a step depends on the step alone, so a resumed run refills it exactly. On a
GPU new samples are made on a stream of their own, beside the training step.
"""

import contextlib
from collections.abc import Callable

import torch
from torch import Tensor

from .loop import step_generator

Chunk = dict[str, Tensor]  # every tensor has the same first axis


class SamplePool:
    """The last `slots` chunks, drawn from at random.

    Args:
        make_chunk: seed -> tensors; called once per step. A batch n times as large as a chunk uses each sample n times.
    """

    def __init__(self, make_chunk: Callable[[int], Chunk], slots: int, device: torch.device):
        self._make_chunk = make_chunk
        self._slots = slots
        self._data: Chunk = {}
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._drawn: torch.cuda.Event | None = None

    def refill(self, step: int) -> None:
        """Make all the chunks that are in the pool at `step`."""
        for past in range(step - self._slots + 1, step + 1):
            self.advance(past)

    def advance(self, step: int) -> None:
        """Make this step's chunk and put it in the place of the oldest. Steps before the first one fill the pool."""
        with torch.cuda.stream(self._stream) if self._stream is not None else contextlib.nullcontext():
            chunk = self._make_chunk(step + self._slots)
            if not self._data:
                self._data = {key: value.new_zeros(self._slots, *value.shape) for key, value in chunk.items()}
            if self._stream is not None and self._drawn is not None:
                self._stream.wait_event(self._drawn)  # not while the last batch is still being copied out
            for key, value in chunk.items():
                self._data[key][step % self._slots] = value

    def draw(self, batch_size: int, step: int) -> Chunk:
        """A random batch."""
        first = next(iter(self._data.values()))
        if self._stream is not None:
            torch.cuda.current_stream(first.device).wait_stream(self._stream)
        count = first.shape[0] * first.shape[1]
        index = torch.randperm(count, device=first.device, generator=step_generator(first.device, step))[:batch_size]
        batch = {key: value.flatten(0, 1)[index] for key, value in self._data.items()}
        if self._stream is not None:
            self._drawn = torch.cuda.Event()
            self._drawn.record()
        return batch
