"""Several regions with motions of their own (paper section 5.4): which one counts where, and how they are computed."""

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

# "blended": one UNet call, in which prompts and magnitudes are blended (models/region_hooks.py), at about one region's
# price.
# "separate": a call for each region, and their predictions are blended: the regional prompter's way.
REGION_MODES = ("blended", "separate")

# Over this many pixels of the clip one region's prediction passes into the next one's: a latent's side.
SEAM_WIDTH = 8.0


def check_region_mode(name: str) -> None:
    """ValueError for what is none of REGION_MODES."""
    if name not in REGION_MODES:
        raise ValueError(f"There is no way {name!r} for several regions; choose {' or '.join(REGION_MODES)}.")


def region_shares(masks: Float[Tensor, "n h w"]) -> Float[Tensor, "n h w"]:
    """The share of each region in each pixel; they sum to one, and the nearest region has nearly all.

    A region's own pixels are not enough: an object that moves leaves its mask, and what it then covers must come from
    the same prediction.

    Args:
        masks: 0..1, at the clip's size; a region is where its mask is at least a half, or else where it is strongest.
    """
    distances = torch.stack([_distance_to(mask) for mask in masks])
    return torch.softmax(-distances * (4 / SEAM_WIDTH), dim=0)


def latent_shares(masks: Float[Tensor, "b r h w"], size: tuple[int, int]) -> Float[Tensor, "b r h_out w_out"]:
    """`region_shares` of each picture at the latents' size; they still sum to one."""
    return F.adaptive_avg_pool2d(torch.stack([region_shares(each) for each in masks]), size)


def _distance_to(mask: Float[Tensor, "h w"]) -> Float[Tensor, "h w"]:
    import cv2

    inside = (mask >= min(0.5, float(mask.max()))).cpu().numpy()
    distance = cv2.distanceTransform((~inside).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return torch.from_numpy(distance).to(mask.device)
