"""A pool of generated samples, each used a few times before a new one takes its place.

Encoding a clip costs more than a training step on it, so every clip serves several steps, with other noise and timesteps. What the
pool holds at a step depends on the step alone, so a resumed run refills it exactly.
"""

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

    def __init__(self, make_chunk: Callable[[int], Chunk], slots: int):
        self._make_chunk = make_chunk
        self._slots = slots
        self._data: Chunk = {}

    def refill(self, step: int) -> None:
        """Make the chunks that would be in the pool before `step`."""
        for past in range(step - self._slots, step):
            self.advance(past)

    def advance(self, step: int) -> None:
        """Make this step's chunk and put it in the place of the oldest. Steps before the first one fill the pool."""
        chunk = self._make_chunk(step + self._slots)
        slot = step % self._slots
        for key, value in chunk.items():
            if key not in self._data:
                self._data[key] = value.new_zeros(self._slots, *value.shape)
            self._data[key][slot] = value

    def draw(self, batch_size: int, step: int) -> Chunk:
        """A random batch."""
        first = next(iter(self._data.values()))
        count = first.shape[0] * first.shape[1]
        index = torch.randperm(count, device=first.device, generator=step_generator(first.device, step))[:batch_size]
        return {key: value.flatten(0, 1)[index] for key, value in self._data.items()}
