"""Optical flow: what moves in a clip, where, and how much (equation 2 and the motion magnitude)."""

from .estimators import FlowEstimator, dis_flow, load_raft
from .magnitude import MotionReport, measure_motion, report_motion
from .motion_mask import MotionRegion, motion_mask, motion_regions
from .tracks import Tracks, clip_flows, follow

__all__ = [
    "FlowEstimator",
    "MotionRegion",
    "MotionReport",
    "Tracks",
    "clip_flows",
    "dis_flow",
    "follow",
    "load_raft",
    "measure_motion",
    "motion_mask",
    "motion_regions",
    "report_motion",
]
