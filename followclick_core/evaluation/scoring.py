"""Measure the takes of held-out scenes and hold their means against the bars.

Everything is read off the clip's optical flow inside and outside the *true* silhouette of the target, so a wrong click
mask shows as motion in the wrong place, not as a change of the measure.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..data.verbs import VERBS
from ..flow.magnitude import REFERENCE_WIDTH, object_speeds, psnr, report_motion
from ..flow.tracks import clip_flows, follow
from .metrics import Figure, figure_of, linear_fit, mask_iou, mean_absolute_error, mean_figure, spearman
from .phrasings import KINDS
from .takes import SceneTakes, read_scene, read_settings, scene_files
from .verbs import recognise_verb
from .workers import in_workers

Progress = Callable[[str, int, int], None]

EQUAL_TO_THE_EYE = 40.0  # dB: what lies above it is no loss


@dataclass(frozen=True)
class SceneScore:
    """One scene's figures: magnitudes in px/frame at 512 px of width, PSNR in dB; None: nothing to measure it on."""

    index: int
    verb: str
    prompt: str
    recognised: str
    magnitude_asked: float
    magnitude: float
    leak: float
    energy_share: float
    energy_share_above_floor: float | None
    distractor_motion: float | None
    background_psnr: float | None  # the worst frame's, against the clip's own frame 0
    background_psnr_photo: float | None  # the worst frame's, against the photo
    background_psnr_round_trip: float | None  # the autoencoder's round trip of the photo, at the same pixels
    target_psnr_photo: float  # frame 0 inside the target
    target_psnr_round_trip: float
    i1_mse: float  # frame 0 against the photo, mean of squared 8-bit levels
    i1_mse_round_trip: float  # the same of the photo through the autoencoder
    click_iou: float | None
    seconds: float
    sweep: tuple[tuple[float, float], ...] = ()  # (magnitude asked, measured)
    unseen: tuple[tuple[str, str, str], ...] = ()  # (kind, prompt, verb recognised) of phrasings.KINDS


@dataclass(frozen=True)
class Evaluation:
    settings: dict[str, Any]
    scenes: tuple[SceneScore, ...]
    figures: tuple[Figure, ...]

    def figure(self, name: str) -> Figure:
        return next(figure for figure in self.figures if figure.name == name)


def score(
    out_dir: str | Path, verbs: Sequence[str] = VERBS, progress: Progress | None = None, workers: int = 1
) -> Evaluation:
    """Measure every take that `generate` wrote into `out_dir`.

    Args:
        verbs: What the verb rule chooses from.
        progress: Called with ("score", scenes done, scenes in all).
        workers: Processes among which the scenes are shared.
    """
    settings = read_settings(out_dir)
    scores = []
    for scored in in_workers(partial(_score_file, verbs=tuple(verbs)), scene_files(out_dir), workers):
        scores.append(scored)
        if progress is not None:
            progress("score", len(scores), settings.get("num_scenes", len(scores)))
    if not scores:
        raise FileNotFoundError(f"There is no whole scene in {out_dir}; generate the clips to score first.")
    return Evaluation(settings, tuple(scores), figures_of(scores))


def _score_file(path: Path, verbs: Sequence[str]) -> SceneScore:
    return score_scene(read_scene(path), verbs)


