"""Which parts of a mask belong to the clicks."""

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def keep_clicked_parts(
    logits: Float[Tensor, "1 k n n"], points: Float[Tensor, "1 p 2"], labels: Float[Tensor, "1 p"]
) -> Float[Tensor, "1 k n n"]:
    """The logits with those connected parts of each mask made negative that no including click lies in.

    A small model also finds what merely looks like the object elsewhere: the other towers besides the rocket. A mask
    that no click lies in is left as it is.

    Args:
        points: (x, y), 0..1 over the square that the logits cover.
    """
    size = logits.shape[-1]
    including = points[0, labels[0] > 0.5].cpu().numpy()
    columns, rows = np.clip((including * size).astype(int), 0, size - 1).T
    kept = [_parts_at(plane, rows, columns) for plane in (logits[0] > 0).cpu().numpy()]
    return torch.where(torch.from_numpy(np.stack(kept)).to(logits.device), logits, -logits.abs())


def _parts_at(mask: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """The connected parts of a bool mask that hold one of the pixels; all of it if none does."""
    if not mask[rows, columns].any():
        return mask
    try:
        import cv2
    except ImportError:  # a machine that only samples clips to be scored elsewhere needs no OpenCV
        return _flood(mask, rows, columns)
    _, parts = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)  # 0 is the outside
    return np.isin(parts, list(set(parts[rows, columns].tolist()) - {0}))


def _flood(mask: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """The same, by growing from the pixels a step at a time: right, but slower by two orders of magnitude."""
    whole = torch.from_numpy(mask)[None].float()
    reached = torch.zeros_like(whole)
    reached[0, rows, columns] = whole[0, rows, columns]
    while True:
        grown = F.max_pool2d(reached, 3, stride=1, padding=1) * whole
        if torch.equal(grown, reached):
            return (reached[0] > 0).numpy()
        reached = grown
