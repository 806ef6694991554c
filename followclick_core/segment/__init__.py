"""From clicks on a picture to the mask of what will move."""

from .clicks import (
    Click,
    check_clicks,
    clicks_by_object,
    clicks_from_pixels,
    clicks_to_json,
    clicks_to_pixel_json,
    gather_clicks,
    parse_clicks,
    read_clicks,
)
from .morphology import feather_mask, grow_mask
from .motions import ObjectMotion, parse_motions
from .predictor import ImageEmbedding, MaskCandidates, Segmenter, load_segmenter
from .selection import Selection, predict_masks, select_objects

__all__ = [
    "Click",
    "ImageEmbedding",
    "MaskCandidates",
    "ObjectMotion",
    "Segmenter",
    "Selection",
    "check_clicks",
    "clicks_by_object",
    "clicks_from_pixels",
    "clicks_to_json",
    "clicks_to_pixel_json",
    "feather_mask",
    "gather_clicks",
    "grow_mask",
    "load_segmenter",
    "parse_clicks",
    "parse_motions",
    "predict_masks",
    "read_clicks",
    "select_objects",
]