def score_scene(scene: SceneTakes, verbs: Sequence[str] = VERBS) -> SceneScore:
    """Every figure of one scene, off its first take; the others give the magnitude sweep."""
    main = scene.takes[0]
    flows = clip_flows(main.frames)
    tracks = follow(main.frames, scene.mask, flows)
    motion = report_motion(main.frames, scene.mask, flows, tracks)
    background = ~motion.swept
    photo_psnr = [psnr(frame[background], scene.image[background]) for frame in main.frames] if background.any() else []
    return SceneScore(
        index=scene.index,
        verb=scene.verb,
        prompt=scene.prompt,
        recognised=recognise_verb(main.frames, scene.mask, verbs, tracks),
        magnitude_asked=main.magnitude,
        magnitude=motion.inside,
        leak=motion.outside,
        energy_share=motion.energy_share,
        energy_share_above_floor=motion.energy_share_above_floor,
        distractor_motion=_mean_flow(flows, scene.distractors & background),
        background_psnr=motion.background_psnr,
        background_psnr_photo=min(photo_psnr, default=None),
        background_psnr_round_trip=psnr(scene.round_trip[background], scene.image[background]) if photo_psnr else None,
        target_psnr_photo=psnr(main.frames[0][scene.mask], scene.image[scene.mask]),
        target_psnr_round_trip=psnr(scene.round_trip[scene.mask], scene.image[scene.mask]),
        i1_mse=mean_squared_error(main.frames[0], scene.image),
        i1_mse_round_trip=mean_squared_error(scene.round_trip, scene.image),
        click_iou=mask_iou(main.mask, scene.mask) if scene.click else None,
        seconds=main.seconds,
        sweep=tuple(
            (take.magnitude, _magnitude(take.frames, scene.mask)) for take in scene.takes if take.kind == "sweep"
        ),
        unseen=tuple(
            (take.kind, take.prompt, recognise_verb(take.frames, scene.mask, verbs))
            for take in scene.takes
            if take.kind in KINDS
        ),
    )


def figures_of(scores: Sequence[SceneScore]) -> tuple[Figure, ...]:
    """The means over scenes, with the bars of the project."""
    photo = [(s.background_psnr_round_trip, s.background_psnr_photo) for s in scores]
    return (
        mean_figure(
            "region obedience: energy share inside the swept region", (s.energy_share for s in scores), bar=0.92
        ),
        mean_figure("the same, flow above the noise floor", (s.energy_share_above_floor for s in scores)),
        _ratio_figure(scores),
        mean_figure("background against frame 0, worst frame (dB)", (s.background_psnr for s in scores), bar=34.0),
        mean_figure("scenes whose every frame's background has 34 dB", (_keeps_34_db(s) for s in scores)),
        mean_figure("background against the photo, worst frame (dB)", (s.background_psnr_photo for s in scores)),
        mean_figure("background of the autoencoder's round trip (dB)", (s.background_psnr_round_trip for s in scores)),
        mean_figure("background: dB below the round trip", (_loss(*pair) for pair in photo), bar=0.5, at_least=False),
        mean_figure(
            "frame 0 inside the target: dB below the round trip",
            (_loss(s.target_psnr_round_trip, s.target_psnr_photo) for s in scores),
            bar=1.0,
            at_least=False,
        ),
        mean_figure("I1-MSE (squared 8-bit levels)", (s.i1_mse for s in scores)),
        mean_figure("I1-MSE of the autoencoder's round trip", (s.i1_mse_round_trip for s in scores)),
        *_magnitude_figures(scores),
        *_verb_figures(scores),
        mean_figure("click mask IoU", (s.click_iou for s in scores), bar=0.85),
        mean_figure("magnitude inside the target (px/frame at 512)", (s.magnitude for s in scores)),
        mean_figure("leak outside the swept region (px/frame at 512)", (s.leak for s in scores)),
        mean_figure("seconds per clip", (s.seconds for s in scores)),
    )


def _verb_figures(scores: Sequence[SceneScore]) -> tuple[Figure, ...]:
    """Accuracies over the scenes of known verbs; those of unseen words beside the known ones', on the same scenes."""
    known = [s for s in scores if s.verb]
    count = len({s.verb for s in known})
    figures = [
        mean_figure(f"verb recognised, of {count} verbs asked", (float(s.recognised == s.verb) for s in known), 0.75)
    ]
    unseen = [s for s in known if s.unseen]
    if unseen:
        figures.append(
            mean_figure(
                "verb recognised on the scenes of the next rows", (float(s.recognised == s.verb) for s in unseen)
            )
        )
    for kind in KINDS if unseen else ():
        right = (float(seen == s.verb) for s in unseen for own, _, seen in s.unseen if own == kind)
        figures.append(mean_figure(f"verb recognised, asked by an unseen {kind}", right))
    return tuple(figures)


