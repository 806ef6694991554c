"""The held-out evaluation: scenes of sprites and photos that training never saw, one click and one verb each.

`evaluate_scenes` asks a model for a clip of every scene, measures the clips by their optical flow, and holds the means
against the bars. Its two halves also run apart: `generate` (takes.py) on the machine with the model, `score`
(scoring.py) anywhere; or `sample_scenes` stores latents on a machine with a GPU, which `evaluate_scenes` decodes and
scores on any other. `TruthSource` and `StillSource` in the model's place show what the measure gives to the true clips,
the most that can be reached, and to a photo that does not move.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..data.art import ArtPack
from ..data.scenes import SceneBatch, SceneGenerator, SceneParams
from ..data.verbs import VERBS
from .latents import LatentSampler, StoredTakes, read_sampling, sample_takes
from .metrics import edge_distance
from .report import write_report
from .scoring import Evaluation, score
from .takes import HeldOutScene, Source, Take, generate

Progress = Callable[[str, int, int], None]

# Verbs that every magnitude of the sweep can be asked of: they move the object as a whole, as far as one likes.
SWEEP_VERBS = ("move left", "move right", "move up", "move down", "fall", "jump", "shake", "run", "fly", "swim")


def evaluate_scenes(
    animator: Any,
    art: ArtPack,
    num_scenes: int = 100,
    seed: int = 0,
    num_frames: int = 16,
    steps: int = 25,
    guidance_scale: float = 7.5,
    *,
    out_dir: str | Path,
    size: int = 256,
    sweep_scenes: int = 12,
    verbs: Sequence[str] = VERBS,
    takes: str | Path | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Generate, score, and write report.json, report.md, magnitude.png and contact_sheet.png into `out_dir`.

    Args:
        animator: An Animator.
        size: Of the scenes in pixels; the model's own size.
        sweep_scenes: How many scenes are also asked for the magnitudes 2, 4, 8 and 16.
        verbs: Those that the model was trained on: what the scenes ask for and the verb rule chooses from.
        takes: A folder that `sample_scenes` filled with the same arguments: nothing is sampled, its takes are scored.
        progress: Called with ("generate" or "score", scenes done, scenes in all).

    Raises:
        ValueError: `takes` holds those of other weights or settings, or lacks scenes.
    """
    settings = {
        "model": animator.name,
        # Clips of other weights under the same name must not be taken for this model's.
        "weights": animator.digest(),
        "num_scenes": num_scenes,
        "seed": seed,
        "size": size,
        "num_frames": num_frames,
        "steps": steps,
        "guidance_scale": guidance_scale,
        "verbs": list(verbs),
    }
    source: Source
    if takes is None:
        source = AnimatorSource(animator, num_frames=num_frames, steps=steps, guidance_scale=guidance_scale, seed=seed)
    else:
        sampling = _sampling_settings(animator, art, seed, num_frames, steps, guidance_scale, size, verbs)
        source = StoredTakes(animator, takes, sampling)
        if missing := source.missing(num_scenes):
            raise ValueError(
                f"{takes} lacks {len(missing)} of the {num_scenes} scenes, the first of them number {missing[0]}; "
                "sample them first, or ask for fewer scenes."
            )
        settings |= {"sampled": read_sampling(takes)["sampled"]}
    scenes = held_out_scenes(art, num_scenes, seed, size, num_frames, verbs)
    generate(source, _counted(scenes, num_scenes, progress), out_dir, settings, SWEEP_VERBS, sweep_scenes)
    evaluation = score(out_dir, verbs, progress)
    write_report(evaluation, out_dir)
    return evaluation


def sample_scenes(
    animator: Any,
    art: ArtPack,
    num_scenes: int = 100,
    seed: int = 0,
    num_frames: int = 16,
    steps: int = 25,
    guidance_scale: float = 7.5,
    *,
    takes: str | Path,
    size: int = 256,
    sweep_scenes: int = 60,
    first_scene: int = 0,
    verbs: Sequence[str] = VERBS,
    max_seconds: float | None = None,
    progress: Progress | None = None,
) -> int:
    """The first half of evaluate_scenes, for a machine with a GPU and without OpenCV: sample, as latents, into `takes`.

    Args:
        first_scene: Scenes before it are passed over: they were sampled elsewhere.
        max_seconds: As in sample_takes.
        progress: Called with ("sample", scenes done, scenes in all).

    Returns:
        How many scenes are still to be sampled.
    """
    settings = _sampling_settings(animator, art, seed, num_frames, steps, guidance_scale, size, verbs)
    on_gpu = animator.bundle.device.type == "cuda"
    sampler = LatentSampler(
        animator, seed, num_frames, steps, guidance_scale, autocast=torch.float16 if on_gpu else None
    )
    settings["sampled"] = "on a GPU, half precision" if on_gpu else "on a CPU, single precision"
    return sample_takes(
        sampler,
        held_out_scenes(art, num_scenes, seed, size, num_frames, verbs),
        takes,
        settings,
        SWEEP_VERBS,
        sweep_scenes,
        first_scene,
        max_seconds,
        progress and (lambda stage, done: progress(stage, done, num_scenes)),
    )


