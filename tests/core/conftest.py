"""Shared by the core's tests: small shards in the form that build-dataset writes, and a tiny preset to train."""

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from followclick_core import presets
from followclick_core.data.art import ArtPack, PhotoInfo, SpriteInfo
from followclick_core.dataset.pack import npy_bytes
from followclick_core.dataset.tars import open_tar_writer
from followclick_core.flow.motion_mask import RULES
from followclick_core.models.motion_module import frame_positions
from followclick_core.models.text_encoder import TextEncoderParams
from followclick_core.models.unet import UNetParams
from followclick_core.training.clip_params import CLIP_TRAINING, TEXTS, ClipTrainParams
from followclick_core.training.loop import LoopParams

CAPTIONS = ("a red square on a wall", "a green square in the evening", "a small square", "a square, photo of a wall")
PHRASES = ("move right", "slide", "drift slowly", "move away")


@pytest.fixture(scope="session")
def write_shards():
    """The function below."""
    return _write_shards


def _write_shards(folder: Path, clips: int = 6, size: int = 64, frames: int = 4, parts: int = 2, **changed) -> Path:
    """Squares that move over noise. `changed`: what of a sample's files replaces the usual, by suffix with _ for dots,
    as a function of the clip's number; None leaves it out."""
    (folder / "shards").mkdir(parents=True)
    for part in range(parts):
        numbers = range(part, clips, parts)
        with open_tar_writer(folder / "shards" / f"part-{part:06d}.tar") as tar:
            phrases = [_write_clip(tar, part, number, size, frames, changed) for number in numbers]
        manifest = {"digest": "x", "samples": len(numbers), "with_motion_prompt": sum(map(bool, phrases))}
        (folder / "shards" / f"part-{part:06d}.json").write_text(json.dumps(manifest))
    return folder


