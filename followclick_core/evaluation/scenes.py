"""The held-out evaluation: scenes of sprites and photos that training never saw, one click and one verb each.

`evaluate_scenes` asks a model for a clip of every scene, measures the clips by their optical flow, and holds the means
against the bars. Its two halves also run apart: `generate` (takes.py) on the machine with the model, `score`
(scoring.py) anywhere; or `sample_scenes` stores latents on a machine with a GPU, which `evaluate_scenes` decodes and
scores on any other. What stands in a model's place to show what the measure gives is in references.py.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..data.art import ArtPack
from ..data.scenes import SceneBatch, SceneGenerator, SceneParams
from ..data.verbs import VERBS
from ..defaults import GUIDANCE_INTERVAL, GUIDANCE_SCALE, WHOLE_SAMPLING
from ..generate import fastest_dtype
from ..shapes import Mask
from .latents import LatentSampler, StoredTakes, read_sampling, sample_takes, write_takes
from .metrics import edge_distance, mean_figure
from .perceptual import Extractors, JudgedClip, perceptual_figures
from .photo_clicks import click_photos
from .references import reference_source
from .report import write_report
from .scoring import Evaluation, score
from .takes import HeldOutScene, Plan, Source, Take, generate, read_scenes

Progress = Callable[[str, int, int], None]

# Verbs that every magnitude of the sweep can be asked of: they move the object as a whole, as far as one likes.
SWEEP_VERBS = ("move left", "move right", "move up", "move down", "fall", "jump", "shake", "run", "fly", "swim")


@dataclass(frozen=True, eq=False)
class _Run:
    """Which clips are made: what both halves of the evaluation are told."""

    animator: Any
    art: ArtPack
    num_scenes: int
    seed: int
    num_frames: int
    steps: int
    guidance_scale: float
    size: int
    verbs: Sequence[str]
    guidance_interval: tuple[float, float]
    reference: str | None = None

    def scenes(self) -> Iterator[HeldOutScene]:
        return held_out_scenes(self.art, self.num_scenes, self.seed, self.size, self.num_frames, self.verbs)

    def source(self) -> Source:
        if self.reference is not None:
            return reference_source(self.reference, self.animator)
        return AnimatorSource(
            self.animator,
            num_frames=self.num_frames,
            steps=self.steps,
            guidance_scale=self.guidance_scale,
            guidance_interval=self.guidance_interval,
            seed=self.seed,
        )

    def stored_source(self, takes: str | Path) -> StoredTakes:
        """What the folder holds in the model's place; ValueError where it lacks scenes."""
        source = StoredTakes(self.animator, takes, self.sampling_settings())
        if missing := source.missing(self.num_scenes):
            raise ValueError(
                f"{takes} lacks {len(missing)} of the {self.num_scenes} scenes, the first of them number {missing[0]}; "
                "sample them first, or ask for fewer scenes."
            )
        return source

    def settings(self) -> dict[str, Any]:
        """Of written clips. Those of other weights under the same name must not be taken for this model's."""
        return {
            "model": self.animator.name,
            "weights": self.animator.digest(),
            "num_scenes": self.num_scenes,
            **self._common_settings(),
            **({"reference": self.reference} if self.reference else {}),
        }

    def sampling_settings(self) -> dict[str, Any]:
        """All that decides what stored takes show."""
        infos = [asdict(info) for info in (*self.art.sprite_infos, *self.art.animation_infos, *self.art.photo_infos)]
        return {
            "weights": self.animator.digest(),
            "segmenter": self.animator.segmenter.digest(),
            "art": hashlib.sha256(json.dumps(infos, sort_keys=True).encode()).hexdigest()[:16],
            **self._common_settings(),
        }

    def _common_settings(self) -> dict[str, Any]:
        return {
            "seed": self.seed,
            "size": self.size,
            "num_frames": self.num_frames,
            "steps": self.steps,
            "guidance_scale": self.guidance_scale,
            "verbs": list(self.verbs),
            "noise": MEAN_FREE,
            **interval_setting(self.guidance_interval),
        }


# Clips of before have independent noise, and say nothing of it.
MEAN_FREE = "without its mean over time"


def interval_setting(interval: tuple[float, float]) -> dict[str, Any]:
    """What settings say of it; nothing where guidance is always on, as clips of before there was a choice say."""
    return {} if tuple(interval) == WHOLE_SAMPLING else {"guidance_interval": list(interval)}


