"""Follow the pixels of a mask through a clip: where the clicked object is in every frame, as far as the flow tells."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from .estimators import FlowEstimator, dis_flow


@dataclass(frozen=True)
class Tracks:
    """The pixels of a first-frame mask, each followed through the clip.

    `points` is f n 2 (x, y) in pixels, `inside` f n and says which points are still in the picture. A point that leaves
    it takes that last step and stays there.
    """

    points: np.ndarray
    inside: np.ndarray

    @property
    def steps(self) -> np.ndarray:
        """f-1 n 2: how far each point goes from frame i to i+1, in pixels."""
        return np.diff(self.points, axis=0)

    def regions(self, height: int, width: int, gap: int = 1) -> np.ndarray:
        """Bool f h w: the pixels that the points cover in each frame, holes up to 2 * gap closed.

        Holes appear where an object grows, because its points move apart.
        """
        regions = np.zeros((len(self.points), height, width), bool)
        for region, points, inside in zip(regions, self.points, self.inside, strict=True):
            x, y = np.rint(points[inside]).astype(int).T
            region[y, x] = True
        return np.stack([_erode(dilate(region, gap), gap) | region for region in regions])


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


def follow(flows: np.ndarray, mask: np.ndarray) -> Tracks:
    """Carry every pixel of `mask` (bool h w, frame 0) along `flows` (f-1 h w 2), one frame after another."""
    height, width = mask.shape
    y, x = np.nonzero(mask)
    points = np.stack([x, y], axis=-1).astype(np.float32)
    inside = np.ones(len(points), bool)
    all_points, all_inside = [points], [inside]
    for flow in flows:
        points = np.where(inside[:, None], points + sample_flow(flow, points), points)
        inside = inside & (points >= 0).all(axis=-1) & (points[:, 0] <= width - 1) & (points[:, 1] <= height - 1)
        all_points.append(points)
        all_inside.append(inside)
    return Tracks(np.stack(all_points), np.stack(all_inside))


def sample_flow(flow: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Flow (h w 2) at points (n 2, x y) between the pixels, bilinear: n 2."""
    height, width = flow.shape[:2]
    corner = np.floor(points).astype(int)
    x0, y0 = corner[:, 0].clip(0, width - 1), corner[:, 1].clip(0, height - 1)
    x1, y1 = (x0 + 1).clip(max=width - 1), (y0 + 1).clip(max=height - 1)
    right, down = (points - corner).astype(flow.dtype).T[..., None]
    top = flow[y0, x0] * (1 - right) + flow[y0, x1] * right
    bottom = flow[y1, x0] * (1 - right) + flow[y1, x1] * right
    return top * (1 - down) + bottom * down


def dilate(mask: np.ndarray, pixels: int) -> np.ndarray:
    """Bool h w, grown by `pixels` to all sides, corners included; in numpy, so that no estimator's library is needed."""
    for axis in (0, 1):
        mask = _running_any(mask, pixels, axis)
    return mask


def _running_any(mask: np.ndarray, pixels: int, axis: int) -> np.ndarray:
    counts = np.cumsum(np.moveaxis(mask, axis, 0), axis=0)
    counts = np.concatenate([np.zeros_like(counts[:1]), counts])
    index = np.arange(mask.shape[axis])
    window = counts[(index + pixels + 1).clip(max=len(index))] - counts[(index - pixels).clip(min=0)]
    return np.moveaxis(window > 0, 0, axis)


def _erode(mask: np.ndarray, pixels: int) -> np.ndarray:
    return ~dilate(~mask, pixels)


def check_frames(frames: np.ndarray) -> None:
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3:
        raise ValueError(
            f"A clip is measured as RGB frames, uint8 f h w 3 (0 to 255); came {frames.dtype} {frames.shape}: convert it."
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
