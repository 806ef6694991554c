"""Takes of held-out scenes as latents: sampled on a machine with a GPU, scored on any other.

`sample_takes` asks the model for every take that a folder does not hold yet; it needs neither OpenCV nor anything else
that only the scoring uses. `StoredTakes` then stands in the model's place for `generate` (takes.py), which writes the
decoded clips as if they had been made there and then. The folder holds safetensors files of at most FILE_BYTES:

    takes-0000-0039.safetensors    of scene 12, for one:
        0012/latents    float16, t 4 f h/8 w/8: the take at the scene's own magnitude, then those of the sweep
        0012/mask       uint8, the mask that the click gave, eight pixels a byte
      metadata
        settings        JSON: what made the takes, the weights' checksum among it; other takes are refused
        scenes          JSON: per scene the magnitudes asked and the seconds per take
"""

import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..checkpoint import load_metadata, load_safetensors, save_safetensors
from ..generate import LATENT_SCALE, SamplingParams, decode_clip, generate_latents
from ..shapes import Mask
from .takes import SWEEP_MAGNITUDES, HeldOutScene, Take

FILE_BYTES = 14 * 2**20
CLIPS_AT_ONCE = 16
# What may differ between the machine that samples and the one that scores.
_UNCHECKED = ("sampled",)
_TOLERANCE = 0.01  # of magnitudes: scenes are drawn in floats, whose last bits depend on the processor

Progress = Callable[[str, int], None]


@dataclass
class _SceneTakes:
    """One scene on its way into a file: its takes arrive in batches."""

    scene: HeldOutScene
    mask: Mask
    magnitudes: list[float]
    latents: list[Tensor] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    @property
    def whole(self) -> bool:
        return len(self.latents) == (len(self.magnitudes) if self.mask.any() else 0)


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
        guidance_scale: float = 7.5,
        autocast: torch.dtype | None = None,
        clips_at_once: int = CLIPS_AT_ONCE,
    ):
        self.animator = animator
        self.seed = seed
        self.params = SamplingParams(num_frames, steps, guidance_scale, autocast=autocast)
        self.clips_at_once = clips_at_once

    def segment(self, scene: HeldOutScene) -> Mask:
        return self.animator.segment(scene.image, [(*scene.click, 1)]).best

    def sample(self, requests: Sequence[tuple[_SceneTakes, float]]) -> Tensor:
        """Latents of one batch, float16 on the CPU, n 4 f h/8 w/8."""
        latents = self._sample(requests, self.params)
        if not bool(latents.isfinite().all()):
            without = SamplingParams(self.params.num_frames, self.params.steps, self.params.guidance_scale)
            latents = self._sample(requests, without)
        return latents.half().cpu()

    def _sample(self, requests: Sequence[tuple[_SceneTakes, float]], params: SamplingParams) -> Tensor:
        scenes = [takes.scene for takes, _ in requests]
        canvas = self.animator.canvas(scenes[0].image)
        return generate_latents(
            self.animator.bundle,
            torch.cat([canvas.place(scene.image) for scene in scenes]),
            torch.cat([canvas.place_mask(takes.mask) for takes, _ in requests]),
            [scene.prompt.strip() for scene in scenes],
            [magnitude * canvas.width / canvas.padded_width for _, magnitude in requests],
            [self.seed + scene.index for scene in scenes],
            params,
        )


