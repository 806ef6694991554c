"""From clicks on a picture to the mask of what will move."""

from .clicks import (
    Click,
    check_clicks,
    clicks_by_object,
    clicks_from_pixels,
    clicks_to_json,
    clicks_to_pixel_json,
    parse_clicks,
)
from .morphology import feather_mask, grow_mask
from .predictor import ImageEmbedding, MaskCandidates, Segmenter, load_segmenter, predict_masks

__all__ = [
    "Click",
    "ImageEmbedding",
    "MaskCandidates",
    "Segmenter",
    "check_clicks",
    "clicks_by_object",
    "clicks_from_pixels",
    "clicks_to_json",
    "clicks_to_pixel_json",
    "feather_mask",
    "grow_mask",
    "load_segmenter",
    "parse_clicks",
    "predict_masks",
]
