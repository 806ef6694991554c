"""Which parts of a mask belong to the clicks."""

import numpy as np
import torch
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
    import cv2

    _, parts = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)  # 0 is the outside
    clicked = set(parts[rows, columns].tolist()) - {0}
    return np.isin(parts, list(clicked)) if clicked else mask
