"""What a clip's motion is: flow, the mask of every rule, and the raw figures that filters and labels are made of."""

from dataclasses import asdict, dataclass

import numpy as np

from ..flow import FlowEstimator, clip_flows, motion_regions
from ..flow.magnitude import REFERENCE_WIDTH
from ..flow.motion_mask import lengths
from ..shapes import Frames8
from .params import MotionParams

CELL = 8  # px; the stored flow has one vector per latent cell
BORDER = 16  # the border is this part of the width


@dataclass(frozen=True)
class Measurements:
    """Raw figures of a clip. Speeds in pixels per frame at 512 px of width, shares and brightness 0..1.

    Attributes:
        area, magnitude: By mask rule: the region's share of the frame, and its mean speed.
        camera: Length of the median flow, mean over the pairs.
        border: Median speed along the frame's border, mean over the pairs: zoom and rotation, which a median misses.
        flow_mean: Mean speed of everything, the camera included.
        outside: Mean speed outside the `union` region, the camera's taken off.
        brightness, darkest: Mean of the clip's frames, and the darkest frame's.
    """

    area: dict[str, float]
    magnitude: dict[str, float]
    camera: float
    border: float
    flow_mean: float
    outside: float
    brightness: float
    darkest: float

    def to_dict(self) -> dict:
        return asdict(self)


@dataclass(frozen=True)
class MeasuredClip:
    """Figures, masks by rule (bool h w), and the flow per cell of 8x8 px (f-1 h/8 w/8 2, float16, px of the frames)."""

    figures: Measurements
    masks: dict[str, np.ndarray]
    flow: np.ndarray


def measure_clip(frames: Frames8, estimator: FlowEstimator, params: MotionParams) -> MeasuredClip:
    """Forward flow between consecutive frames, and all that is read off it."""
    flows = clip_flows(frames, estimator)
    to_reference = REFERENCE_WIDTH / frames.shape[2]
    regions = motion_regions(flows, floor_px=params.floor / to_reference, subtract_median=params.subtract_median)
    camera = np.median(flows, axis=(1, 2))
    outside = ~regions["union"].mask
    residual = lengths(flows[:, outside] - camera[:, None])
    light = frames.reshape(len(frames), -1).mean(axis=1) / 255
    speed = lengths(flows)
    return MeasuredClip(
        figures=Measurements(
            area={rule: float(region.mask.mean()) for rule, region in regions.items()},
            magnitude={rule: region.magnitude * to_reference for rule, region in regions.items()},
            camera=float(lengths(camera).mean()) * to_reference,
            border=float(np.median(speed[:, _border(frames.shape[1], frames.shape[2])], axis=1).mean()) * to_reference,
            flow_mean=float(speed.mean()) * to_reference,
            outside=float(residual.mean()) * to_reference if outside.any() else 0.0,
            brightness=float(light.mean()),
            darkest=float(light.min()),
        ),
        masks={rule: region.mask for rule, region in regions.items()},
        flow=flow_cells(flows),
    )


def flow_cells(flows: np.ndarray) -> np.ndarray:
    """Flows f h w 2 averaged over cells of 8x8 pixels, float16."""
    pairs, height, width, _ = flows.shape
    cells = flows.reshape(pairs, height // CELL, CELL, width // CELL, CELL, 2).mean(axis=(2, 4))
    return cells.astype(np.float16)


def _border(height: int, width: int) -> np.ndarray:
    thickness = max(1, width // BORDER)
    border = np.ones((height, width), bool)
    border[thickness:-thickness, thickness:-thickness] = False
    return border
