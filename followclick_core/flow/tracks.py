"""Follow the pixels of a mask through a clip: where the clicked object is in every frame.

Flow between consecutive frames alone loses an object bit by bit: points at its edge stick to the background, and
fifteen small errors add up. So each frame is also registered to the first: the object is cut out of both, brought to
the same place, size and brightness by the affine motion found so far, and the flow between the two cut-outs is the
correction. On generated scenes with known motion this measures 99 % of the true magnitude, where flow alone gets 81 %.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from .estimators import FlowEstimator, dis_flow

CUTOUT_BORDER = 0.25  # around the object, in its own sizes
CUTOUT_SIDES = (96, 256)  # px; smaller objects are enlarged, larger ones reduced
AFFINE_POINTS = 1500  # more would not make the fit any better
ROUNDS = 2  # of registration per frame
LOST_SHARE = 0.2  # with fewer of its points in the picture an object has left it; flow at the very edge is a guess


@dataclass(frozen=True)
class Tracks:
    """The pixels of a first-frame mask, each followed through the clip.

    Attributes:
        points: f n 2 (x, y) in pixels. A point that leaves the picture takes that last step and stays there.
        inside: f n, which points are still in the picture.
        brightness: f, the object's brightness relative to frame 0.
    """

    points: np.ndarray
    inside: np.ndarray
    brightness: np.ndarray

    @property
    def steps(self) -> np.ndarray:
        """f-1 n 2: how far each point goes from frame i to i+1, in pixels; count only those with inside[i]."""
        return np.diff(self.points, axis=0)

    def regions(self, height: int, width: int, gap: int = 1) -> np.ndarray:
        """Bool f h w: the pixels that the points cover in each frame, holes up to 2 * gap closed.

        Holes appear where an object grows, because its points move apart.
        """
        regions = np.zeros((len(self.points), height, width), bool)
        for region, points, inside in zip(regions, self.points, self.inside, strict=True):
            x, y = np.rint(points[inside]).astype(int).T
            region[y, x] = True
        return np.stack([~dilate(~dilate(region, gap), gap) | region for region in regions])


def clip_flows(frames: np.ndarray, estimator: FlowEstimator | None = None) -> np.ndarray:
    """Forward flow of every pair of consecutive frames, f-1 h w 2, in the frames' own pixels.

    Args:
        frames: uint8 f h w 3, at least two.
        estimator: Default: DIS, which needs OpenCV but no weights.
    """
    check_frames(frames)
    estimator = estimator or dis_flow()
    flows = np.stack([estimator(first, second) for first, second in pairwise(frames)])
    if not np.isfinite(flows).all():
        raise RuntimeError("The flow estimator gave NaN or infinite values; measure with DIS, or with other weights.")
    return flows


def follow(
    frames: np.ndarray, mask: np.ndarray, flows: np.ndarray | None = None, estimator: FlowEstimator | None = None
) -> Tracks:
    """Every pixel of `mask` (bool h w, the object in frame 0), followed through `frames` (uint8 f h w 3).

    Args:
        flows: Those of clip_flows, where they are at hand.
        estimator: Default: DIS.
    """
    check_frames(frames)
    check_mask(mask, frames)
    estimator = estimator or dis_flow()
    flows = clip_flows(frames, estimator) if flows is None else flows
    y, x = np.nonzero(mask)
    start = np.stack([x, y], axis=-1).astype(np.float32)
    cutout = _Cutout(frames[0], start, estimator)
    points, inside, brightness = [start], [np.ones(len(start), bool)], [1.0]
    for frame, flow in zip(frames[1:], flows, strict=True):
        predicted = points[-1] + sample(flow, points[-1])
        moved, gain = cutout.register(frame, predicted, inside[-1])
        points.append(np.where(inside[-1][:, None], moved, points[-1]))
        inside.append(inside[-1] & _within(points[-1], frame))
        brightness.append(gain)
        if inside[-1].mean() < LOST_SHARE:
            inside[-1][:] = False
    return Tracks(np.stack(points), np.stack(inside), np.array(brightness))


class _Cutout:
    """The object in frame 0, against which later frames are registered."""

    def __init__(self, frame: np.ndarray, start: np.ndarray, estimator: FlowEstimator):
        low, high = start.min(axis=0), start.max(axis=0)
        reach = (float((high - low).max()) + 1) * (1 + CUTOUT_BORDER)
        side = int(np.clip(reach, *CUTOUT_SIDES)) // 8 * 8
        grid = np.stack(np.meshgrid(np.arange(side), np.arange(side)), axis=-1).reshape(-1, 2)
        self.scale = side / reach
        self.corner = (low + high) / 2 - (side - 1) / 2 / self.scale
        self.pixels = (grid / self.scale + self.corner).astype(np.float32)  # where the cut-out's pixels lie in frame 0
        self.picture = np.rint(sample(frame, self.pixels)).astype(np.uint8).reshape(side, side, 3)
        self.start = start
        self.on_picture = (start - self.corner) * self.scale
        self.own = sample(self.picture, self.on_picture)
        self.estimator = estimator
        self.few = np.random.default_rng(0).permutation(len(start))[:AFFINE_POINTS]
        self.affines = [np.eye(2, 3), np.eye(2, 3)]  # of the frames so far, from frame 0

    def register(self, frame: np.ndarray, predicted: np.ndarray, inside: np.ndarray) -> tuple[np.ndarray, float]:
        """Where the points are in `frame`, given a prediction; and the object's brightness there against frame 0's."""
        use = self.few[inside[self.few]]
        if len(use) == 0:
            return predicted, 1.0
        guesses = [apply_affine(affine, self.start) for affine in self._guesses(predicted, use)]
        best = min([predicted, *guesses], key=lambda points: self._mismatch(frame, points, use))
        mismatch = self._mismatch(frame, best, use)
        for _ in range(ROUNDS):
            moved = self._corrected(frame, fit_affine(self.start[use], best[use]), self._gain(frame, best, use))
            before, mismatch = mismatch, min(mismatch, self._mismatch(frame, moved, use))
            # A correction that fits the picture no better comes of something that is not the object.
            if mismatch >= before:
                break
            best = moved
        self.affines.append(fit_affine(self.start[use], best[use]))
        return best, self._gain(frame, best, use)

    def _guesses(self, predicted: np.ndarray, use: np.ndarray) -> list[np.ndarray]:
        """Affine maps that frame 0's object may have come by: the flow's, the fastest points' way, the way so far."""
        last, before = self.affines[-1], self.affines[-2]
        step = predicted[use] - apply_affine(last, self.start[use])
        speed = np.linalg.norm(step, axis=-1)
        fastest = np.median(step[speed >= np.quantile(speed, 0.75)], axis=0)
        return [fit_affine(self.start[use], predicted[use]), last + np.outer(fastest, [0, 0, 1]), 2 * last - before]

    def _corrected(self, frame: np.ndarray, affine: np.ndarray, gain: float) -> np.ndarray:
        aligned = sample(frame, apply_affine(affine, self.pixels)) / gain
        aligned = np.rint(aligned.clip(0, 255)).astype(np.uint8).reshape(self.picture.shape)
        correction = self.estimator(self.picture, aligned)
        return apply_affine(affine, self.start + sample(correction, self.on_picture) / self.scale)

    def _gain(self, frame: np.ndarray, points: np.ndarray, use: np.ndarray) -> float:
        seen = use[_within(points[use], frame)]
        # Four grey levels keep a black object's ratio near 1.
        return float((sample(frame, points[seen]).mean() + 4) / (self.own[seen].mean() + 4)) if len(seen) else 1.0

    def _mismatch(self, frame: np.ndarray, points: np.ndarray, use: np.ndarray) -> float:
        """Mean difference between the object here and in frame 0, in grey levels."""
        seen = use[_within(points[use], frame)]
        if len(seen) < len(use) / 4:
            return float("inf")
        return float(np.abs(sample(frame, points[seen]) / self._gain(frame, points, use) - self.own[seen]).mean())


