"""Shared by all tests: real pictures, and one thread per process, as tiny models only lose time to more."""

import jaxtyping
import numpy as np
import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture
def photo() -> np.ndarray:
    """A small picture with structure everywhere, uint8 96 x 128 x 3."""
    height, width = 96, 128
    y, x = np.mgrid[:height, :width]
    rng = np.random.default_rng(0)
    light = 128 + 50 * np.sin(x / 5 + y / 9) + 40 * np.cos(y / 4 - x / 17) + rng.normal(0, 6, (height, width))
    tint = [30 * np.sin(x / 23), 20 * np.cos(y / 19), 30 * np.sin((x + y) / 29)]
    return np.clip(light[..., None] + np.stack(tint, axis=-1), 0, 255).astype(np.uint8)


@pytest.fixture
def moving_square(photo) -> tuple[np.ndarray, np.ndarray]:
    """16 frames in which a textured square slides right by 2 px per frame over a still photo, and its first mask."""
    patch = np.random.default_rng(1).integers(0, 255, (8, 8, 1)).repeat(4, axis=0).repeat(4, axis=1)
    frames = np.repeat(photo[None], 16, axis=0)
    for index, frame in enumerate(frames):
        left = 20 + 2 * index
        frame[30:62, left : left + 32] = patch
    mask = np.zeros(photo.shape[:2], dtype=bool)
    mask[30:62, 20:52] = True
    return frames, mask


@pytest.fixture
def unchecked(monkeypatch):
    """Shape checks off, as in shipped code: for values that the annotations rule out but a caller may still pass."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
