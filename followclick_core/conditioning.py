"""The five extra input channels: region mask and first frame, laid out over time, and their masking in training."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .shapes import Masks, MasksOfOtherSize, OtherVideo


def first_frame_condition(latents: Tensor, mask: Masks, num_frames: int, layout: str) -> OtherVideo:
    """Mask (1 channel), then first-frame latents (4 channels), for every frame: b 5 f h w.

    Args:
        latents: The first frame's latents, b 4 h w.
        mask: The region that moves, b 1 h w, at any size; it is averaged down to the latents' size, so that a cell
            tells which part of it moves.
        layout: "paper" has the mask on frame 0 only and the latents on all frames (paper section 4.1); "release", the
            authors' code, has the mask on all frames and the latents on frame 0 only; "repeat" has both on all frames.
    """
    small = resize_mask(mask, latents.shape[-2:])
    latent_frames = latents[:, :, None].expand(-1, -1, num_frames, -1, -1)
    mask_frames = small[:, :, None].expand(-1, -1, num_frames, -1, -1)
    first_only = torch.zeros(num_frames, device=latents.device, dtype=latents.dtype)
    first_only[0] = 1
    first_only = first_only[:, None, None]
    if layout == "paper":
        mask_frames = mask_frames * first_only
    elif layout == "release":
        latent_frames = latent_frames * first_only
    elif layout != "repeat":
        raise ValueError(f"There is no first-frame layout {layout!r}; choose paper, release or repeat.")
    return torch.cat([mask_frames.to(latents.dtype), latent_frames], dim=1)


def resize_mask(mask: Masks, size: tuple[int, int] | torch.Size) -> MasksOfOtherSize:
    """The mask at the latents' size, each cell the mean of the pixels it covers."""
    return F.adaptive_avg_pool2d(mask.float(), (size[0], size[1])).to(mask.dtype)


def mask_first_frame(latents: Tensor, ratio: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """First-frame masking (paper section 4.1): zero a random share of the latent positions, all channels together.

    Args:
        latents: b 4 h w.
        ratio: Share to zero for each sample, 0..1, [b]; the paper trains with 0.7.
    """
    shape = (latents.shape[0], 1, *latents.shape[-2:])
    draw = torch.rand(shape, device=latents.device, generator=generator)
    return latents * (draw >= ratio.view(-1, 1, 1, 1)).to(latents.dtype)