def fit_affine(source: np.ndarray, target: np.ndarray, rounds: int = 4) -> np.ndarray:
    """The affine map (2 3) that takes most of the points `source` (n 2) to `target`; stray points lose their weight."""
    if len(source) < 12:
        shift = np.median(target - source, axis=0)
        return np.concatenate([np.eye(2), shift[:, None]], axis=1)
    extended = np.concatenate([source, np.ones((len(source), 1))], axis=1).astype(np.float64)
    weight = np.ones(len(source))
    affine = np.zeros((2, 3))
    for _ in range(rounds):
        weighted = extended * weight[:, None]
        affine = np.linalg.lstsq(weighted.T @ extended, weighted.T @ target, rcond=1e-9)[0].T
        error = np.linalg.norm(target - apply_affine(affine, source), axis=-1)
        weight = 1 / (1 + (error / max(3 * float(np.median(error)), 0.2)) ** 2)
    return affine


def apply_affine(affine: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Points n 2 under an affine map 2 3."""
    return (points @ affine[:, :2].T + affine[:, 2]).astype(np.float32)


def sample(image: np.ndarray, points: np.ndarray) -> np.ndarray:
    """An image or flow (h w c) at points (n 2, x y) between its pixels, bilinear, n c; its edge goes on outside."""
    height, width = image.shape[:2]
    points = np.clip(points, 0, [width - 1, height - 1]).astype(np.float32)
    x0, y0 = np.floor(points).astype(int).T
    x1, y1 = (x0 + 1).clip(max=width - 1), (y0 + 1).clip(max=height - 1)
    right, down = (points - np.stack([x0, y0], axis=-1)).astype(np.float32).T[..., None]
    top = image[y0, x0] * (1 - right) + image[y0, x1] * right
    bottom = image[y1, x0] * (1 - right) + image[y1, x1] * right
    return top * (1 - down) + bottom * down


def dilate(mask: np.ndarray, pixels: int) -> np.ndarray:
    """Bool h w, grown by `pixels` to all sides, corners included; in numpy, so that it needs no OpenCV."""
    for axis in (0, 1):
        counts = np.cumsum(np.moveaxis(mask, axis, 0), axis=0)
        counts = np.concatenate([np.zeros_like(counts[:1]), counts])
        index = np.arange(mask.shape[axis])
        window = counts[(index + pixels + 1).clip(max=len(index))] - counts[(index - pixels).clip(min=0)]
        mask = np.moveaxis(window > 0, 0, axis)
    return mask


def check_frames(frames: np.ndarray) -> None:
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3:
        raise ValueError(
            f"A clip is measured as RGB frames, uint8 f h w 3; came {frames.dtype} {frames.shape}: convert it."
        )
    if len(frames) < 2:
        raise ValueError(f"Motion is measured between frames; came {len(frames)} frame(s), give at least 2.")


def check_mask(mask: np.ndarray, frames: np.ndarray) -> None:
    if mask.dtype != bool or mask.ndim != 2:
        raise ValueError(f"A mask is bool h w, True where it moves; came {mask.dtype} {mask.shape}: convert it.")
    if mask.shape != frames.shape[1:3]:
        raise ValueError(
            f"The mask is {mask.shape[1]}x{mask.shape[0]} and the frames are {frames.shape[2]}x{frames.shape[1]} px; "
            "resize the mask to the clip."
        )
    if not mask.any():
        raise ValueError("The mask is empty, so there is no object to measure; click on one, or give another mask.")


def _within(points: np.ndarray, frame: np.ndarray) -> np.ndarray:
    height, width = frame.shape[:2]
    x, y = points.T
    return (x >= 0) & (y >= 0) & (x <= width - 1) & (y <= height - 1)