def _write_clip(tar, part: int, number: int, size: int, frames: int, changed: dict) -> str:
    rng = np.random.default_rng(number)
    video = np.repeat(rng.integers(60, 190, (1, size, size, 3)), frames, axis=0).astype(np.uint8)
    side, speed = size // 4, 1 + number % 3
    masks = {rule: np.zeros((size, size), bool) for rule in RULES}
    colour = rng.integers(0, 255, 3)
    for index in range(frames):
        left = size // 8 + speed * index
        video[index, side : 2 * side, left : left + side] = colour
        for rule in ("literal", "union"):
            masks[rule][side : 2 * side, left : left + side] = True
    masks["followed"][side : 2 * side, size // 8 : size // 8 + side] = True
    key = f"{part:06d}-{number:04d}-000"
    record = {
        "key": key,
        "size": size,
        "num_frames": frames,
        "mask_rule": "followed",
        "motion": {"magnitude": dict.fromkeys(RULES, speed * 512 / size)},
        "caption": CAPTIONS[number % 4],
        "motion_prompt": PHRASES[number % 4],
    }
    sample = {f"frame.{index:03d}.jpg": picture(frame, "JPEG") for index, frame in enumerate(video)}
    sample |= {f"mask.{rule}.png": picture(mask, "PNG") for rule, mask in masks.items()}
    sample["flow.npy"] = npy_bytes(np.zeros((frames - 1, size // 8, size // 8, 2), np.float16))
    for name, make in changed.items():
        if name in record:
            record[name] = make(number)
        elif (content := make(number)) is not None:
            sample[name.replace("_", ".")] = content
    texts = {"txt": record["caption"], "motion.txt": record["motion_prompt"]}
    tar.write({"__key__": key, **texts, "json": record, **sample})
    return record["motion_prompt"]


def picture(pixels: np.ndarray, form: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form)
    return file.getvalue()


# Two levels, one block each, and a text encoder of one layer: a step takes a twentieth of a second.
TINY = presets._preset("tiny", 64, UNetParams(32, (1, 2), 1, (0, 1), 1, 2, 16), TextEncoderParams(16, 1, 2))
TINY_LOOP = LoopParams(4, 1e-3, warmup=1, decay_from=1.0, ema_decay=0.5, log_every=1, checkpoint_every=2, beta_2=0.999)
TINY_TRAINING = {
    text: ClipTrainParams(
        TINY_LOOP,
        text,
        "scratch",
        batch_size=4,
        micro_batch=2,
        size=64,
        num_frames=4,
        validation_clips=1,
        validation_every=4,
        validation_steps=2,
    )
    for text in TEXTS
}


def register_tiny() -> None:
    """For processes of their own, which no fixture reaches."""
    presets.PRESETS["tiny"], CLIP_TRAINING["tiny"] = TINY, TINY_TRAINING


@pytest.fixture
def tiny_stage(monkeypatch):
    """The stage's settings by name; the preset `tiny` is known as long as the test runs."""
    monkeypatch.setitem(presets.PRESETS, "tiny", TINY)
    monkeypatch.setitem(CLIP_TRAINING, "tiny", TINY_TRAINING)

    def stage(text="captions", **changes):
        loop = {key: changes.pop(key) for key in list(changes) if hasattr(TINY_LOOP, key)}
        return replace(TINY_TRAINING[text], **changes, loop=replace(TINY_LOOP, **loop))

    return stage


@pytest.fixture(scope="session")
def shards(write_shards, tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory):
    """A whole model of the preset `tiny` that sees its first frame, as a base to train on."""
    from followclick_core.models.autoencoder import load_autoencoder, save_autoencoder
    from followclick_core.models.bundle import weights_path
    from followclick_core.models.motion_model import MotionModel, save_motion_model
    from followclick_core.models.text_encoder import TextEncoder, save_text_encoder
    from followclick_core.models.unet import UNet, save_unet

    folder, notes = tmp_path_factory.mktemp("tiny") / "weights", {"preset": "tiny"}
    folder.mkdir()
    torch.manual_seed(0)
    unet, motion = UNet(TINY.unet), MotionModel(replace(TINY.motion, trained_frames=4))
    for module in (unet, motion):
        for parameter in module.parameters():  # nothing that begins with zero stays without gradients
            torch.nn.init.normal_(parameter, std=0.05) if not parameter.any() else None
    save_unet(folder / "unet.safetensors", unet, notes)
    save_motion_model(folder / "motion.safetensors", motion, notes)
    save_text_encoder(folder / "text_encoder.safetensors", TextEncoder(TINY.text), torch.arange(49408), notes)
    save_autoencoder(folder / "autoencoder.safetensors", load_autoencoder(weights_path("autoencoder")), notes)
    return folder


@pytest.fixture(scope="session")
def animatediff_file():
    """The function below."""
    return _animatediff_file


def _animatediff_file(encodings: int | None, middle: bool, width: int = 32) -> dict[str, torch.Tensor]:
    """A file with AnimateDiff's keys and shapes, `width` channels at full resolution instead of 320."""
    generator = torch.Generator().manual_seed(0)
    levels = [width, 2 * width, 4 * width, 4 * width]
    modules = [(f"down_blocks.{b}.motion_modules.{m}", levels[b]) for b in range(4) for m in range(2)]
    modules += [("mid_block.motion_modules.0", levels[3])] if middle else []
    modules += [(f"up_blocks.{b}.motion_modules.{m}", levels[3 - b]) for b in range(4) for m in range(3)]
    tensors = {}
    for module, c in modules:
        prefix = f"{module}.temporal_transformer."
        block = f"{prefix}transformer_blocks.0."
        shapes = {f"{prefix}norm.weight": [c], f"{prefix}norm.bias": [c]}
        for part in ("proj_in", "proj_out"):
            shapes |= {f"{prefix}{part}.weight": [c, c], f"{prefix}{part}.bias": [c]}
        for i in range(2):
            attention = f"{block}attention_blocks.{i}."
            shapes |= {f"{attention}to_{name}.weight": [c, c] for name in "qkv"}
            shapes |= {f"{attention}to_out.0.weight": [c, c], f"{attention}to_out.0.bias": [c]}
            shapes |= {f"{block}norms.{i}.weight": [c], f"{block}norms.{i}.bias": [c]}
            if encodings:
                key = f"{attention}pos_encoder.pe"
                tensors[key] = frame_positions(encodings, c, torch.device("cpu"), torch.float32)[None]
        shapes |= {f"{block}ff.net.0.proj.weight": [8 * c, c], f"{block}ff.net.0.proj.bias": [8 * c]}
        shapes |= {f"{block}ff.net.2.weight": [c, 4 * c], f"{block}ff.net.2.bias": [c]}
        shapes |= {f"{block}ff_norm.weight": [c], f"{block}ff_norm.bias": [c]}
        tensors |= {key: 0.05 * torch.randn(shape, generator=generator) for key, shape in shapes.items()}
    return tensors


@pytest.fixture(scope="session")
def art():
    """Two balls and two walls to train on, two of each to test on."""
    splits = ["train", "train", "test", "test"]
    return ArtPack(
        sprites=np.stack([round_sprite(seed) for seed in range(4)]),
        sprite_infos=[SpriteInfo(f"{i}", "ball", split) for i, split in enumerate(splits)],
        animations=np.zeros((0, 16, 64, 64, 4), np.uint8),
        animation_infos=[],
        photos=[smooth_noise(10 + i, 160, 160, 6) // 2 for i in range(4)],
        photo_infos=[PhotoInfo(f"p{i}", "a wall", "test", "CC0", split) for i, split in enumerate(splits)],
    )


def smooth_noise(seed, height, width, grain):
    import cv2

    noise = cv2.GaussianBlur(np.random.default_rng(seed).random((height, width, 3)).astype(np.float32), (0, 0), grain)
    return (255 * (noise - noise.min()) / np.ptp(noise)).astype(np.uint8)


def round_sprite(seed, size=128):
    y, x = (np.mgrid[:size, :size] + 0.5) / size * 2 - 1
    alpha = np.where(x**2 + y**2 < 0.8, 255, 0).astype(np.uint8)
    return np.concatenate([smooth_noise(seed, size, size, 5), alpha[..., None]], axis=-1)
