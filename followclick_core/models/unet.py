"""Stable Diffusion's UNet (LDM key names) at any size: `sd15`, and the small ones this project trains."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoint import CheckpointError, load_strict, load_tensors, params_from, save_safetensors
from ..shapes import Frames, FramesOfOtherWidth, OtherFrames, Tokens
from .blocks import Downsample, ResBlock, SpatialTransformer, Upsample, zero_
from .embeddings import sinusoidal_embedding


@dataclass(frozen=True)
class UNetParams:
    """The numbers of one UNet; a tuple has one entry per level, from full to lowest resolution."""

    model_channels: int = 320
    channel_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    transformer_depth: tuple[int, ...] = (1, 1, 1, 0)
    transformer_depth_middle: int = 1
    num_heads: int = 8
    context_dim: int = 768
    in_channels: int = 4
    out_channels: int = 4

    def __post_init__(self) -> None:
        if len(self.transformer_depth) != len(self.channel_mult):
            raise ValueError(
                f"{len(self.channel_mult)} UNet levels need a transformer depth each, got {self.transformer_depth}."
            )

    @property
    def channels(self) -> tuple[int, ...]:
        """Width of each level."""
        return tuple(self.model_channels * mult for mult in self.channel_mult)

    @property
    def time_channels(self) -> int:
        return 4 * self.model_channels

    @property
    def size_multiple(self) -> int:
        """Latent height and width must be multiples of this, or skips would be cropped."""
        return 2 ** (len(self.channel_mult) - 1)


class UNetBlock(nn.Sequential):
    """Layers that share one place in the UNet; each gets what it needs besides the picture."""

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, x: Frames, emb: Tensor, context: Tokens, size: tuple[int, int] | None = None
    ) -> OtherFrames:
        for layer in self:
            if isinstance(layer, ResBlock):
                x = layer(x, emb)
            elif isinstance(layer, SpatialTransformer):
                x = layer(x, context)
            elif isinstance(layer, Upsample):
                x = layer(x, size or (2 * x.shape[-2], 2 * x.shape[-1]))
            else:
                x = layer(x)
        return x


class UNet(nn.Module):
    """Predicts v from noisy latents, frame by frame; `attach` adds what happens between frames."""

    def __init__(self, params: UNetParams):
        super().__init__()
        self.params = params
        self.time_embed = nn.Sequential(
            nn.Linear(params.model_channels, params.time_channels),
            nn.SiLU(),
            nn.Linear(params.time_channels, params.time_channels),
        )
        self.input_blocks, skip_channels = self._make_input_blocks(params)
        self.middle_block = self._make_middle_block(params)
        self.output_blocks = self._make_output_blocks(params, skip_channels)
        self.out = nn.Sequential(
            nn.GroupNorm(32, params.channels[0]),
            nn.SiLU(),
            zero_(nn.Conv2d(params.channels[0], params.out_channels, 3, padding=1)),
        )

    def forward(self, x: Frames, timesteps: Tensor, context: Tokens) -> FramesOfOtherWidth:
        """One prediction per frame.

        Args:
            x: Noisy latents, frames folded into the batch: (b f) c h w.
            timesteps: 0 … 999 for each of the (b f) frames.
            context: Text embedding for each of the (b f) frames.
        """
        emb = sinusoidal_embedding(timesteps, self.params.model_channels).to(x.dtype)
        emb = self.time_embed(emb)
        skips: list[Tensor] = []
        h = x
        for block in self.input_blocks:
            h = block(h, emb, context)
            skips.append(h)
        h = self.middle_block(h, emb, context)
        for block in self.output_blocks:
            h = torch.cat([h, skips.pop()], dim=1)
            size = (skips[-1].shape[-2], skips[-1].shape[-1]) if skips else None
            h = block(h, emb, context, size)
        return self.out(h)

    @staticmethod
    def _make_input_blocks(params: UNetParams) -> tuple[nn.ModuleList, list[int]]:
        blocks: list[nn.Module] = [UNetBlock(nn.Conv2d(params.in_channels, params.model_channels, 3, padding=1))]
        width, skip_channels = params.model_channels, [params.model_channels]
        for level, channels in enumerate(params.channels):
            for _ in range(params.num_res_blocks):
                blocks.append(_spatial_block(params, width, channels, params.transformer_depth[level]))
                width = channels
                skip_channels.append(width)
            if level < len(params.channels) - 1:
                blocks.append(UNetBlock(Downsample(width)))
                skip_channels.append(width)
        return nn.ModuleList(blocks), skip_channels

    @staticmethod
    def _make_middle_block(params: UNetParams) -> UNetBlock:
        width = params.channels[-1]
        return UNetBlock(
            ResBlock(width, params.time_channels, width),
            SpatialTransformer(width, params.context_dim, params.num_heads, params.transformer_depth_middle),
            ResBlock(width, params.time_channels, width),
        )

    @staticmethod
    def _make_output_blocks(params: UNetParams, skip_channels: list[int]) -> nn.ModuleList:
        blocks: list[nn.Module] = []
        width = params.channels[-1]
        for level, channels in reversed(list(enumerate(params.channels))):
            for index in range(params.num_res_blocks + 1):
                block = _spatial_block(params, width + skip_channels.pop(), channels, params.transformer_depth[level])
                width = channels
                if level and index == params.num_res_blocks:
                    block.append(Upsample(width))
                blocks.append(block)
        return nn.ModuleList(blocks)


def _spatial_block(params: UNetParams, in_channels: int, channels: int, depth: int) -> UNetBlock:
    block = UNetBlock(ResBlock(in_channels, params.time_channels, channels))
    if depth:
        block.append(SpatialTransformer(channels, params.context_dim, params.num_heads, depth))
    return block


def save_unet(path: str | Path, model: UNet, notes: dict[str, str] | None = None) -> None:
    """Write as fp16 safetensors whose metadata holds the UNet's numbers."""
    metadata = {"format": "followclick.unet", "params": json.dumps(asdict(model.params)), **(notes or {})}
    save_safetensors(path, {key: value.half() for key, value in model.state_dict().items()}, metadata)


def load_unet(path: str | Path) -> UNet:
    """Read a UNet: one of this project's, or the UNet inside a Stable Diffusion 1.5 checkpoint. float32, on the CPU."""
    tensors, metadata = load_tensors(path)
    prefix = "model.diffusion_model."
    if metadata.get("format") == "followclick.unet":
        params = params_from(metadata, params_from_json, Path(path).name)
    elif any(key.startswith(prefix) for key in tensors):
        params = UNetParams()
        tensors = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    else:
        raise CheckpointError(f"{Path(path).name} holds no Stable Diffusion UNet; choose a checkpoint with one.")
    with torch.device("meta"):
        model = UNet(params)
    model.to_empty(device="cpu")
    load_strict(model, {key: value.float() for key, value in tensors.items()}, Path(path).name)
    return model.eval()


def params_from_json(text: str) -> UNetParams:
    """The numbers that `save_unet` wrote."""
    values: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in json.loads(text).items()
    }
    return UNetParams(**values)
