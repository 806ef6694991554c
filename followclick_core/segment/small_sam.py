"""The embedded segmenter: a Sam (Kirillov et al. 2023, arXiv:2304.02643) small enough to ship and to run on a CPU.

Prompt encoder, two-way transformer and mask decoder are those of the `segment_anything` package. Two things differ:

- The image encoder is MobileNetV2 with a feature pyramid instead of a ViT: 2 M parameters instead of 90 M.
- Thin features of stride 4 and 2 reach the mask decoder's upscaling, as in HQ-SAM (Ke et al. 2023, arXiv:2306.01567)
  and SAM 2 (Ravi et al. 2024, arXiv:2408.00714, section 4), so that edges follow the picture at half its resolution.
  They travel inside the one embedding tensor, folded to its grid, so `SamPredictor` and `Sam.forward` work unchanged.

This file imports segment_anything and torchvision, so it is imported only where a model is built.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import cast

import torch
from jaxtyping import Float, Int
from segment_anything.modeling import MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import mobilenet_v2

from ..checkpoint import load_strict, params_from, save_safetensors
from .clicks import EXCLUDE, INCLUDE
from .params import SEGMENTER_FAMILY, SmallSamParams

_STRIDE = 8  # of the embedding's grid
# Where MobileNetV2's feature maps of stride 2, 4, 8, 16, 32 end; what follows only serves its classifier.
_TRUNK_ENDS = (2, 4, 7, 14, 18)
# A position code's logit with itself is then about 6, at 128 channels and 8 heads.
_PLACE_GAIN = 3.5


def build_small_sam(params: SmallSamParams) -> Sam:
    """A randomly initialised Sam with the small encoder, in eval mode."""
    if params.image_size % 32:
        raise ValueError(f"The segmenter's input has a side of {params.image_size} pixels; give a multiple of 32.")
    grid = params.image_size // _STRIDE
    sam = Sam(
        # Sam's annotation names its ViT, but it asks of an encoder no more than a forward and img_size.
        image_encoder=SmallImageEncoder(params.image_size, params.embed_dim, params.trunk_width),  # pyright: ignore
        prompt_encoder=BatchedPromptEncoder(
            embed_dim=params.embed_dim,
            image_embedding_size=(grid, grid),
            input_image_size=(params.image_size, params.image_size),
            mask_in_chans=16,
        ),
        mask_decoder=DetailMaskDecoder(
            transformer_dim=params.embed_dim,
            transformer=TwoWayTransformer(
                depth=params.depth,
                embedding_dim=params.embed_dim,
                num_heads=params.num_heads,
                mlp_dim=params.mlp_dim,
            ),
            iou_head_hidden_dim=params.iou_hidden_dim,
        ),
    )
    _attend_by_place(cast(TwoWayTransformer, sam.mask_decoder.transformer))
    return sam.eval()


class SmallImageEncoder(nn.Module):
    """Normalised pixels (b 3 s s) to the embedding at stride 8 with the finer features folded into its channels."""

    def __init__(self, image_size: int, embed_dim: int, trunk_width: float):
        super().__init__()
        self.img_size = image_size
        layers = cast(nn.Sequential, mobilenet_v2(weights=None, width_mult=trunk_width).features)
        self.trunk = nn.Sequential(*list(layers)[: _TRUNK_ENDS[-1]])
        widths = [cast(int, self.trunk[end - 1].out_channels) for end in _TRUNK_ENDS]
        self.detail_2 = nn.Conv2d(widths[0], embed_dim // 8, 1)
        self.detail_4 = nn.Conv2d(widths[1], embed_dim // 4, 1)
        self.laterals = nn.ModuleList(nn.Conv2d(width, embed_dim, 1) for width in widths[2:])
        self.smoothers = nn.ModuleList(_separable_conv(embed_dim) for _ in widths[2:])

    def forward(self, x: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b c n n"]:
        features = []
        for index, block in enumerate(self.trunk, start=1):
            x = block(x)
            if index in _TRUNK_ENDS:
                features.append(x)
        stride_2, stride_4, *coarse = features
        laterals = [lateral(feature) for lateral, feature in zip(self.laterals, coarse, strict=True)]
        pyramid = self.smoothers[-1](laterals[-1])
        for lateral, smoother in zip(laterals[-2::-1], self.smoothers[-2::-1], strict=True):
            pyramid = smoother(lateral + F.interpolate(pyramid, scale_factor=2.0, mode="bilinear"))
        return torch.cat(
            (pyramid, F.pixel_unshuffle(self.detail_4(stride_4), 2), F.pixel_unshuffle(self.detail_2(stride_2), 4)),
            dim=1,
        )


class BatchedPromptEncoder(PromptEncoder):
    """PromptEncoder with the same values for points, without indexing by booleans: on a GPU each such index waits for
    the device, four times a prompt."""

    def _embed_points(
        self, points: Float[Tensor, "b n 2"], labels: Int[Tensor, "b n"] | Float[Tensor, "b n"], pad: bool
    ) -> Float[Tensor, "b m c"]:
        points = points + 0.5
        if pad:
            points = F.pad(points, (0, 0, 0, 1))
            labels = F.pad(labels, (0, 1), value=-1)
        embedding = self.pe_layer.forward_with_coords(points, self.input_image_size)
        label = labels[..., None]
        embedding = torch.where(label == -1, self.not_a_point_embed.weight, embedding)
        embedding = embedding + (label == EXCLUDE) * self.get_parameter("point_embeddings.0.weight")
        return embedding + (label == INCLUDE) * self.get_parameter("point_embeddings.1.weight")


class DetailMaskDecoder(MaskDecoder):
    """MaskDecoder whose upscaling adds the folded stride-4 and stride-2 features.

    Unlike the original it also takes a batch of images, each with an equal number of prompts, which training needs.
    """

    def predict_masks(
        self,
        image_embeddings: Float[Tensor, "images c n n"],
        image_pe: Float[Tensor, "1 d n n"],
        sparse_prompt_embeddings: Float[Tensor, "b tokens d"],
        dense_prompt_embeddings: Float[Tensor, "b d n n"],
    ) -> tuple[Float[Tensor, "b k h w"], Float[Tensor, "b k"]]:
        batch, dim = len(sparse_prompt_embeddings), self.transformer_dim
        prompts_per_image = batch // len(image_embeddings)
        if prompts_per_image > 1:
            image_embeddings = image_embeddings.repeat_interleave(prompts_per_image, dim=0)
        embedding, detail_4, detail_2 = image_embeddings.split((dim, dim, 2 * dim), dim=1)

        own_tokens = torch.cat((self.iou_token.weight, self.mask_tokens.weight)).expand(batch, -1, -1)
        tokens = torch.cat((own_tokens, sparse_prompt_embeddings), dim=1)
        source = embedding + dense_prompt_embeddings
        tokens, pixels = self.transformer(source, image_pe.expand_as(source), tokens)

        pixels = pixels.transpose(1, 2).reshape(source.shape)
        to_stride_4, norm, activation, to_stride_2, last_activation = self.output_upscaling
        pixels = activation(norm(to_stride_4(pixels) + F.pixel_shuffle(detail_4, 2)))
        pixels = last_activation(to_stride_2(pixels) + F.pixel_shuffle(detail_2, 4))

        mask_tokens = tokens[:, 1 : 1 + self.num_mask_tokens].unbind(dim=1)
        weights = [mlp(token) for mlp, token in zip(self.output_hypernetworks_mlps, mask_tokens, strict=True)]
        masks = torch.einsum("bkc,bchw->bkhw", torch.stack(weights, dim=1), pixels)
        return masks, self.iou_prediction_head(tokens[:, 0])


def save_small_sam(
    path: str | Path, sam: Sam, params: SmallSamParams, metadata: Mapping[str, str] | None = None
) -> None:
    """Write the weights as fp16 safetensors, with what load_small_sam needs to rebuild the model."""
    tensors = {key: value.half() if value.is_floating_point() else value for key, value in sam.state_dict().items()}
    own = {"family": SEGMENTER_FAMILY, "params": json.dumps(asdict(params))}
    save_safetensors(path, tensors, {**(metadata or {}), **own})


def load_small_sam(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str], name: str, image_size: int | None = None
) -> Sam:
    """Rebuild the model from a file that save_small_sam wrote; `image_size` overrides the input size it was saved with.

    Raises:
        CheckpointError: The file's parameters or keys do not fit this version; `name` is named in the text.
    """
    params = params_from(metadata, lambda text: SmallSamParams(**json.loads(text)), name)
    sam = build_small_sam(params if image_size is None else replace(params, image_size=image_size))
    load_strict(sam, tensors, name)
    # The layout in which convolutions are fastest, on a CPU too.
    sam.image_encoder.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    return sam


@torch.no_grad()
def _attend_by_place(transformer: TwoWayTransformer) -> None:
    """Let clicks and pixels of the same place attend to each other before anything is learnt.

    Their position codes are equal where their places are, but queries and keys that are projected by different random
    matrices do not show it. With one matrix for both, scaled so that the softmax has a peak, training finds the click
    at once instead of after a thousand steps.
    """
    attentions = [transformer.final_attn_token_to_image]
    for layer in transformer.layers.children():
        attentions += [layer.get_submodule(f"cross_attn_{way}") for way in ("token_to_image", "image_to_token")]
    for attention in attentions:
        query, key = attention.get_submodule("q_proj"), attention.get_submodule("k_proj")
        query.get_parameter("weight").mul_(_PLACE_GAIN)
        key.get_parameter("weight").copy_(query.get_parameter("weight"))
        query.get_parameter("bias").zero_()
        key.get_parameter("bias").zero_()


def _separable_conv(width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(width, width, 3, padding=1, groups=width),
        nn.Conv2d(width, width, 1),
        nn.GroupNorm(8, width),
        nn.GELU(),
    )
