"""The masks that a click really gives, for the motion stage: what a segmenter makes of one on the clip's first frame.

A motion model that has only seen exact silhouettes takes an inexact one at its word: what the mask lacks of the object
stays behind, what it has too much moves along or shimmers, and there the clips of a demo model lost most of their
region obedience. One that has also been shown the segmenter's masks learns to move the object that is meant.
"""

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from .segmenter_clicks import including_clicks

if TYPE_CHECKING:
    from segment_anything.modeling import Sam

Pixels = Float[Tensor, "b 3 h w"]
Planes = Float[Tensor, "b 1 h w"]

# Below this intersection over union a mask rather means something else, and to move what it does not mean would teach
# to ignore it.
LEAST_IOU = 0.5


class ClickMasks:
    """Puts a segmenter's mask of a click in the place of some silhouettes.

    Nothing waits for the device, so unlike a run nothing looks for the parts that no click lies in.

    Args:
        sam: Takes pictures of the clips' size.
        share: Of the masks, 0..1.
    """

    def __init__(self, sam: "Sam", share: float):
        self._sam = sam.eval().requires_grad_(False)
        self._share = share

    @torch.no_grad()
    def __call__(self, pixels: Pixels, mask: Planes, otherwise: Planes, generator: torch.Generator) -> Planes:
        """Masks of 0 and 1: the segmenter's, or `otherwise` where it is not its turn or it found something else.

        Args:
            pixels: The first frames, 0..1.
            mask: The silhouettes, 0 or 1, within which is clicked.
            otherwise: What the model is given in the other clips.
        """
        found = self._found(pixels, *including_clicks(mask, 1, generator))
        both = (found * mask).sum(dim=(1, 2, 3))
        iou = both / (found.sum(dim=(1, 2, 3)) + mask.sum(dim=(1, 2, 3)) - both).clamp(min=1)
        turn = torch.rand(len(mask), device=mask.device, generator=generator) < self._share
        return torch.where((turn & (iou >= LEAST_IOU)).view(-1, 1, 1, 1), found, otherwise)

    def _found(self, pixels: Pixels, points: Float[Tensor, "b 1 2"], labels: Float[Tensor, "b 1"]) -> Planes:
        """The mask with the best score for each click."""
        sam = self._sam
        with torch.autocast(pixels.device.type, torch.bfloat16, enabled=pixels.device.type == "cuda"):
            features = sam.image_encoder(sam.preprocess(255 * pixels.float()))
        sparse, dense = sam.prompt_encoder(points=(points, labels), boxes=None, masks=None)
        logits, scores = sam.mask_decoder(
            image_embeddings=features.float(),
            image_pe=sam.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=True,
        )
        index = scores.argmax(dim=1).view(-1, 1, 1, 1).expand(-1, 1, *logits.shape[-2:])
        best = F.interpolate(logits.gather(1, index), pixels.shape[-2:], mode="bilinear")
        return (best > sam.mask_threshold).to(pixels.dtype)
