"""Which clips are good to learn from. Decided on raw figures, so other thresholds need no video."""

from collections.abc import Mapping
from typing import Any

from .params import Thresholds

STATIC = "static"
NO_REGION = "nothing in the first frame moves"
EVERYWHERE = "moves everywhere"
PANNING = "panning"
DARK = "too dark"
LITTLE = "too little motion"
MUCH = "too much motion"
SMALL = "video too small"
REASONS = (STATIC, NO_REGION, EVERYWHERE, PANNING, DARK, LITTLE, MUCH, SMALL)

# What the report shows, and the thresholds that act on it: figure -> (label, thresholds).
FIGURES = {
    "area": ("share of the frame that moves", ("min_area", "max_area")),
    "magnitude": ("magnitude (px/frame at 512)", ("min_magnitude", "max_magnitude")),
    "camera": ("camera: median flow (px/frame at 512)", ("max_camera",)),
    "border": ("flow along the border (px/frame at 512)", ("max_border",)),
    "darkest": ("brightness of the darkest frame", ("min_brightness",)),
    "side": ("shorter side of the video (px)", ("min_side",)),
}


def figures_of(sample: Mapping[str, Any]) -> dict[str, float]:
    """The figures that thresholds act on, of a sample's raw record."""
    rule, motion, source = sample["mask_rule"], sample["motion"], sample["source"]
    return {
        "area": motion["area"][rule],
        "magnitude": motion["magnitude"][rule],
        "camera": motion["camera"],
        "border": motion["border"],
        "darkest": motion["darkest"],
        "side": min(source["width"], source["height"]),
    }


def reject(sample: Mapping[str, Any], thresholds: Thresholds) -> list[str]:
    """Every reason to leave a sample out, none for a good one; `sample` is its raw record (see docs/DATASET.md)."""
    figures = figures_of(sample)
    static = sample["motion"]["area"]["union"] < thresholds.min_area
    no_region = not static and figures["area"] < thresholds.min_area
    tests = {
        STATIC: static,
        NO_REGION: no_region,
        EVERYWHERE: figures["area"] > thresholds.max_area,
        PANNING: figures["camera"] > thresholds.max_camera or figures["border"] > thresholds.max_border,
        DARK: figures["darkest"] < thresholds.min_brightness,
        LITTLE: not static and not no_region and figures["magnitude"] < thresholds.min_magnitude,
        MUCH: figures["magnitude"] > thresholds.max_magnitude,
        SMALL: figures["side"] < thresholds.min_side,
    }
    return [reason for reason, fails in tests.items() if fails]