def _sampling_settings(
    animator: Any,
    art: ArtPack,
    seed: int,
    num_frames: int,
    steps: int,
    guidance_scale: float,
    size: int,
    verbs: Sequence[str],
) -> dict[str, Any]:
    """All that decides what stored takes show."""
    infos = [asdict(info) for info in (*art.sprite_infos, *art.animation_infos, *art.photo_infos)]
    return {
        "weights": animator.digest(),
        "segmenter": animator.segmenter.digest(),
        "art": hashlib.sha256(json.dumps(infos, sort_keys=True).encode()).hexdigest()[:16],
        "seed": seed,
        "size": size,
        "num_frames": num_frames,
        "steps": steps,
        "guidance_scale": guidance_scale,
        "verbs": list(verbs),
    }


def held_out_scenes(
    art: ArtPack, num: int, seed: int = 0, size: int = 256, num_frames: int = 16, verbs: Sequence[str] = VERBS
) -> Iterator[HeldOutScene]:
    """The same `num` scenes of the test split for the same arguments, on every machine: they are drawn on the CPU."""
    generator = SceneGenerator(
        art, SceneParams(size=size, num_frames=num_frames, verbs=tuple(verbs)), "cpu", split="test"
    )
    for index in range(num):
        yield _scene(index, generator.sample(1, seed=seed * 1_000_003 + index))


class AnimatorSource:
    """Clips by a model. Scene i starts from the noise of seed `seed` + i, whatever the magnitude."""

    def __init__(self, animator: Any, seed: int = 0, **settings: Any):
        self.animator = animator
        self.seed = seed
        self.settings = settings

    def animate(self, requests: Sequence[tuple[HeldOutScene, float]]) -> list[Take]:
        return [self._take(scene, magnitude) for scene, magnitude in requests]

    def autoencode(self, image: np.ndarray) -> np.ndarray:
        return self.animator.autoencode(image)

    def _take(self, scene: HeldOutScene, magnitude: float) -> Take:
        started = time.monotonic()
        mask = self.animator.segment(scene.image, [(*scene.click, 1)]).best
        if not mask.any():  # a click that finds nothing is a failure of the model, not the end of its evaluation
            return Take(magnitude, np.repeat(scene.image[None], len(scene.frames), axis=0), mask)
        clip = self.animator.animate_mask(
            scene.image, mask, scene.prompt, magnitude, seed=self.seed + scene.index, **self.settings
        )
        return Take(magnitude, clip.frames, mask, round(time.monotonic() - started, 3))


class TruthSource:
    """The true clips: the upper bound of every figure."""

    def animate(self, requests: Sequence[tuple[HeldOutScene, float]]) -> list[Take]:
        return [Take(scene.magnitude, scene.frames, scene.mask) for scene, _ in requests]

    def autoencode(self, image: np.ndarray) -> np.ndarray:
        return image


class StillSource(TruthSource):
    """A photo that does not move: what a model gets that does nothing."""

    def animate(self, requests: Sequence[tuple[HeldOutScene, float]]) -> list[Take]:
        return [
            Take(magnitude, np.repeat(scene.image[None], len(scene.frames), axis=0), scene.mask)
            for scene, magnitude in requests
        ]


def deepest_point(mask: np.ndarray) -> tuple[int, int]:
    """The pixel (x, y) of a bool mask that is farthest from its edge: where one clicks, and how SAM was evaluated."""
    depth = edge_distance(mask)
    y, x = np.unravel_index(int(depth.argmax()), depth.shape)
    return int(x), int(y)


def _scene(index: int, batch: SceneBatch) -> HeldOutScene:
    frames = (batch.frames[0].permute(1, 2, 3, 0) * 255).round().clamp(0, 255).byte().numpy()
    mask = batch.object_masks[0, 0].numpy() > 0.5
    return HeldOutScene(
        index=index,
        image=frames[0],
        mask=mask,
        distractors=batch.distractor_mask[0].numpy() > 0.5,
        click=deepest_point(mask),
        prompt=batch.motion_prompts[0],
        verb=batch.verbs[0],
        magnitude=float(batch.magnitude[0]),
        frames=frames,
    )


def _counted(scenes: Iterator[HeldOutScene], total: int, progress: Progress | None) -> Iterator[HeldOutScene]:
    for done, scene in enumerate(scenes, start=1):
        yield scene
        if progress is not None:
            progress("generate", done, total)


__all__ = [
    "AnimatorSource",
    "Evaluation",
    "HeldOutScene",
    "Source",
    "StillSource",
    "Take",
    "TruthSource",
    "evaluate_scenes",
    "generate",
    "held_out_scenes",
    "sample_scenes",
    "score",
]
