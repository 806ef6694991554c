"""Takes of held-out scenes as latents: sampled on a machine with a GPU, scored on any other.

`sample_takes` asks the model for every take that a folder does not hold yet; it needs neither OpenCV nor anything else
that only the scoring uses. `StoredTakes` then stands in the model's place for `generate` (takes.py), which writes the
decoded clips as if they had been made there and then. The folder holds safetensors files of at most FILE_BYTES:

    takes-0000-0039.safetensors    of scene 12, for one:
        0012/latents    float16, t 4 f h/8 w/8: the scene as it is, then its sweep and its other phrasings
        0012/mask       uint8, the mask that the click gave, eight pixels a byte
      metadata
        settings        JSON: what made the takes, the weights' checksum among it; other takes are refused
        scenes          JSON: per scene the prompts and magnitudes asked, and the seconds per take

Takes that were asked for later lie in files of their own, so one scene's may be spread over several.
"""

import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..checkpoint import load_metadata, load_safetensors, save_safetensors
from ..defaults import GUIDANCE_INTERVAL, GUIDANCE_SCALE
from ..generate import LATENT_SCALE, SamplingParams, decode_clip, generate_latents
from ..shapes import Mask
from .takes import (
    AS_THEY_ARE,
    Ask,
    HeldOutScene,
    Plan,
    Source,
    Take,
    missing_takes,
    requests_of,
    same_magnitude,
    write_scene,
)
from .workers import in_workers

FILE_BYTES = 14 * 2**20
CLIPS_AT_ONCE = 16
# What may differ between the machine that samples and the one that scores.
_UNCHECKED = ("sampled",)

Progress = Callable[[str, int], None]


@dataclass(frozen=True)
class StoredTake:
    """Where one take lies, and what was asked for it; prompt None: the scene's own, in files that state none."""

    path: Path
    number: int  # in the file, among the takes of its scene
    prompt: str | None
    magnitude: float
    seconds: float

    def answers(self, prompt: str, magnitude: float) -> bool:
        return self.prompt in (None, prompt) and same_magnitude(self.magnitude, magnitude)


@dataclass
class _SceneTakes:
    """One scene on its way into a file: its takes arrive in batches."""

    scene: HeldOutScene
    mask: Mask
    asks: list[Ask]
    latents: list[Tensor] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    @property
    def whole(self) -> bool:
        return len(self.latents) == (len(self.asks) if self.mask.any() else 0)


class LatentSampler:
    """Samples takes of many scenes in batches. Scene i starts from the noise of seed `seed` + i, as AnimatorSource's.

    Args:
        animator: An Animator.
        autocast: See SamplingParams. A batch that overflows in it is sampled anew without.
    """

    def __init__(
        self,
        animator: Any,
        seed: int = 0,
        num_frames: int = 16,
        steps: int = 25,
        guidance_scale: float = GUIDANCE_SCALE,
        autocast: torch.dtype | None = None,
        clips_at_once: int = CLIPS_AT_ONCE,
        guidance_interval: tuple[float, float] = GUIDANCE_INTERVAL,
    ):
        self.animator = animator
        self.seed = seed
        self.params = SamplingParams(
            num_frames, steps, guidance_scale, autocast=autocast, guidance_interval=guidance_interval
        )
        self.clips_at_once = clips_at_once

    def segment(self, scene: HeldOutScene) -> Mask:
        if scene.click is None:
            return scene.mask
        return self.animator.segment(scene.image, [(*scene.click, 1)]).best

    def sample(self, requests: Sequence[tuple[_SceneTakes, Ask]]) -> Tensor:
        """Latents of one batch, float16 on the CPU, n 4 f h/8 w/8."""
        latents = self._sample(requests, self.params)
        if not bool(latents.isfinite().all()):
            latents = self._sample(requests, replace(self.params, autocast=None))
        return latents.half().cpu()

    def _sample(self, requests: Sequence[tuple[_SceneTakes, Ask]], params: SamplingParams) -> Tensor:
        scenes = [takes.scene for takes, _ in requests]
        canvas = self.animator.canvas(scenes[0].image)
        return generate_latents(
            self.animator.bundle,
            torch.cat([canvas.place(scene.image) for scene in scenes]),
            torch.cat([canvas.place_mask(takes.mask) for takes, _ in requests]),
            [ask.prompt.strip() for _, ask in requests],
            [ask.magnitude * canvas.width / canvas.padded_width for _, ask in requests],
            [self.seed + scene.index for scene in scenes],
            params,
        )


