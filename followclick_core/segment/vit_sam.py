"""The published SAM models (ViT-B, ViT-L, ViT-H), told apart by the shapes in the file alone.

This file imports segment_anything, so it is imported only where a model is built.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from torch import Tensor, nn

from ..checkpoint import CheckpointError, load_strict

# ImageNet's mean and standard deviation on 0..255: Sam's own, which no checkpoint stores.
_PIXEL_MEAN, _PIXEL_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
# The one figure that leaves no trace in the shapes; it is the same in all releases.
_DECODER_HEADS = 8


@dataclass(frozen=True)
class ViTSamParams:
    embed_dim: int
    depth: int
    num_heads: int
    mlp_ratio: float
    patch_size: int
    grid: int  # side of the image embedding
    window_size: int  # 0 if every block attends globally
    global_blocks: tuple[int, ...]
    prompt_dim: int
    mask_in_chans: int
    decoder_depth: int
    decoder_mlp_dim: int
    iou_hidden_dim: int

    @property
    def kind(self) -> str:
        return {768: "vit_b", 1024: "vit_l", 1280: "vit_h"}.get(self.embed_dim, f"vit_{self.embed_dim}")


def load_vit_sam(tensors: Mapping[str, Tensor], name: str) -> tuple[Sam, str]:
    """The model that fits the weights, in float32 and eval mode, and its kind, such as "vit_b".

    Raises:
        CheckpointError: The weights are not those of a Sam with a ViT; `name` is named in the text.
    """
    params = infer_params(tensors, name)
    # ViT-H takes ten seconds to initialise, for nothing: the file overwrites every parameter.
    with torch.device("meta"):
        sam = _build(params)
    sam = sam.to_empty(device="cpu")
    sam.pixel_mean = torch.tensor(_PIXEL_MEAN).view(-1, 1, 1)
    sam.pixel_std = torch.tensor(_PIXEL_STD).view(-1, 1, 1)
    load_strict(sam, tensors, name)
    return sam.eval(), params.kind


def infer_params(tensors: Mapping[str, Tensor], name: str) -> ViTSamParams:
    """The architecture behind a checkpoint's keys and shapes.

    Raises:
        CheckpointError: A key that every Sam with a ViT has is missing or has another rank.
    """
    try:
        _, grid, _, embed_dim = tensors["image_encoder.pos_embed"].shape
        depth = _count(tensors, "image_encoder.blocks.", ".attn.qkv.weight")
        rel_pos = [tensors[f"image_encoder.blocks.{index}.attn.rel_pos_h"].shape for index in range(depth)]
        # A block that attends over s positions has 2 s - 1 relative ones.
        reaches = [(length + 1) // 2 for length, _ in rel_pos]
        windows = {reach for reach in reaches if reach != grid}
        window_size = windows.pop() if windows else 0
        return ViTSamParams(
            embed_dim=embed_dim,
            depth=depth,
            num_heads=embed_dim // rel_pos[0][1],
            mlp_ratio=tensors["image_encoder.blocks.0.mlp.lin1.weight"].shape[0] / embed_dim,
            patch_size=tensors["image_encoder.patch_embed.proj.weight"].shape[-1],
            grid=grid,
            window_size=window_size,
            global_blocks=tuple(index for index, reach in enumerate(reaches) if reach == grid),
            prompt_dim=tensors["image_encoder.neck.0.weight"].shape[0],
            mask_in_chans=tensors["prompt_encoder.mask_downscaling.3.weight"].shape[0],
            decoder_depth=_count(tensors, "mask_decoder.transformer.layers.", ".mlp.lin1.weight"),
            decoder_mlp_dim=tensors["mask_decoder.transformer.layers.0.mlp.lin1.weight"].shape[0],
            iou_hidden_dim=tensors["mask_decoder.iou_prediction_head.layers.0.weight"].shape[0],
        )
    except (KeyError, ValueError, IndexError) as error:
        raise CheckpointError(
            f"{name} is no SAM model of the kinds ViT-B, ViT-L or ViT-H ({error}); "
            "use sam_vit_b_01ec64.pth, sam_vit_l_0b3195.pth, sam_vit_h_4b8939.pth or the embedded segmenter."
        ) from error


def _count(tensors: Mapping[str, Tensor], prefix: str, suffix: str) -> int:
    return sum(key.startswith(prefix) and key.endswith(suffix) for key in tensors)


def _build(params: ViTSamParams) -> Sam:
    image_size = params.grid * params.patch_size
    return Sam(
        image_encoder=ImageEncoderViT(
            img_size=image_size,
            patch_size=params.patch_size,
            embed_dim=params.embed_dim,
            depth=params.depth,
            num_heads=params.num_heads,
            mlp_ratio=params.mlp_ratio,
            out_chans=params.prompt_dim,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),  # pyright: ignore[reportArgumentType]
            use_rel_pos=True,
            window_size=params.window_size,
            global_attn_indexes=params.global_blocks,
        ),
        prompt_encoder=PromptEncoder(
            embed_dim=params.prompt_dim,
            image_embedding_size=(params.grid, params.grid),
            input_image_size=(image_size, image_size),
            mask_in_chans=params.mask_in_chans,
        ),
        mask_decoder=MaskDecoder(
            transformer_dim=params.prompt_dim,
            transformer=TwoWayTransformer(
                depth=params.decoder_depth,
                embedding_dim=params.prompt_dim,
                num_heads=_DECODER_HEADS,
                mlp_dim=params.decoder_mlp_dim,
            ),
            iou_head_hidden_dim=params.iou_hidden_dim,
        ),
        pixel_mean=list(_PIXEL_MEAN),
        pixel_std=list(_PIXEL_STD),
    )
