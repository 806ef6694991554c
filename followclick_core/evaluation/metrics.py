"""Statistics of an evaluation: how sure a mean is, how well one number follows another, how far two masks agree."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

Statistic = Callable[[np.ndarray], float]


def bootstrap_interval(
    rows: np.ndarray, statistic: Statistic, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """The percentile bootstrap interval of `statistic` over resampled rows (Efron & Tibshirani 1993, chapter 13).

    Rows, the first axis, are what is independent: scenes, not frames. Resamples that have no finite statistic (all
    rows equal, in a correlation) are left out; without any the interval is (nan, nan).
    """
    generator = np.random.default_rng(seed)
    picks = generator.integers(0, len(rows), size=(resamples, len(rows)))
    with np.errstate(all="ignore"):
        values = np.array([statistic(rows[pick]) for pick in picks])
    values = values[np.isfinite(values)]
    if values.size == 0:
        return float("nan"), float("nan")
    tail = (1 - level) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)


@dataclass(frozen=True)
class Figure:
    """One number of the evaluation with its 95 % bootstrap interval over scenes, and its bar, if there is one."""

    name: str
    value: float | None  # None: nothing to measure it on
    low: float | None
    high: float | None
    bar: float | None = None
    at_least: bool = True

    @property
    def passes(self) -> bool | None:
        if self.bar is None:
            return None
        return self.value is not None and (self.value >= self.bar if self.at_least else self.value <= self.bar)


def mean_figure(name: str, values: Iterable[float | None], bar: float | None = None, at_least: bool = True) -> Figure:
    """The mean of those values that are known."""
    known = np.array([value for value in values if value is not None])
    return figure_of(name, known, lambda rows: float(rows.mean()), bar, at_least)


def figure_of(
    name: str,
    rows: np.ndarray,
    statistic: Statistic,
    bar: float | None = None,
    at_least: bool = True,
    resamples: int = 2000,
) -> Figure:
    """A statistic of independent rows, with its interval; no value where there are no rows."""
    if len(rows) == 0:
        return Figure(name, None, None, None, bar, at_least)
    interval = bootstrap_interval(rows, statistic, resamples=resamples)
    value, low, high = (x if np.isfinite(x) else None for x in (statistic(rows), *interval))
    return Figure(name, value, low, high, bar, at_least)


def spearman(asked: np.ndarray, measured: np.ndarray) -> float:
    """Rank correlation: 1 where the one always grows with the other; equal values share their mean rank."""
    return pearson(_ranks(asked), _ranks(measured))


def pearson(x: np.ndarray, y: np.ndarray) -> float:
    """Correlation, nan where either does not vary."""
    x, y = x - np.mean(x), y - np.mean(y)
    scale = np.sqrt((x**2).sum() * (y**2).sum())
    return float((x * y).sum() / scale) if scale > 0 else float("nan")


def linear_fit(asked: np.ndarray, measured: np.ndarray) -> tuple[float, float, float]:
    """Slope, intercept and R² of the least-squares line; nan where `asked` or `measured` does not vary.

    Slope and R² do not see an offset: hold mean_absolute_error beside them.
    """
    if np.ptp(asked) == 0:
        return float("nan"), float("nan"), float("nan")
    slope, intercept = np.polyfit(asked, measured, 1)
    return float(slope), float(intercept), pearson(asked, measured) ** 2


def mean_absolute_error(asked: np.ndarray, measured: np.ndarray) -> float:
    """Mean of |measured - asked|, in their unit: 0 only where what was asked is what came."""
    return float(np.abs(measured - asked).mean())


def mask_iou(mask: np.ndarray, other: np.ndarray) -> float:
    """Intersection over union of two bool masks; two empty ones agree."""
    union = int((mask | other).sum())
    return int((mask & other).sum()) / union if union else 1.0


def edge_distance(mask: np.ndarray) -> np.ndarray:
    """Of each pixel of a bool mask h w the distance in pixels to the nearest one outside it; 0 outside.

    What lies beyond the border counts as outside. Exact, and without OpenCV, so that scenes can be clicked on a machine
    that has none.
    """
    padded = np.pad(mask, 1)
    near = np.zeros_like(padded)  # outside pixels that touch the mask: the nearest one is always among them
    for down in (-1, 0, 1):
        for right in (-1, 0, 1):
            near |= np.roll(padded, (down, right), axis=(0, 1))
    edge = np.argwhere(near & ~padded).astype(np.float32)
    inside = np.argwhere(padded).astype(np.float32)
    distance = np.zeros(padded.shape, np.float32)
    for start in range(0, len(inside), 4096):
        part = inside[start : start + 4096]
        # Squares of whole numbers below 2**24: exact in float32.
        squares = (part**2).sum(1)[:, None] + (edge**2).sum(1) - 2 * part @ edge.T
        rows, columns = part.astype(int).T
        distance[rows, columns] = np.sqrt(squares.min(axis=1))
    return distance[1:-1, 1:-1]


def _ranks(values: np.ndarray) -> np.ndarray:
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[group]
