"""The clips of the ablations, made once and encoded: every run trains on the same ones, from memory."""

import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..checkpoint import load_safetensors, save_safetensors
from ..conditioning import resize_mask
from ..data.art import ArtPack
from ..models.autoencoder import Autoencoder
from ..models.text_encoder import tokenize
from ..training.loop import step_generator
from ..training.pool import Chunk
from ..training.stages import encode_frames, roughen_mask
from .scenes import SETS, ClipParams, ClipScenes, scene_batches
from .variants import REGIONS, Variant

PART = 1000
BATCH = 20
TEXTS = ("prompt", "caption", "long_caption")


def make_clips(
    art: ArtPack,
    autoencoder: Autoencoder,
    params: ClipParams,
    folder: Path,
    workers: int,
    deadline: float,
) -> bool:
    """Write all sets into `folder`, encoded on the autoencoder's device.

    Parts appear whole, and those that are there are not made again.

    Args:
        workers: Processes that draw scenes; 0 draws in this one.
        deadline: Of time.monotonic(); past it no further part is begun.

    Returns:
        Whether all parts are there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    device = next(autoencoder.parameters()).device
    for name in SETS:
        missing = [
            (part, indices)
            for part, indices in enumerate(_parts(params.count(name)))
            if not _part_path(folder, name, part).is_file()
        ]
        scenes = ClipScenes(art, params, name) if missing else None
        for part, indices in missing:
            if time.monotonic() > deadline:
                return False
            assert scenes is not None
            batches = scene_batches(scenes, indices, BATCH, workers)
            generator = step_generator(device, part, salt=SETS[name])
            _write_part(_part_path(folder, name, part), name, batches, autoencoder, generator)
    return True


class TrainingClips:
    """The training set on a device, from which batches are drawn; it stands where a stage has its pool."""

    def __init__(self, folder: Path, params: ClipParams, device: torch.device):
        parts = [load_safetensors(_part_path(folder, "train", part))[0] for part in range(len(_parts(params.train)))]
        self.device = device
        self._data = {key: torch.cat([part[key] for part in parts]).to(device) for key in parts[0]}

    def draw(self, batch_size: int, step: int, variant: Variant) -> Chunk:
        """A random batch under the keys that MotionStage reads, as the variant wants to have them."""
        count = len(self._data["latents"])
        index = torch.randperm(count, device=self.device, generator=step_generator(self.device, step))[:batch_size]
        drawn = {key: value[index] for key, value in self._data.items()}
        return {
            "latents": drawn["latents"],
            "mask": drawn[variant.region],
            "swept": drawn["swept"],
            "magnitude": drawn[variant.condition],
            "tokens": drawn["prompt" if variant.motion_captions else "long_caption"].long(),
            "captions": drawn["caption"].long(),
        }

    def mean_magnitude(self, fps: float) -> float:
        """Of the clips of one frame rate: what a model that knows the rate alone can expect."""
        return float(self._data["magnitude"][self._data["fps"] == fps].mean())


class HeldOutClips:
    """One of the other sets, on a device: frames, masks at full size, latents, numbers and texts."""

    def __init__(self, folder: Path, params: ClipParams, name: str, device: torch.device):
        loaded = [load_safetensors(_part_path(folder, name, part)) for part in range(len(_parts(params.count(name))))]
        self.prompts = [prompt for _, notes in loaded for prompt in json.loads(notes["prompts"])]
        self.tensors = {key: torch.cat([part[key] for part, _ in loaded]).to(device) for key in loaded[0][0]}

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, key: str) -> Tensor:
        """By key, floats; frames are 0..1."""
        values = self.tensors[key].float()
        return values / 255 if key == "frames" else values


def _write_part(
    path: Path,
    name: str,
    batches: Iterable[dict[str, Any]],
    autoencoder: Autoencoder,
    generator: torch.Generator,
) -> None:
    columns: dict[str, list[Tensor]] = {}
    prompts: list[str] = []
    device = generator.device
    for scenes in batches:
        scenes = {key: value.to(device) if isinstance(value, Tensor) else value for key, value in scenes.items()}
        latents = encode_frames(autoencoder, scenes["frames"].float() / 255)
        made = _training_rows(scenes, latents, generator) if name == "train" else _held_out_rows(scenes, latents)
        for key, value in made.items():
            columns.setdefault(key, []).append(value.cpu())
        prompts += scenes["prompt"]
    tensors = {key: torch.cat(values).contiguous() for key, values in columns.items()}
    save_safetensors(path, tensors, {"prompts": json.dumps(prompts)})


def _training_rows(scenes: dict[str, Any], latents: Tensor, generator: torch.Generator) -> Chunk:
    size = latents.shape[-2:]
    return {
        "latents": latents.bfloat16(),
        **{rule: resize_mask(roughen_mask(scenes[rule].float(), generator), size).bfloat16() for rule in REGIONS},
        "swept": F.adaptive_max_pool2d(scenes["swept"].float(), size).bfloat16(),
        "magnitude": scenes["magnitude"].float(),
        "fps": scenes["fps"],
        **{text: tokenize(scenes[text]).int() for text in TEXTS},
    }


def _held_out_rows(scenes: dict[str, Any], latents: Tensor) -> Chunk:
    keys = ("frames", "silhouette", "swept", "distractor", "magnitude", "fps", "direction")
    return {
        **{key: scenes[key] for key in keys},
        "latents": latents.bfloat16(),
        "tokens": tokenize(scenes["prompt"]),
    }


def _parts(count: int) -> list[range]:
    return [range(start, min(start + PART, count)) for start in range(0, count, PART)]


def _part_path(folder: Path, name: str, part: int) -> Path:
    return folder / f"{name}-{part:03d}.safetensors"