def sample_takes(
    sampler: LatentSampler,
    scenes: Iterable[HeldOutScene],
    folder: str | Path,
    settings: dict[str, Any],
    plan: Plan = AS_THEY_ARE,
    first_scene: int = 0,
    max_seconds: float | None = None,
    progress: Progress | None = None,
) -> int:
    """Sample the takes that the folder does not hold yet, and write them a file at a time.

    Args:
        settings: Stored with the takes; a folder of other ones is refused.
        first_scene: Scenes before it are passed over.
        max_seconds: Stop after so long; what is whole by then is written, and the next call goes on.
        progress: Called with ("sample", scenes done).

    Returns:
        How many of the scenes are still to be sampled.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    started, present, left, done = time.monotonic(), read_index(folder, settings), 0, 0
    writer = _Writer(folder, settings)
    waiting: list[tuple[_SceneTakes, Ask]] = []
    for scene, asks in plan.asks(scenes):
        stored = present.get(scene.index, [])
        asks = [ask for ask in asks if not any(take.answers(ask.prompt, ask.magnitude) for take in stored)]
        if not asks or scene.index < first_scene:
            done += 1
            continue
        if left or (max_seconds is not None and time.monotonic() - started > max_seconds):
            left += 1
            continue
        takes = _SceneTakes(scene, sampler.segment(scene), asks)
        writer.add(takes)
        if takes.mask.any():
            waiting += [(takes, ask) for ask in asks]
        while len(waiting) >= sampler.clips_at_once:
            _take(sampler, waiting)
        done += 1
        if progress is not None:
            progress("sample", done)
    while waiting:
        _take(sampler, waiting)
    writer.close()
    return left


def _take(sampler: LatentSampler, waiting: list[tuple[_SceneTakes, Ask]]) -> None:
    """Sample the first of those that wait."""
    batch = waiting[: sampler.clips_at_once]
    del waiting[: sampler.clips_at_once]
    started = time.monotonic()
    latents = sampler.sample(batch)
    seconds = (time.monotonic() - started) / len(batch)
    for (takes, _), latent in zip(batch, latents, strict=True):
        takes.latents.append(latent)
        takes.seconds.append(round(seconds, 4))


class _Writer:
    """Collects scenes in order, and writes those that are whole whenever a file is full."""

    def __init__(self, folder: Path, settings: dict[str, Any]):
        self.folder, self.settings = folder, settings
        self._scenes: list[_SceneTakes] = []

    def add(self, takes: _SceneTakes) -> None:
        if sum(map(_bytes_of, [*self._scenes, takes])) > FILE_BYTES:
            self._write([known for known in self._scenes if known.whole])
            self._scenes = [known for known in self._scenes if not known.whole]
        self._scenes.append(takes)

    def close(self) -> None:
        self._write(self._scenes)

    def _write(self, scenes: Sequence[_SceneTakes]) -> None:
        if not scenes:
            return
        tensors: dict[str, Tensor] = {}
        for takes in scenes:
            name = f"{takes.scene.index:04d}"
            tensors[f"{name}/mask"] = torch.from_numpy(np.packbits(takes.mask))
            if takes.latents:
                tensors[f"{name}/latents"] = torch.stack(takes.latents)
        about = {
            str(takes.scene.index): {
                "prompts": [ask.prompt for ask in takes.asks],
                "magnitudes": [ask.magnitude for ask in takes.asks],
                "seconds": takes.seconds or [0.0] * len(takes.asks),
            }
            for takes in scenes
        }
        save_safetensors(
            self._free_path([takes.scene.index for takes in scenes]),
            tensors,
            {"settings": json.dumps(self.settings), "scenes": json.dumps(about)},
        )

    def _free_path(self, indices: Sequence[int]) -> Path:
        name = f"takes-{min(indices):04d}-{max(indices):04d}"
        paths = (self.folder / f"{name}{f'-{n}' if n > 1 else ''}.safetensors" for n in count(1))
        return next(path for path in paths if not path.exists())


def _bytes_of(takes: _SceneTakes) -> int:
    frames, (height, width) = len(takes.scene.frames), takes.mask.shape
    per_take = 2 * 4 * frames * -(-height // LATENT_SCALE) * -(-width // LATENT_SCALE)
    clips = len(takes.asks) if takes.mask.any() else 0
    return clips * per_take + takes.mask.size // 8 + 1024


def read_index(folder: str | Path, settings: dict[str, Any] | None = None) -> dict[int, list[StoredTake]]:
    """Scene -> its takes, for all that the folder holds.

    Raises:
        ValueError: A file was made by other settings: other weights, scenes, steps …
    """
    found: dict[int, list[StoredTake]] = {}
    for path in sorted(Path(folder).glob("takes-*.safetensors")):
        metadata = load_metadata(path)
        if settings is not None:
            _check(path, json.loads(metadata["settings"]), settings)
        for index, about in json.loads(metadata["scenes"]).items():
            prompts = about.get("prompts") or [None] * len(about["magnitudes"])  # before there were other phrasings
            takes = enumerate(zip(prompts, about["magnitudes"], about["seconds"], strict=True))
            found.setdefault(int(index), []).extend(StoredTake(path, number, *asked) for number, asked in takes)
    return found


def read_sampling(folder: str | Path) -> dict[str, Any]:
    """The settings that the takes of a folder were made with; FileNotFoundError where there are none."""
    for path in sorted(Path(folder).glob("takes-*.safetensors")):
        return json.loads(load_metadata(path)["settings"])
    raise FileNotFoundError(f"There are no takes in {folder}; sample them first (evaluate --takes … --sample-only).")


def _check(path: Path, present: dict[str, Any], settings: dict[str, Any]) -> None:
    keys = (present.keys() | settings.keys()) - set(_UNCHECKED)
    changed = sorted(key for key in keys if present.get(key) != settings.get(key))
    if changed:
        raise ValueError(
            f"{path} holds takes made with another {', '.join(changed)}; choose another folder, or the same settings."
        )


class StoredTakes:
    """A Source (takes.py) that decodes what `sample_takes` stored, with the autoencoder of the same model.

    Raises:
        ValueError: The folder was made by other settings, such as other weights.
    """

    def __init__(self, animator: Any, folder: str | Path, settings: dict[str, Any]):
        self.animator = animator
        self.folder = Path(folder)
        self._index = read_index(folder, settings)
        self._loaded: tuple[Path, dict[str, Tensor]] | None = None  # scenes come in order, so one file is in use

    def missing(self, num_scenes: int) -> list[int]:
        """Which of the first scenes the folder does not hold."""
        return [index for index in range(num_scenes) if index not in self._index]

    def animate(self, requests: Sequence[tuple[HeldOutScene, float]]) -> list[Take]:
        return [self._take(scene, magnitude) for scene, magnitude in requests]

    def autoencode(self, image: np.ndarray) -> np.ndarray:
        return self.animator.autoencode(image)

    def _take(self, scene: HeldOutScene, magnitude: float) -> Take:
        if scene.index not in self._index:
            raise ValueError(f"Scene {scene.index} is not in {self.folder}; sample it first, or ask for fewer scenes.")
        stored = self._find(scene, magnitude)
        tensors = self._load(stored.path)
        name, shape = f"{scene.index:04d}", scene.mask.shape
        mask = np.unpackbits(tensors[f"{name}/mask"].numpy(), count=scene.mask.size).reshape(shape).astype(bool)
        if f"{name}/latents" not in tensors:  # the click found nothing
            return Take(stored.magnitude, np.repeat(scene.image[None], len(scene.frames), axis=0), mask)
        latents = tensors[f"{name}/latents"][stored.number, None].float().to(self.animator.bundle.device)
        frames = self.animator.canvas(scene.image).cut(decode_clip(self.animator.bundle, latents))
        return Take(stored.magnitude, frames, mask, stored.seconds)

    def _find(self, scene: HeldOutScene, magnitude: float) -> StoredTake:
        for take in self._index[scene.index]:
            if take.answers(scene.prompt, magnitude):
                return take
        raise ValueError(
            f"'{scene.prompt}' at magnitude {magnitude:g} was not sampled for scene {scene.index} of {self.folder}; "
            "sample with as many --sweep-scenes and --unseen-phrasings: what is there already is not sampled again."
        )

    def _load(self, path: Path) -> dict[str, Tensor]:
        if self._loaded is None or self._loaded[0] != path:
            self._loaded = (path, load_safetensors(path)[0])
        return self._loaded[1]


def write_takes(
    source: Source,
    scenes: Iterable[HeldOutScene],
    out_dir: str | Path,
    settings: dict[str, Any],
    plan: Plan = AS_THEY_ARE,
    workers: int = 1,
) -> None:
    """takes.generate, shared among processes: `source` must be picklable, as StoredTakes is."""
    out_dir = Path(out_dir)
    missing = missing_takes(scenes, out_dir, settings, plan)
    for _ in in_workers(partial(_write_takes, source, out_dir), missing, workers):
        pass


def _write_takes(source: Source, out_dir: Path, missing: tuple[HeldOutScene, list[Ask]]) -> None:
    scene, asks = missing
    write_scene(out_dir, scene, asks, source.animate(requests_of(scene, asks)), source.autoencode(scene.image))
