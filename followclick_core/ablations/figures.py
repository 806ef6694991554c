"""The figures of the ablations: what each is, and how it is read off the scores of a variant's runs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..evaluation.metrics import linear_fit, spearman

# Scores by name: one axis for the runs (seeds), one for the clips, and for a sweep a third one for what was asked.
Scores = Mapping[str, np.ndarray]
RESAMPLES = 1000


@dataclass(frozen=True)
class Figure:
    """One number of a variant.

    Args:
        label: Its head in a table.
        compute: From scores to the number.
        reads: The scores that it needs.
        at_least: Whether more is better; None: neither.
    """

    label: str
    compute: Callable[[Scores], float]
    reads: tuple[str, ...]
    at_least: bool | None = None


@dataclass(frozen=True)
class Estimate:
    """A figure over all runs and clips, its 95 % interval, and the figure of each run."""

    value: float
    low: float
    high: float
    runs: tuple[float, ...]


def _mean_of(name: str, label: str, at_least: bool | None) -> Figure:
    return Figure(label, lambda scores: float(scores[name].mean()), (name,), at_least)


def _of_sweep(label: str, statistic: Callable[[np.ndarray, np.ndarray], float], at_least: bool | None) -> Figure:
    def compute(scores: Scores) -> float:
        measured = scores["sweep"]
        expected = np.broadcast_to(scores["sweep_expected"][0], measured.shape)
        return statistic(expected.ravel(), measured.ravel())

    return Figure(label, compute, ("sweep", "sweep_expected"), at_least)


def _speed_spearman(scores: Scores) -> float:
    return spearman(scores["magnitude"].ravel(), scores["speed"].ravel())


def _of_pairs(label: str, compute: Callable[[np.ndarray], np.ndarray]) -> Figure:
    """Of scores with an entry for either object on the last axis."""
    return Figure(label, lambda scores: float(compute(scores["pairs"]).mean()), ("pairs",), True)


FIGURES: dict[str, Figure] = {
    "loss_inside": _mean_of("loss_inside", "loss in the region ↓", False),
    "loss_outside": _mean_of("loss_outside", "loss elsewhere ↓", False),
    "clip_error": _mean_of("clip_error", "error against the true clip ↓", False),
    "obeys": _mean_of("obeys", "goes the way asked ↑", True),
    "along": _mean_of("along", "speed that way / asked", None),
    "first_frame_mse": _mean_of("first_frame_mse", "I1-MSE ↓", False),
    "leak": _mean_of("leak", "leak elsewhere ↓", False),
    "sweep_spearman": _of_sweep("sweep: Spearman ↑", spearman, True),
    "sweep_r2": _of_sweep("sweep: R² ↑", lambda x, y: linear_fit(x, y)[2], True),
    "sweep_slope": _of_sweep("sweep: slope", lambda x, y: linear_fit(x, y)[0], None),
    "speed_spearman": Figure("clips' own speeds: Spearman ↑", _speed_spearman, ("magnitude", "speed"), True),
    "pairs_first": _of_pairs("the first goes the way asked ↑", lambda pairs: pairs[..., 0]),
    "pairs_second": _of_pairs("the second ↑", lambda pairs: pairs[..., 1]),
    "pairs_both": _of_pairs("both ↑", lambda pairs: pairs.min(-1)),
}
# Of the held-out clips themselves, the same for every variant: what the figures are to be held against.
REFERENCES = {
    "still_error": _mean_of("still_error", "a still photo's error", None),
    "round_trip_mse": _mean_of("round_trip_mse", "the autoencoder's I1-MSE", None),
}


def stack_scores(results: list[dict[str, Any]]) -> Scores:
    """The scores of a variant's runs, in the order of their seeds."""
    runs = [result["scores"] for result in sorted(results, key=lambda result: result["seed"])]
    return {name: np.array([scores[name] for scores in runs]) for name in runs[0]}


def estimate(figure: Figure, scores: Scores) -> Estimate:
    """The figure with a percentile bootstrap interval (Efron & Tibshirani 1993) over runs and, within them, clips.

    The clips are the same in all runs, so one draw of clips serves all drawn runs.
    """
    values = _resampled(lambda sample: figure.compute(sample), [scores], figure.reads)
    low, high = _interval(values)
    runs = [figure.compute({name: scores[name][[run]] for name in figure.reads}) for run in range(count_runs(scores))]
    return Estimate(figure.compute(scores), low, high, tuple(runs))


def difference(figure: Figure, scores: Scores, reference: Scores) -> tuple[float, float]:
    """The 95 % interval of the figure less the reference's, both on the same draws of seeds and clips."""
    first = min(count_runs(scores), count_runs(reference))
    pair = [{name: each[name][:first] for name in figure.reads} for each in (scores, reference)]
    return _interval(_resampled(lambda one, other: figure.compute(one) - figure.compute(other), pair, figure.reads))


def _resampled(compute: Callable[..., float], many: Sequence[Scores], reads: tuple[str, ...]) -> np.ndarray:
    generator = np.random.default_rng(0)
    runs, clips = many[0][reads[0]].shape[:2]
    values = []
    for _ in range(RESAMPLES):
        seeds, rows = generator.integers(0, runs, runs), generator.integers(0, clips, clips)
        values.append(compute(*({name: _pick(name, each[name], seeds, rows) for name in reads} for each in many)))
    return np.array(values)


def _pick(name: str, values: np.ndarray, seeds: np.ndarray, rows: np.ndarray) -> np.ndarray:
    # What a sweep asks for is the same in every clip.
    return values[seeds] if name == "sweep_expected" else values[np.ix_(seeds, rows)]


def _interval(values: np.ndarray) -> tuple[float, float]:
    low, high = np.nanquantile(values, [0.025, 0.975])
    return float(low), float(high)


def count_runs(scores: Scores) -> int:
    return len(next(iter(scores.values())))
