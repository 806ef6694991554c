"""Scenes made ahead of their use by other processes, so that a GPU need not wait for them."""

from collections.abc import Iterator
from itertools import count
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from .scenes import SceneBatch, SceneGenerator

# What crosses from process to process is packed: 8-bit pixels, as a photo has them, and half-precision flow.
PACKED = {
    "frames": lambda pixels: (pixels * 255).round().to(torch.uint8),
    "object_masks": lambda mask: mask > 0.5,
    "distractor_mask": lambda mask: mask > 0.5,
    "flow": lambda flow: flow.half(),
}


class ScenesAhead:
    """A SceneGenerator whose batches of consecutive seeds are made in advance, by `workers` processes.

    It answers `sample` and `sample_stills` as the generator itself does, on `device`; whoever asks for seed n is taken
    to want n + 1 next. Any other seed starts the processes anew, so order costs time but never changes a result.

    Args:
        rank, ranks: Of `ranks` programs that share all seeds this is number `rank`: its seed n is n x ranks + rank.
    """

    def __init__(self, scenes: SceneGenerator, device: torch.device, workers: int, rank: int = 0, ranks: int = 1):
        if scenes.device.type != "cpu":
            raise ValueError(
                f"Scenes are made ahead on the CPU, but the generator is on {scenes.device}; make it there."
            )
        if workers < 1:
            raise ValueError(f"Scenes need at least 1 process to be made ahead, not {workers}.")
        self.device = device
        self.params = scenes.params
        self._scenes = scenes
        self._workers, self._rank, self._ranks = workers, rank, ranks
        self._asked: tuple[str, int] | None = None
        self._next_seed = 0
        self._batches: Iterator[dict[str, Any]] = iter(())

    def sample(self, batch_size: int, seed: int) -> SceneBatch:
        return self._get("sample", batch_size, seed)

    def sample_stills(self, batch_size: int, seed: int) -> SceneBatch:
        return self._get("sample_stills", batch_size, seed)

    def _get(self, method: str, batch_size: int, seed: int) -> SceneBatch:
        if self._asked != (method, batch_size) or seed != self._next_seed:
            self._asked = (method, batch_size)
            loader = DataLoader(
                _PackedScenes(self._scenes, method, batch_size),
                batch_size=None,
                sampler=_SeedsFrom(seed * self._ranks + self._rank, self._ranks),
                num_workers=self._workers,
                prefetch_factor=4,
                pin_memory=self.device.type == "cuda",
            )
            self._batches = iter(loader)
        self._next_seed = seed + 1
        return unpacked(next(self._batches), self.device)


class _PackedScenes(Dataset):
    """The batch of a seed, ready to cross to another process."""

    def __init__(self, scenes: SceneGenerator, method: str, batch_size: int):
        self._scenes, self._method, self._batch_size = scenes, method, batch_size

    def __getitem__(self, seed: int) -> dict[str, Any]:
        return packed(getattr(self._scenes, self._method)(self._batch_size, seed=seed))


class _SeedsFrom(Sampler):
    def __init__(self, first: int, stride: int):
        self._first, self._stride = first, stride

    def __iter__(self) -> Iterator[int]:
        return count(self._first, self._stride)


def packed(batch: SceneBatch) -> dict[str, Any]:
    """A batch as a dictionary of small tensors and lists."""
    return {key: PACKED[key](value) if key in PACKED else value for key, value in vars(batch).items()}


def unpacked(content: dict[str, Any], device: torch.device) -> SceneBatch:
    """The batch again, on `device`, in floats; pixels in steps of 1/255."""
    values: dict[str, Any] = {
        key: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
        for key, value in content.items()
    }
    for key in PACKED:
        values[key] = values[key].float()
    values["frames"] = values["frames"] / 255
    return SceneBatch(**values)