def evaluate_scenes(
    animator: Any,
    art: ArtPack,
    num_scenes: int = 100,
    seed: int = 0,
    num_frames: int = 16,
    steps: int = 25,
    guidance_scale: float = GUIDANCE_SCALE,
    guidance_interval: tuple[float, float] = GUIDANCE_INTERVAL,
    *,
    out_dir: str | Path,
    size: int = 256,
    sweep_scenes: int = 12,
    unseen_scenes: int = 0,
    verbs: Sequence[str] = VERBS,
    takes: str | Path | None = None,
    reference: str | None = None,
    workers: int = 1,
    extractors: Extractors | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Generate, score, and write report.json, report.md, magnitude.png and contact_sheet.png into `out_dir`.

    Clips that lie there already stay and are scored too: a later call with more sweeps or phrasings makes only those.

    Args:
        animator: An Animator.
        size: Of the scenes in pixels; the model's own size.
        sweep_scenes: How many scenes are also asked for the magnitudes 2, 4, 8 and 16.
        unseen_scenes: How many are also asked for in words that training never used (phrasings.py).
        verbs: Those that the model was trained on: what the scenes ask for and the verb rule chooses from.
        takes: A folder that `sample_scenes` filled with the same arguments: nothing is sampled, its takes are scored.
        reference: Of REFERENCES (references.py), whose clips stand in the model's place.
        extractors: The models of the paper's measures, as far as they are at hand (perceptual.py).
        workers: Processes that decode `takes` and score.
        progress: Called with ("generate" or "score", scenes done, scenes in all).

    Raises:
        ValueError: `takes` or `out_dir` holds those of other weights or settings, or `takes` lacks some; there is no
            such reference.
    """
    run = _Run(
        animator, art, num_scenes, seed, num_frames, steps, guidance_scale, size, verbs, guidance_interval, reference
    )
    _make_clips(run, out_dir, Plan(SWEEP_VERBS, sweep_scenes, unseen_scenes), takes, workers, progress)
    evaluation = _with_real_clicks(score(out_dir, verbs, progress, workers), animator, art)
    evaluation = with_perceptual_figures(evaluation, out_dir, extractors or Extractors(), run.scenes(), progress)
    write_report(evaluation, out_dir)
    return evaluation


def _make_clips(
    run: _Run, out_dir: str | Path, plan: Plan, takes: str | Path | None, workers: int, progress: Progress | None
) -> None:
    scenes = _counted(run.scenes(), run.num_scenes, progress)
    if takes is None:
        generate(run.source(), scenes, out_dir, run.settings(), plan)
        return
    source = run.stored_source(takes)
    settings = run.settings() | {"sampled": read_sampling(takes)["sampled"]}
    write_takes(source, scenes, out_dir, settings, plan, workers)


def _with_real_clicks(evaluation: Evaluation, animator: Any, art: ArtPack) -> Evaluation:
    photos = click_photos(animator, art)
    clicks = mean_figure(f"click mask IoU on real photos ({len(photos)})", photos.values(), bar=0.70)
    return replace(evaluation, figures=(*evaluation.figures, clicks))


def with_perceptual_figures(
    evaluation: Evaluation,
    out_dir: str | Path,
    extractors: Extractors,
    truth: Iterable[HeldOutScene] = (),
    progress: Progress | None = None,
) -> Evaluation:
    """The evaluation with what the extractors measure on its clips; `truth` holds the true clips, in order."""
    if not extractors:
        return evaluation
    clips = _judged(out_dir, truth, len(evaluation.scenes), progress)
    return replace(evaluation, figures=evaluation.figures + perceptual_figures(extractors, clips))


def _judged(
    out_dir: str | Path, truth: Iterable[HeldOutScene], total: int, progress: Progress | None
) -> Iterator[JudgedClip]:
    for done, (scene, true) in enumerate(zip_longest(read_scenes(out_dir), truth), start=1):
        yield JudgedClip(scene.takes[0].frames, scene.image, scene.prompt, true.frames if true else None)
        if progress is not None:
            progress("judge", done, total)


def sample_scenes(
    animator: Any,
    art: ArtPack,
    num_scenes: int = 100,
    seed: int = 0,
    num_frames: int = 16,
    steps: int = 25,
    guidance_scale: float = GUIDANCE_SCALE,
    guidance_interval: tuple[float, float] = GUIDANCE_INTERVAL,
    *,
    takes: str | Path,
    size: int = 256,
    sweep_scenes: int = 60,
    unseen_scenes: int = 0,
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
    run = _Run(animator, art, num_scenes, seed, num_frames, steps, guidance_scale, size, verbs, guidance_interval)
    on_gpu = animator.bundle.device.type == "cuda"
    autocast = torch.float16 if on_gpu else fastest_dtype(animator.bundle.device)
    sampler = LatentSampler(
        animator,
        seed,
        num_frames,
        steps,
        guidance_scale,
        autocast=autocast,
        guidance_interval=guidance_interval,
    )
    on_cpu = "single precision" if autocast is None else "bfloat16 products"
    sampled = "on a GPU, half precision" if on_gpu else f"on a CPU, {on_cpu}"
    return sample_takes(
        sampler,
        run.scenes(),
        takes,
        run.sampling_settings() | {"sampled": sampled},
        Plan(SWEEP_VERBS, sweep_scenes, unseen_scenes),
        first_scene,
        max_seconds,
        progress and (lambda stage, done: progress(stage, done, num_scenes)),
    )


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

    def region(self, scene: HeldOutScene) -> Mask:
        """What the model is given: the mask of the click."""
        return self.animator.segment(scene.image, [(*scene.click, 1)]).best if scene.click else scene.mask

    def _take(self, scene: HeldOutScene, magnitude: float) -> Take:
        started = time.monotonic()
        mask = self.region(scene)
        if not mask.any():  # a click that finds nothing is a failure of the model, not the end of its evaluation
            return Take(magnitude, np.repeat(scene.image[None], len(scene.frames), axis=0), mask)
        clip = self.animator.animate_mask(
            scene.image, mask, scene.prompt, magnitude, seed=self.seed + scene.index, **self.settings
        )
        return Take(magnitude, clip.frames, mask, round(time.monotonic() - started, 3))


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
    "Take",
    "evaluate_scenes",
    "generate",
    "held_out_scenes",
    "sample_scenes",
    "score",
]
