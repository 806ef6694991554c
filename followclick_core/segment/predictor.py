"""From clicks to masks with Segment Anything (Kirillov et al. 2023, arXiv:2304.02643).

Like `SamPredictor` it embeds a picture once and answers many clicks; unlike it, it keeps no state: the embedding is a
value of its own, which a cache may hold and several threads may use.

segment_anything is imported when a model is loaded or asked, not when this file is.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..checkpoint import WEIGHTS_DIR, load_tensors
from ..shapes import Image, Mask
from .clicks import Click, check_clicks
from .params import SEGMENTER_FAMILY
from .parts import keep_clicked_parts

if TYPE_CHECKING:
    from segment_anything.modeling import Sam

DEMO = "demo"
DEMO_FILE = "segmenter.safetensors"


@dataclass(frozen=True)
class ImageEmbedding:
    """What the image encoder made of one picture: all that clicks on it need."""

    features: Float[Tensor, "1 c n n"]
    original_size: tuple[int, int]  # (height, width) of the picture
    input_size: tuple[int, int]  # the same, scaled so that the long side fills the encoder's input

    def to(self, device: str | torch.device) -> "ImageEmbedding":
        return replace(self, features=self.features.to(device))


@dataclass(frozen=True)
class MaskCandidates:
    """Masks that a selection can mean, for instance a wheel or the whole car, best first.

    `scores` are the model's own estimates of each mask's intersection over union with what was meant, about 0..1.
    """

    masks: Bool[np.ndarray, "n h w"]
    scores: Float[np.ndarray, "n"]

    def __len__(self) -> int:
        return len(self.masks)

    @property
    def best(self) -> Mask:
        return self.masks[0]

    def pick(self, candidate: int | None) -> Mask:
        """The mask of this rank; None is the best.

        Raises:
            ValueError: There are not so many candidates.
        """
        check_candidate(candidate, len(self))
        return self.masks[candidate or 0]


@dataclass(frozen=True)
class Proposals:
    """What MaskCandidates holds, before it is computed at the picture's size: one can be taken without the others.

    Attributes:
        logits: Best first, over the encoder's square input.
        scores: As in MaskCandidates.
    """

    logits: Float[Tensor, "k n n"]
    scores: Float[np.ndarray, "k"]

    def __len__(self) -> int:
        return len(self.logits)

    def areas(self, embedding: ImageEmbedding) -> list[float]:
        """The share of the picture that each covers, 0..1, to the accuracy of the logits' resolution."""
        rows, columns = (
            math.ceil(side / max(embedding.input_size) * self.logits.shape[-1]) for side in embedding.input_size
        )
        return (self.logits[:, :rows, :columns] > 0).float().mean(dim=(1, 2)).tolist()


def check_candidate(candidate: int | None, number: int) -> None:
    """Raise ValueError if there is no candidate of this rank; None, the best, there always is."""
    if candidate is not None and not 0 <= candidate < number:
        raise ValueError(f"Mask candidate {candidate} was asked for, but there are {number}; give 0 to {number - 1}.")


# (logits 1 k n n, points 1 p 2 as 0..1 of the encoder's input, labels 1 p) -> logits
Refine = Callable[[Tensor, Tensor, Tensor], Tensor]


