"""What a followed object does, as a dozen numbers per frame: where it is, how it turns, stretches and bends.

The object's own coordinates u = (ux, uy) are -1..1 over its silhouette's longer side in frame 0, x right and y down. In
each frame the displacement of its points is fitted by

    dx = x + xx ux + xy uy + legs · uy' sin(4.5 ux)                             with uy' = how far below the middle
    dy = y + yx ux + yy uy + bend (0.3 − ux²) + ripple sin(3 ux) + mouth M(u) + eyes E(u)

so x, y are the way of the whole; xx + yy its divergence, yx − xy twice its rotation; the rest is what no affine motion
explains: ends up and middle down (`bend`), a wave along it (`ripple`), the corners of a mouth, two closing eyes, a
stride. `flash` is the brightness against frame 0, minus 1.
"""

from dataclasses import dataclass

import numpy as np

from ..flow.tracks import Tracks

SIGNALS = ("x", "y", "xx", "xy", "yx", "yy", "bend", "ripple", "mouth", "eyes", "legs", "flash")
_MODES_X = ("x", "xx", "xy", "legs")
_MODES_Y = ("y", "yx", "yy", "bend", "ripple", "mouth", "eyes")
_AFFINE = 3  # of each, the leading ones
_RIDGE = 0.002  # keeps the other modes at zero where a small or odd silhouette cannot tell them apart
_LEAST_POINTS = 20
_MOUTH_Y, _MOUTH_WIDTH = 0.32, 0.52  # where faces have them, as far as drawn faces agree
_EYE_X, _EYE_Y, _EYE_SIZE = 0.36, -0.28, 0.3


@dataclass(frozen=True)
class Signals:
    """`values` f s, in the object's own units and in the order of SIGNALS; nan in frames that no longer show it.

    `foot` is where its lowest point lies below its middle, about 0 to 1.
    """

    values: np.ndarray
    foot: float


def read_signals(tracks: Tracks) -> Signals:
    """The signals of a followed object."""
    start = tracks.points[0]
    low, high = start.min(axis=0), start.max(axis=0)
    half = max(float((high - low).max()), 8.0) / 2 + 0.5
    own = (start - (low + high) / 2) / half
    displacements = (tracks.points - start) / half
    modes_x, modes_y = _modes(own)
    values = np.full((len(displacements), len(SIGNALS)), np.nan)
    for index, (displacement, inside) in enumerate(zip(displacements, tracks.inside, strict=True)):
        if inside.sum() < min(_LEAST_POINTS, len(start)) or inside.mean() < 0.3:
            continue
        fitted = {
            **dict(zip(_MODES_X, _fit(modes_x[inside], displacement[inside, 0]), strict=True)),
            **dict(zip(_MODES_Y, _fit(modes_y[inside], displacement[inside, 1]), strict=True)),
            "flash": tracks.brightness[index] - 1,
        }
        values[index] = [fitted[name] for name in SIGNALS]
    return Signals(values, foot=float((high[1] - low[1]) / 2 / half))


def _modes(own: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The fields of dx and dy at points u (n 2): n 4 and n 7."""
    ux, uy = own.T
    one = np.ones(len(own))
    legs = np.clip((uy - 0.1) / 0.8, 0, 1.2) * np.sin(4.5 * ux)
    along, across = ux / _MOUTH_WIDTH, (uy - _MOUTH_Y) / (0.75 * _MOUTH_WIDTH)
    mouth = _MOUTH_WIDTH * (0.35 - along**2) * np.exp(-((along / 1.5) ** 4) - across**2)
    above = uy - _EYE_Y
    lids = sum(np.exp(-(((ux - side * _EYE_X) / (1.15 * _EYE_SIZE)) ** 4)) for side in (-1, 1))
    eyes = -above * lids * np.exp(-((above / (1.5 * _EYE_SIZE)) ** 2))
    modes_x = np.stack([one, ux, uy, legs], axis=-1)
    modes_y = np.stack([one, ux, uy, 0.3 - ux**2, np.sin(3 * ux), mouth, eyes], axis=-1)
    return modes_x, modes_y


def _fit(modes: np.ndarray, displacement: np.ndarray, rounds: int = 4) -> np.ndarray:
    """Coefficients of `modes` (n k) by least squares in which stray points lose their weight."""
    ridge = np.diag([1e-9] * _AFFINE + [_RIDGE] * (modes.shape[1] - _AFFINE)) * len(modes)
    weight = np.ones(len(modes))
    coefficients = np.zeros(modes.shape[1])
    for _ in range(rounds):
        weighted = modes * weight[:, None]
        coefficients = np.linalg.solve(weighted.T @ modes + ridge, weighted.T @ displacement)
        error = np.abs(displacement - modes @ coefficients)
        weight = 1 / (1 + (error / max(3 * float(np.median(error)), 0.002)) ** 2)
    return coefficients