def _magnitude_figures(scores: Sequence[SceneScore]) -> tuple[Figure, ...]:
    sweeps = [np.array(s.sweep) for s in scores if s.sweep]
    own = [np.array([(s.magnitude_asked, s.magnitude)]) for s in scores]
    return (
        _curve("magnitude sweep 2/4/8/16: Spearman", sweeps, spearman, bar=0.95),
        _curve("magnitude sweep: slope of measured over asked", sweeps, lambda *xy: linear_fit(*xy)[0]),
        _curve("magnitude sweep: distance of the slope from 1", sweeps, _slope_error, bar=0.2, at_least=False),
        _curve("magnitude sweep: R²", sweeps, lambda *xy: linear_fit(*xy)[2], bar=0.90),
        _curve("magnitude sweep: mean absolute error (px/frame at 512)", sweeps, mean_absolute_error),
        _curve("the scenes' own magnitudes: Spearman", own, spearman),
        _curve("the scenes' own magnitudes: slope", own, lambda *xy: linear_fit(*xy)[0]),
        _curve("the scenes' own magnitudes: mean absolute error (px/frame at 512)", own, mean_absolute_error),
    )


def _ratio_figure(scores: Sequence[SceneScore]) -> Figure:
    """A ratio of means, not a mean of ratios: a target that does not move would make its own ratio infinite."""
    pairs = np.array([(s.distractor_motion, s.magnitude) for s in scores if s.distractor_motion is not None])
    ratio = lambda rows: float(rows[:, 0].sum() / rows[:, 1].sum())  # noqa: E731
    if len(pairs) and not pairs[:, 1].any():
        return Figure("distractors' motion / target's", None, None, None, 0.05, at_least=False)
    return figure_of("distractors' motion / target's", pairs, ratio, 0.05, at_least=False)


def _curve(
    name: str,
    scenes: list[np.ndarray],
    statistic: Callable[[np.ndarray, np.ndarray], float],
    bar: float | None = None,
    at_least: bool = True,
) -> Figure:
    """A statistic of all (asked, measured) points; whole scenes are resampled, as their points hang together."""
    if not scenes:
        return Figure(name, None, None, None, bar, at_least)
    rows = np.stack(scenes)
    return figure_of(
        name, rows, lambda sample: statistic(sample[..., 0].ravel(), sample[..., 1].ravel()), bar, at_least
    )


def _magnitude(frames: np.ndarray, mask: np.ndarray) -> float:
    tracks = follow(frames, mask)
    speeds = object_speeds(tracks)[tracks.inside[:-1].any(axis=1)]
    return float(speeds.mean()) * REFERENCE_WIDTH / frames.shape[2]


def _mean_flow(flows: np.ndarray, region: np.ndarray) -> float | None:
    if not region.any():
        return None
    return float(np.linalg.norm(flows[:, region], axis=-1).mean()) * REFERENCE_WIDTH / flows.shape[2]


def _keeps_34_db(scored: SceneScore) -> float | None:
    return None if scored.background_psnr is None else float(scored.background_psnr >= 34)


def _slope_error(asked: np.ndarray, measured: np.ndarray) -> float:
    return abs(linear_fit(asked, measured)[0] - 1)


def mean_squared_error(image: np.ndarray, other: np.ndarray) -> float:
    """Mean over pixels and channels of the squared difference of two uint8 images: 21.46 is a PSNR of 34.8 dB."""
    return float(np.mean((image.astype(np.float64) - other) ** 2))


def _loss(floor: float | None, reached: float | None) -> float | None:
    return None if floor is None or reached is None else min(floor, EQUAL_TO_THE_EYE) - min(reached, EQUAL_TO_THE_EYE)
