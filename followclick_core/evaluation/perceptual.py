"""The paper's measures of whole clips (section 5.2), and stand-ins for them under names of their own.

docs/EVALUATION.md says what each is. A clip that does not move wins all of them but FVD and Text-Align, so they are
only ever reported beside the motion inside the mask.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..shapes import Frames8, Image
from .features import ClipFeatures, DreamSimDistance, I3dLogits, MobileNetFeatures
from .metrics import Figure, figure_of, mean_figure

CLIP_SCORE_WEIGHT = 2.5  # of CLIPScore (Hessel et al. 2021); the paper's Text-Align looks like a multiple by it
FRECHET_RESAMPLES = 200


@dataclass(frozen=True)
class Extractors:
    """The models at hand; what lacks its model is not measured."""

    clip: ClipFeatures | None = None
    i3d: I3dLogits | None = None
    dreamsim: DreamSimDistance | None = None
    mobilenet: MobileNetFeatures | None = None

    def __bool__(self) -> bool:
        return any(vars(self).values())


@dataclass(frozen=True, eq=False)
class JudgedClip:
    """A clip, the photo and prompt that it was made from, and the true clip, where there is one."""

    frames: Frames8
    image: Image
    prompt: str
    truth: Frames8 | None = None


@dataclass
class _Found:
    """One number or vector per clip."""

    numbers: dict[str, list[float]] = field(default_factory=dict)
    vectors: dict[str, list[np.ndarray]] = field(default_factory=dict)

    def number(self, name: str, value: float) -> None:
        self.numbers.setdefault(name, []).append(value)

    def vector(self, name: str, value: np.ndarray) -> None:
        self.vectors.setdefault(name, []).append(value)


def perceptual_figures(extractors: Extractors, clips: Iterable[JudgedClip]) -> tuple[Figure, ...]:
    """Means over the clips of what the extractors at hand can measure, with intervals."""
    found = _Found()
    for clip in clips:
        if extractors.clip is not None:
            _with_clip(found, extractors.clip, clip)
        if extractors.dreamsim is not None:
            likeness = 1 - float(extractors.dreamsim(clip.image, clip.frames).mean())
            found.number(f"PIC (DreamSim {extractors.dreamsim.name})", likeness)
        if extractors.mobilenet is not None:
            _with_mobilenet(found, extractors.mobilenet, clip)
        if extractors.i3d is not None and clip.truth is not None:
            found.vector("clip", extractors.i3d.clip(clip.frames))
            found.vector("true clip", extractors.i3d.clip(clip.truth))
    means = tuple(mean_figure(name, values) for name, values in found.numbers.items())
    return means + _frechet_figures(found)


def consistency(features: np.ndarray) -> float:
    """Mean cosine of consecutive rows."""
    unit = _unit(features)
    return float((unit[1:] * unit[:-1]).sum(axis=1).mean())


def frechet_distance(features: np.ndarray, other: np.ndarray) -> float:
    """Of the normal distributions fitted to two sets of rows: |μ − μ'|² + Tr(Σ + Σ' − 2 (Σ Σ')^½)."""
    mean = ((features.mean(axis=0) - other.mean(axis=0)) ** 2).sum()
    sigma, other_sigma = (np.cov(rows, rowvar=False) for rows in (features.astype(float), other.astype(float)))
    values, vectors = np.linalg.eigh(sigma)
    root = vectors * np.sqrt(values.clip(0)) @ vectors.T
    shared = np.sqrt(np.linalg.eigvalsh(root @ other_sigma @ root).clip(0)).sum()
    return float(mean + np.trace(sigma) + np.trace(other_sigma) - 2 * shared)


def _with_clip(found: _Found, model: ClipFeatures, clip: JudgedClip) -> None:
    features = model.images(clip.frames)
    alignment = float((features @ model.text(clip.prompt)).mean())
    found.number("Tem-Consis (CLIP)", consistency(features))
    found.number("Text-Align (CLIP)", alignment)
    found.number(f"Text-Align (CLIP), × {CLIP_SCORE_WEIGHT}", CLIP_SCORE_WEIGHT * max(alignment, 0))


def _with_mobilenet(found: _Found, model: MobileNetFeatures, clip: JudgedClip) -> None:
    features = model.images(np.concatenate([clip.image[None], clip.frames]))
    unit = _unit(features)
    found.number("MobileNetV2 cosine of consecutive frames", consistency(features[1:]))
    found.number("MobileNetV2 cosine of the frames to the photo", float((unit[1:] @ unit[0]).mean()))
    if clip.truth is not None:
        found.vector("frames", features[1:])
        found.vector("true frames", model.images(clip.truth))


def _frechet_figures(found: _Found) -> tuple[Figure, ...]:
    figures = []
    if (clips := found.vectors.get("clip")) is not None:
        pairs = np.stack([np.stack(clips), np.stack(found.vectors["true clip"])], axis=1)
        figures.append(
            figure_of(
                f"FVD (I3D, {len(pairs)} clips)",
                pairs,
                lambda rows: frechet_distance(rows[:, 0], rows[:, 1]) if len(rows) > 1 else float("nan"),
                resamples=FRECHET_RESAMPLES,
            )
        )
    if (frames := found.vectors.get("frames")) is not None:
        distance = frechet_distance(np.concatenate(frames), np.concatenate(found.vectors["true frames"]))
        # Without an interval: a thousand resamples of 1280 dimensions would take an hour.
        figures.append(Figure(f"MobileNetV2 Fréchet distance of frames ({len(frames)} clips)", distance, None, None))
    return tuple(figures)


def _unit(features: np.ndarray) -> np.ndarray:
    return features / np.linalg.norm(features, axis=-1, keepdims=True).clip(1e-12)


__all__: Sequence[str] = ("Extractors", "JudgedClip", "consistency", "frechet_distance", "perceptual_figures")