class Segmenter:
    """A Sam model behind two calls: `embed` a picture, `predict` masks from clicks on it.

    Args:
        refine: What is done to the logits before they become masks; None leaves them as they are.
    """

    def __init__(self, sam: "Sam", name: str = "sam", refine: Refine | None = None):
        self.sam = sam.eval()
        self.name = name
        self._refine = refine

    @property
    def device(self) -> torch.device:
        return self.sam.device

    def digest(self) -> str:
        """A short name for these very weights, by which masks of other ones can be told."""
        sums = hashlib.sha256()
        for tensor in self.sam.state_dict().values():
            sums.update(tensor.cpu().contiguous().numpy().tobytes())
        return sums.hexdigest()[:16]

    def to(self, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> "Segmenter":
        """Move the model in place. `dtype` (float16, bfloat16) is that of the image encoder alone, where the time goes:
        half precision in the prompt encoder's sinusoids would shift the clicks."""
        self.sam.to(device=device)
        self.sam.image_encoder.to(dtype=dtype)
        return self

    @torch.no_grad()
    def embed(self, image: Image) -> ImageEmbedding:
        """Encode a picture of any size and aspect: the long side is scaled to the encoder's input, the rest padded.

        Raises:
            ValueError: Not uint8 h w 3, or so narrow that less than a pixel of its short side is left.
        """
        from segment_anything.utils.transforms import ResizeLongestSide

        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(f"The segmenter takes uint8 images h w 3, not {image.dtype} {image.shape}; convert first.")
        height, width = image.shape[:2]
        size = self.sam.image_encoder.img_size
        input_size = ResizeLongestSide.get_preprocess_shape(height, width, size)
        if min(input_size) < 1:
            raise ValueError(f"An image of {width}x{height} pixels is too narrow to find objects in; crop it.")
        scaled = ResizeLongestSide(size).apply_image(image)
        pixels = torch.from_numpy(scaled).to(self.device).permute(2, 0, 1)[None]
        encoder_dtype = next(self.sam.image_encoder.parameters()).dtype
        features = self.sam.image_encoder(self.sam.preprocess(pixels).to(encoder_dtype))
        return ImageEmbedding(features, (height, width), input_size)

    def predict(self, embedding: ImageEmbedding, clicks: Sequence[Click]) -> MaskCandidates:
        """Masks of the object under the clicks, in the resolution of the picture that was embedded.

        One click can mean a part or the whole, so it yields several candidates; more clicks yield a single mask.

        Raises:
            ValueError: No click that includes something, or clicks of several objects.
        """
        proposals = self.propose(embedding, clicks)
        # One at a time: three masks of a 12-megapixel photo as float32 would take half a gigabyte.
        masks = [self.pick(proposals, embedding, rank) for rank in range(len(proposals))]
        return MaskCandidates(np.stack(masks), proposals.scores)

    @torch.no_grad()
    def propose(self, embedding: ImageEmbedding, clicks: Sequence[Click]) -> Proposals:
        """What `predict` answers, not yet scaled to the picture: for who wants one of the masks.

        Raises:
            ValueError: As predict.
        """
        check_clicks(clicks)
        if len({click.object for click in clicks}) > 1:
            raise ValueError(
                "The clicks belong to several objects, but a mask is found for one at a time; "
                "pass each object's clicks on their own (clicks_by_object)."
            )
        points, labels = self._prompt(embedding, clicks)
        sparse, dense = self.sam.prompt_encoder(points=(points, labels), boxes=None, masks=None)
        logits, scores = self.sam.mask_decoder(
            image_embeddings=embedding.features.to(self.device, dense.dtype),
            image_pe=self.sam.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=len(clicks) == 1,
        )
        if self._refine is not None:
            logits = self._refine(logits, (points + 0.5) / self.sam.image_encoder.img_size, labels)
        order = scores[0].argsort(descending=True, stable=True)
        return Proposals(logits[0, order], scores[0, order].float().cpu().numpy())

    @torch.no_grad()
    def pick(self, proposals: Proposals, embedding: ImageEmbedding, candidate: int | None) -> Mask:
        """The mask of this rank, in the resolution of the picture that was embedded; None is the best.

        Raises:
            ValueError: There are not so many candidates.
        """
        check_candidate(candidate, len(proposals))
        logits = proposals.logits[candidate or 0][None, None]
        full = self.sam.postprocess_masks(logits, embedding.input_size, embedding.original_size)
        return (full[0, 0] > self.sam.mask_threshold).cpu().numpy()

    def _prompt(
        self, embedding: ImageEmbedding, clicks: Sequence[Click]
    ) -> tuple[Float[Tensor, "1 n 2"], Float[Tensor, "1 n"]]:
        """Points (x, y) in the encoder's input. Sam names a pixel by its index and moves half a pixel to its centre."""
        height, width = embedding.original_size
        input_height, input_width = embedding.input_size
        points = [
            ((click.x * width - 0.5) * (input_width / width), (click.y * height - 0.5) * (input_height / height))
            for click in clicks
        ]
        labels = [float(click.label) for click in clicks]
        return torch.tensor([points], device=self.device), torch.tensor([labels], device=self.device)


def load_segmenter(source: str | Path = DEMO, device: str | torch.device | None = None) -> Segmenter:
    """The embedded segmenter ("demo"), or one from a file: SAM ViT-B, ViT-L or ViT-H (.pth, .safetensors), known by
    its keys and shapes alone, or another that training wrote.

    Args:
        device: None takes the GPU if there is one.

    Raises:
        FileNotFoundError: There is no such file.
        CheckpointError: The file is truncated, would run code when loaded, or holds another model.
    """
    path = WEIGHTS_DIR / DEMO_FILE if source == DEMO else Path(source)
    tensors, metadata = load_tensors(path)
    from . import small_sam, vit_sam

    if metadata.get("family") == SEGMENTER_FAMILY:
        sam = small_sam.load_small_sam(tensors, metadata, path.name)
        segmenter = Segmenter(sam, DEMO if source == DEMO else path.stem, refine=keep_clicked_parts)
    else:
        segmenter = Segmenter(*vit_sam.load_vit_sam(tensors, path.name))
    return segmenter.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
