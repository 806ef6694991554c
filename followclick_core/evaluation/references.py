"""What stands in a model's place to show what the measure gives: the most that can be reached, and the least."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from .takes import HeldOutScene, Source, Take


class TruthSource:
    """The true clips: the upper bound of every figure."""

    def animate(self, requests: Sequence[tuple[HeldOutScene, float]]) -> list[Take]:
        return [Take(scene.magnitude, scene.frames, scene.mask) for scene, _ in requests]

    def autoencode(self, image: np.ndarray) -> np.ndarray:
        return image


class EncodedTruthSource(TruthSource):
    """The true clips through a model's autoencoder: what its motion model could reach at best.

    Flow is found where there is texture. What the autoencoder smooths away, a sky's grain for one, no longer holds the
    flow beside the object in its place.
    """

    def __init__(self, animator: Any):
        self.animator = animator

    def animate(self, requests: Sequence[tuple[HeldOutScene, float]]) -> list[Take]:
        return [
            replace(take, frames=np.stack([self.autoencode(frame) for frame in take.frames]))
            for take in super().animate(requests)
        ]

    def autoencode(self, image: np.ndarray) -> np.ndarray:
        return self.animator.autoencode(image)


class StillSource(TruthSource):
    """A photo that does not move: what a model gets that does nothing."""

    def animate(self, requests: Sequence[tuple[HeldOutScene, float]]) -> list[Take]:
        return [
            Take(magnitude, np.repeat(scene.image[None], len(scene.frames), axis=0), scene.mask)
            for scene, magnitude in requests
        ]


REFERENCES: dict[str, Callable[[Any], Source]] = {
    "truth": lambda _animator: TruthSource(),
    "encoded-truth": EncodedTruthSource,
    "still": lambda _animator: StillSource(),
}


def reference_source(name: str, animator: Any) -> Source:
    """The reference of this name; ValueError if there is none. Args: animator: Whose autoencoder it may go through."""
    if name not in REFERENCES:
        raise ValueError(f"There is no reference {name!r}; choose one of {', '.join(REFERENCES)}.")
    return REFERENCES[name](animator)
