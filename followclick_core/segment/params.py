"""What describes the embedded segmenter; apart from its code, so that naming it imports no model library."""

from dataclasses import dataclass

SEGMENTER_FAMILY = "followclick_segmenter"  # in the metadata of its files


@dataclass(frozen=True)
class SmallSamParams:
    image_size: int = 256  # side of the square input, a multiple of 32; the same weights serve other sizes
    embed_dim: int = 128
    depth: int = 2  # of the two-way transformer
    num_heads: int = 8
    mlp_dim: int = 512
    iou_hidden_dim: int = 128
    trunk_width: float = 1.0  # MobileNetV2's width multiplier; ImageNet weights exist for 1