def sample_takes(
    sampler: LatentSampler,
    scenes: Iterable[HeldOutScene],
    folder: str | Path,
    settings: dict[str, Any],
    sweep_verbs: Sequence[str] = (),
    sweep_scenes: int = 0,
    first_scene: int = 0,
    max_seconds: float | None = None,
    progress: Progress | None = None,
) -> int:
    """Sample the takes of every scene that the folder does not hold yet, and write them a file at a time.

    Args:
        settings: Stored with the takes; a folder of other ones is refused.
        sweep_verbs, sweep_scenes: As in takes.generate.
        first_scene: Scenes before it are passed over.
        max_seconds: Stop after so long; what is whole by then is written, and the next call goes on.
        progress: Called with ("sample", scenes done).

    Returns:
        How many of the scenes are still to be sampled.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    started, present, swept, left, done = time.monotonic(), set(read_index(folder, settings)), 0, 0, 0
    writer = _Writer(folder, settings)
    waiting: list[tuple[_SceneTakes, float]] = []
    for scene in scenes:
        sweep = scene.verb in sweep_verbs and swept < sweep_scenes
        swept += sweep
        if scene.index in present or scene.index < first_scene:
            done += 1
            continue
        if left or (max_seconds is not None and time.monotonic() - started > max_seconds):
            left += 1
            continue
        takes = _SceneTakes(scene, sampler.segment(scene), [scene.magnitude, *(SWEEP_MAGNITUDES if sweep else ())])
        writer.add(takes)
        if takes.mask.any():
            waiting += [(takes, magnitude) for magnitude in takes.magnitudes]
        while len(waiting) >= sampler.clips_at_once:
            _take(sampler, waiting)
        done += 1
        if progress is not None:
            progress("sample", done)
    while waiting:
        _take(sampler, waiting)
    writer.close()
    return left


def _take(sampler: LatentSampler, waiting: list[tuple[_SceneTakes, float]]) -> None:
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
                "magnitudes": takes.magnitudes,
                "seconds": takes.seconds or [0.0] * len(takes.magnitudes),
            }
            for takes in scenes
        }
        indices = [takes.scene.index for takes in scenes]
        save_safetensors(
            self.folder / f"takes-{min(indices):04d}-{max(indices):04d}.safetensors",
            tensors,
            {"settings": json.dumps(self.settings), "scenes": json.dumps(about)},
        )


def _bytes_of(takes: _SceneTakes) -> int:
    frames, (height, width) = len(takes.scene.frames), takes.mask.shape
    per_take = 2 * 4 * frames * -(-height // LATENT_SCALE) * -(-width // LATENT_SCALE)
    clips = len(takes.magnitudes) if takes.mask.any() else 0
    return clips * per_take + takes.mask.size // 8 + 1024


def read_index(folder: str | Path, settings: dict[str, Any] | None = None) -> dict[int, tuple[Path, dict[str, Any]]]:
    """Scene -> its file, and the magnitudes and seconds of its takes, for all that the folder holds.

    Raises:
        ValueError: A file was made by other settings: other weights, scenes, steps …
    """
    found: dict[int, tuple[Path, dict[str, Any]]] = {}
    for path in sorted(Path(folder).glob("takes-*.safetensors")):
        metadata = load_metadata(path)
        if settings is not None:
            _check(path, json.loads(metadata["settings"]), settings)
        for index, about in json.loads(metadata["scenes"]).items():
            found[int(index)] = (path, about)
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
        path, about = self._index[scene.index]
        number = int(np.argmin(np.abs(np.array(about["magnitudes"]) - magnitude)))
        stored = about["magnitudes"][number]
        if abs(stored - magnitude) > _TOLERANCE * (1 + magnitude):
            raise ValueError(
                f"Magnitude {magnitude:g} of scene {scene.index} is not in {self.folder} (there are "
                f"{', '.join(f'{value:g}' for value in about['magnitudes'])}); sample it with as many --sweep-scenes."
            )
        tensors = self._load(path)
        name, shape = f"{scene.index:04d}", scene.mask.shape
        mask = np.unpackbits(tensors[f"{name}/mask"].numpy(), count=scene.mask.size).reshape(shape).astype(bool)
        if f"{name}/latents" not in tensors:  # the click found nothing
            return Take(stored, np.repeat(scene.image[None], len(scene.frames), axis=0), mask)
        latents = tensors[f"{name}/latents"][number : number + 1].float().to(self.animator.bundle.device)
        frames = self.animator.canvas(scene.image).cut(decode_clip(self.animator.bundle, latents))
        return Take(stored, frames, mask, about["seconds"][number])

    def _load(self, path: Path) -> dict[str, Tensor]:
        if self._loaded is None or self._loaded[0] != path:
            self._loaded = (path, load_safetensors(path)[0])
        return self._loaded[1]
