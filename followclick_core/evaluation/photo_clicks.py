"""How well one click finds an object on real photos: on samples that PyPI packages carry, which no training sees.

The art pack holds them on its test side; the outlines, drawn by hand for this purpose, lie in photo_outlines.json,
as 0..1 of the photo's width and height. They follow the object to within a few hundredths of the photo.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as PillowImage
from PIL import ImageDraw

from ..data.art import ArtPack
from ..shapes import Image, Mask
from .metrics import edge_distance, mask_iou

OUTLINES = Path(__file__).with_name("photo_outlines.json")


def outlined_photos(art: ArtPack) -> Iterator[tuple[str, Image, Mask]]:
    """Name, photo, and the object's mask, of the photos of the pack's test side that have an outline."""
    outlines = json.loads(OUTLINES.read_text(encoding="utf-8"))
    for photo, info in zip(art.photos, art.photo_infos, strict=True):
        if info.split == "test" and info.name in outlines:
            yield info.name, photo, outline_mask(outlines[info.name]["outlines"], photo.shape[1], photo.shape[0])


def outline_mask(outlines: list[list[list[float]]], width: int, height: int) -> Mask:
    """What lies inside any of the polygons, given by points (x, y), 0..1."""
    canvas = PillowImage.new("1", (width, height))
    for outline in outlines:
        ImageDraw.Draw(canvas).polygon([(x * width - 0.5, y * height - 0.5) for x, y in outline], fill=1)
    return np.array(canvas)


def click_photos(animator: Any, art: ArtPack) -> dict[str, float]:
    """Photo -> intersection over union of the mask that one click at the object's deepest point gives."""
    scores = {}
    for name, photo, mask in outlined_photos(art):
        y, x = np.unravel_index(int(edge_distance(mask).argmax()), mask.shape)
        scores[name] = mask_iou(animator.segment(photo, [(int(x), int(y), 1)]).best, mask)
    return scores
