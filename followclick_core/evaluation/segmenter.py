"""How well one click finds an object: intersection over union on pictures with a known object, such as held-out scenes.

Through the public calls alone; benchmarks/segmenter.py prints it of a model's file.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from ..segment import Segmenter, clicks_from_pixels
from ..shapes import Image, Mask
from .metrics import edge_distance, mask_iou

_CHUNK = 16  # scenes drawn at a time


@runtime_checkable
class StillSource(Protocol):
    """data.scenes.SceneGenerator, of the "test" side of the split."""

    def sample_stills(self, batch_size: int, seed: int) -> Any: ...


@dataclass(frozen=True)
class ClickScore:
    """Over the pictures, 0..1.

    Attributes:
        mean_iou: Of the mask that the model ranks first.
        share_good: Share of the pictures in which that one reaches 0.75.
        oracle_iou: Mean of the best of the candidates, had the user picked it.
        second_click_iou: Mean after one more click, in the middle of the largest error.
        num_pictures: How many were asked.
    """

    mean_iou: float
    share_good: float
    oracle_iou: float
    second_click_iou: float
    num_pictures: int


def evaluate_segmenter(
    segmenter: Segmenter,
    scenes: StillSource,
    num_scenes: int = 100,
    seed: int = 0,
    click: str = "centre",
    min_area: float = 0.002,
) -> ClickScore:
    """`score_clicks` on the targets of held-out scenes.

    Args:
        min_area: Share of the picture below which a target is passed over.
    """
    return score_clicks(segmenter, held_out_stills(scenes, num_scenes, seed, min_area), seed, click)


def score_clicks(
    segmenter: Segmenter, pictures: Iterable[tuple[Image, Mask]], seed: int = 0, click: str = "centre"
) -> ClickScore:
    """Click once on the object of each picture, and once more where that went wrong.

    Args:
        pictures: Each with its object's mask.
        click: "centre", the point farthest from the object's edge, where one aims; or "interior", any point at least
            half as far from it.
    """
    if click not in ("centre", "interior"):
        raise ValueError(f"There is no way of clicking called {click!r}; choose centre or interior.")
    rng = np.random.default_rng(seed)
    first, oracle, second = [], [], []
    for image, mask in pictures:
        size = (image.shape[1], image.shape[0])
        embedding = segmenter.embed(image)
        points = [(*_point(mask, click, rng), 1)]
        found = segmenter.predict(embedding, clicks_from_pixels(points, size))
        ious = [mask_iou(candidate, mask) for candidate in found.masks]
        wrong = found.best != mask
        if wrong.any():
            x, y = _point(wrong, "centre", rng)
            points.append((x, y, int(mask[y, x])))
            corrected = segmenter.predict(embedding, clicks_from_pixels(points, size)).best
            second.append(mask_iou(corrected, mask))
        else:
            second.append(1.0)
        first.append(ious[0])
        oracle.append(max(ious))
    return ClickScore(
        mean_iou=float(np.mean(first)),
        share_good=float(np.mean(np.array(first) >= 0.75)),
        oracle_iou=float(np.mean(oracle)),
        second_click_iou=float(np.mean(second)),
        num_pictures=len(first),
    )


def held_out_stills(scenes: StillSource, num_scenes: int, seed: int, min_area: float) -> Iterator[tuple[Image, Mask]]:
    """Pictures and the silhouettes of their targets, those too small to click left out."""
    # A range of seeds of its own for each seed, far from those that training counts through.
    chunk_seed, made = 1_000_000 * (seed + 1), 0
    while made < num_scenes:
        batch = scenes.sample_stills(_CHUNK, seed=chunk_seed)
        chunk_seed += 1
        images = (255 * batch.frames[:, :, 0]).round().byte().permute(0, 2, 3, 1).cpu().numpy()
        masks = batch.mask[:, 0].cpu().numpy() > 0.5
        for image, mask in zip(images, masks, strict=True):
            if mask.mean() >= min_area and made < num_scenes:
                made += 1
                yield image, mask


def _point(mask: Mask, click: str, rng: np.random.Generator) -> tuple[int, int]:
    """A pixel (x, y) of the mask; the picture's border counts as an edge."""
    depth = edge_distance(mask)
    deep = np.flatnonzero(depth >= (depth.max() if click == "centre" else depth.max() / 2))
    y, x = np.unravel_index(deep[0] if click == "centre" else rng.choice(deep), mask.shape)
    return int(x), int(y)
