"""The model that training on shards optimises: UNet, motion model and text encoder as one module with one forward.

One forward, so that whatever wraps the module (DDP, FSDP) sees every use of its weights; training and validation both
go through it.
"""

import functools
from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..models.attach import MotionConditioning, attach
from ..models.blocks import ResBlock, SpatialTransformer
from ..models.motion_model import MotionModel
from ..models.motion_module import MotionModule
from ..models.text_encoder import TextEncoder
from ..models.unet import UNet
from ..shapes import PerSample, Video, fold_frames, unfold_frames

ClipTensors = Mapping[str, Tensor]


class ClipModel(nn.Module):
    """Predicts what the noise schedule asks for, for whole clips."""

    seen: Tensor

    def __init__(self, unet: UNet, motion: MotionModel, text: TextEncoder, seen: Tensor):
        """Args: seen: which words the text encoder has met in training, one flag for each of the vocabulary."""
        super().__init__()
        self.unet, self.motion, self.text = unet, motion, text
        self.register_buffer("seen", seen)
        self.attachment = attach(unet, motion)

    def forward(
        self,
        x_t: Video,
        t: Int[Tensor, "b"],
        tokens: Int[Tensor, "b n"],
        magnitude: PerSample,
        first_frame: Float[Tensor, "b 5 f h w"],
    ) -> Video:
        num_frames = x_t.shape[2]
        with torch.set_grad_enabled(torch.is_grad_enabled() and self._trains_text()):
            context = self.text(tokens)
        conditioning = MotionConditioning(num_frames, context, magnitude, first_frame)
        timesteps = t.repeat_interleave(num_frames)
        with self.attachment.conditioned(conditioning, timesteps):
            prediction = self.unet(fold_frames(x_t), timesteps, context.repeat_interleave(num_frames, dim=0))
        return unfold_frames(prediction, len(x_t))

    def _trains_text(self) -> bool:
        return next(self.text.parameters()).requires_grad


def clip_loss(
    prediction: Float[Tensor, "b c f h w"],
    target: Float[Tensor, "b c f h w"],
    swept: Float[Tensor, "b 1 h w"],
    region_weight: float,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Squared error, each clip weighted alike, so that it does not matter how a batch is shared out; and figures.

    Args:
        swept: Where something moves, at the latents' size.
        region_weight: What is added there to the weight of 1.
    """
    error = (prediction.float() - target.float()).square().mean(dim=(1, 2))
    region = swept[:, 0].float()
    weight = 1 + region_weight * region
    loss = ((error * weight).sum(dim=(1, 2)) / weight.sum(dim=(1, 2))).mean()
    error = error.detach()
    inside = (error * region).sum() / region.sum().clamp(min=1)
    outside = (error * (1 - region)).sum() / (1 - region).sum().clamp(min=1)
    return loss, {"inside": inside, "outside": outside}


def checkpoint_activations(model: nn.Module) -> None:
    """Keep only what goes into each block, and compute the block again when its gradients are needed."""
    for module in model.modules():
        if isinstance(module, (ResBlock, SpatialTransformer, MotionModule)):
            module.forward = functools.partial(checkpoint, module.forward, use_reentrant=False)  # type: ignore[method-assign]
