"""The paper's motion mask (equation 2): where in a clip something moves, read off its optical flow.

    F_i = E_flow(x_i, x_(i-1)),   M_i = Binarize(F_i, Avg(|F_i|)),   M_final = union of all M_i

Taken literally it degenerates: half of a still clip's noise lies above its own mean, and a union over 15 pairs then
covers the frame. So the rules that training uses add a floor to the threshold, take the median flow (the camera) off
first, and join the pairs in a way with a name; `literal` stays for comparison.

A click means the silhouette in the first frame. `union` is the whole region that a moving object sweeps, `majority` of
an object that moves on is little or nothing; `followed` is the silhouette.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RULES = ("literal", "union", "majority", "followed")
DEFAULT_FLOOR_PX = 1.0


@dataclass(frozen=True)
class MotionRegion:
    """Where something moves (bool h w), and its mean flow there in pixels per pair, 0 where nothing does."""

    mask: np.ndarray
    magnitude: float


def motion_mask(
    flows: np.ndarray,
    rule: str = "majority",
    floor_px: float = DEFAULT_FLOOR_PX,
    subtract_median: bool = True,
) -> np.ndarray:
    """The region that moves in a clip (Eq. 2), bool h w.

    The direction of the flows decides where an object is drawn: forward flow (i to i+1) on its place in frame i.

    Args:
        flows: f h w 2, one flow per pair of consecutive frames, in pixels.
        rule: `literal` (the equation as printed: mean threshold, union, neither floor nor median subtraction, so the
            two arguments below do not act), `union`, `majority` (of the pairs, at least half), or `followed` (the
            pixels of the first frame that, followed along forward flows, move in at least half of the pairs).
        floor_px: Slower pixels never count as moving; in pixels of the flow. It has to lie above the estimator's
            noise: 1 px is six times what DIS makes of image noise of 3 grey levels.
        subtract_median: Take each pair's median flow off first, so that a panning camera is no motion.
    """
    return motion_regions(flows, (rule,), floor_px, subtract_median)[rule].mask


def motion_regions(
    flows: np.ndarray,
    rules: Sequence[str] = RULES,
    floor_px: float = DEFAULT_FLOOR_PX,
    subtract_median: bool = True,
) -> dict[str, MotionRegion]:
    """`motion_mask` of several rules at once, each with its magnitude.

    The magnitude is the mean length of the flows, without the median where it is subtracted, over the region and all
    pairs; for `followed` over the followed pixels, as long as they are in the picture.
    """
    for rule in rules:
        if rule not in RULES:
            raise ValueError(f"There is no motion mask rule {rule!r}; choose one of {', '.join(RULES)}.")
    if not floor_px >= 0:
        raise ValueError(f"The floor of the motion mask must be 0 px or more; came {floor_px}.")
    _check_flows(flows)
    regions = {}
    if "literal" in rules:
        magnitude = lengths(flows)
        mask = (magnitude > magnitude.mean(axis=(1, 2), keepdims=True)).any(axis=0)
        regions["literal"] = MotionRegion(mask, _mean_inside(magnitude, mask))
    if set(rules) == {"literal"}:
        return regions
    camera = np.median(flows, axis=(1, 2), keepdims=True) if subtract_median else np.zeros((1, 1, 1, 2), flows.dtype)
    magnitude = lengths(flows - camera)
    moving = magnitude > np.maximum(magnitude.mean(axis=(1, 2), keepdims=True), floor_px)
    for rule in rules:
        if rule == "union":
            mask = moving.any(axis=0)
            regions[rule] = MotionRegion(mask, _mean_inside(magnitude, mask))
        elif rule == "majority":
            mask = moving.mean(axis=0) >= 0.5
            regions[rule] = MotionRegion(mask, _mean_inside(magnitude, mask))
        elif rule == "followed":
            regions[rule] = _followed(flows, magnitude, moving)
    return regions


def lengths(flows: np.ndarray) -> np.ndarray:
    """Of the vectors on the last axis; several times as fast as a norm along so short an axis."""
    return np.hypot(flows[..., 0], flows[..., 1])


def _followed(flows: np.ndarray, magnitude: np.ndarray, moving: np.ndarray) -> MotionRegion:
    """Step every pixel of the first frame along the flows, and count where it meets motion.

    A pixel that stands still where a moving one arrives is covered by it: it is lost, instead of going along.
    """
    height, width = flows.shape[1:3]
    y, x = (axis.ravel().astype(np.float32) for axis in np.mgrid[:height, :width])
    cell = np.arange(height * width)
    inside = np.ones(height * width, bool)
    seen, moved = np.zeros((2, height * width), np.int32)
    travelled = np.zeros(height * width, np.float32)
    for flow, lengths, moves in zip(flows.reshape(len(flows), -1, 2), magnitude, moving, strict=True):
        moves_now = inside & moves.ravel()[cell]
        seen += inside
        moved += moves_now
        travelled += np.where(inside, lengths.ravel()[cell], 0)
        step = flow[cell]
        x, y = x + step[:, 0], y + step[:, 1]
        inside &= (x > -0.5) & (x < width - 0.5) & (y > -0.5) & (y < height - 0.5)
        cell = np.rint(y).astype(np.int32).clip(0, height - 1) * width + np.rint(x).astype(np.int32).clip(0, width - 1)
        arrived = np.zeros(height * width, bool)
        arrived[cell[moves_now]] = True
        inside &= moves_now | ~arrived[cell]
    mask = (moved > 0) & (2 * moved >= seen)
    steps = seen[mask].sum()
    return MotionRegion(mask.reshape(height, width), float(travelled[mask].sum() / steps) if steps else 0.0)


def _mean_inside(magnitude: np.ndarray, mask: np.ndarray) -> float:
    return float(magnitude[:, mask].mean()) if mask.any() else 0.0


def _check_flows(flows: np.ndarray) -> None:
    if flows.ndim != 4 or flows.shape[-1] != 2 or flows.size == 0:
        raise ValueError(f"A motion mask needs flows of shape f h w 2 with at least one pair; came {flows.shape}.")
    if not np.isfinite(flows).all():
        raise ValueError("The flows hold NaN or infinite values; measure them again.")
