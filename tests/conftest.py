"""Shared by all tests: shape checks, real pictures, an untrained model."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import jaxtyping
import numpy as np
import pytest
import torch
from beartype import BeartypeConf, beartype

# From here on every call into the core is checked against its annotations, shapes included. An int passes for a float,
# as it does for Python and pyright. The hook wants its checker by name, and it must stand before the first import.
_checker = ModuleType("followclick_typechecker")
setattr(_checker, "check", beartype(conf=BeartypeConf(is_pep484_tower=True)))  # noqa: B010
sys.modules[_checker.__name__] = _checker
jaxtyping.install_import_hook("followclick_core", f"{_checker.__name__}.check")

# Tiny models only lose time to more threads.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def checkpoint_files() -> ModuleType:
    """The module tests/checkpoint_files.py: motion model files of every family."""
    spec = importlib.util.spec_from_file_location("checkpoint_files", Path(__file__).parent / "checkpoint_files.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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


@pytest.fixture(scope="session")
def untrained_weights(tmp_path_factory):
    """A weights folder as training writes it, with random weights of the smallest preset: enough to run, not to see."""
    from followclick_core.models.autoencoder import Autoencoder, save_autoencoder
    from followclick_core.models.motion_model import MotionModel, save_motion_model
    from followclick_core.models.text_encoder import TextEncoder, save_text_encoder
    from followclick_core.models.unet import UNet, save_unet
    from followclick_core.presets import get_preset
    from followclick_core.segment.params import SmallSamParams
    from followclick_core.segment.small_sam import build_small_sam, save_small_sam

    folder, preset = tmp_path_factory.mktemp("weights"), get_preset("nano")
    notes = {"preset": preset.name}
    torch.manual_seed(0)
    save_unet(folder / "unet.safetensors", UNet(preset.unet), notes)
    save_motion_model(folder / "motion.safetensors", MotionModel(preset.motion), notes)
    save_autoencoder(folder / "autoencoder.safetensors", Autoencoder(), notes)
    save_text_encoder(folder / "text_encoder.safetensors", TextEncoder(preset.text), torch.arange(8), notes)
    params = SmallSamParams(image_size=64, embed_dim=32, num_heads=2, mlp_dim=32, iou_hidden_dim=16, trunk_width=0.25)
    save_small_sam(folder / "segmenter.safetensors", build_small_sam(params), params)
    return folder
