"""The paper's motion mask (equation 2): where in a clip something moves, read off its optical flow.

    F_i = E_flow(x_i, x_(i-1)),   M_i = Binarize(F_i, Avg(|F_i|)),   M_final = union of all M_i

Taken literally it degenerates: half of a still clip's noise lies above its own mean, and a union over 15 pairs then
covers the frame. So the rules that training uses add a floor to the threshold, take the median flow (the camera) off
first, and join the pairs by a union or by a majority; `literal` stays for comparison.
"""

import numpy as np

RULES = ("literal", "union", "majority")
DEFAULT_FLOOR_PX = 1.0


def motion_mask(
    flows: np.ndarray,
    rule: str = "majority",
    floor_px: float = DEFAULT_FLOOR_PX,
    subtract_median: bool = True,
) -> np.ndarray:
    """The region that moves in a clip (Eq. 2), bool h w.

    With a moving object `union` is the swept region and `majority` the part of it that moves most of the time. The
    direction of the flows decides where an object is drawn: forward flow (i to i+1) on its place in frame i.

    Args:
        flows: f h w 2, one flow per pair of consecutive frames, in pixels.
        rule: `literal` (the equation as printed: mean threshold, union, neither floor nor median subtraction, so the
            two arguments below do not act), `union` or `majority` (of the pairs, at least half).
        floor_px: Slower pixels never count as moving; in pixels of the flow. It has to lie above the estimator's
            noise: 1 px is six times what DIS makes of image noise of 3 grey levels.
        subtract_median: Take each pair's median flow off first, so that a panning camera is no motion.
    """
    if rule not in RULES:
        raise ValueError(f"There is no motion mask rule {rule!r}; choose one of {', '.join(RULES)}.")
    if not floor_px >= 0:
        raise ValueError(f"The floor of the motion mask must be 0 px or more; came {floor_px}.")
    _check_flows(flows)
    if rule != "literal" and subtract_median:
        flows = flows - np.median(flows, axis=(1, 2), keepdims=True)
    magnitude = np.linalg.norm(flows, axis=-1)
    threshold = magnitude.mean(axis=(1, 2), keepdims=True)
    if rule == "literal":
        return (magnitude > threshold).any(axis=0)
    moving = magnitude > np.maximum(threshold, floor_px)
    return moving.any(axis=0) if rule == "union" else moving.mean(axis=0) >= 0.5


def _check_flows(flows: np.ndarray) -> None:
    if flows.ndim != 4 or flows.shape[-1] != 2 or flows.size == 0:
        raise ValueError(f"A motion mask needs flows of shape f h w 2 with at least one pair; came {flows.shape}.")
    if not np.isfinite(flows).all():
        raise ValueError("The flows hold NaN or infinite values; measure them again.")
