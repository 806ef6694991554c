"""Stable Diffusion 1's autoencoder (Rombach et al. 2022, arXiv:2112.10752) under its checkpoints' (LDM) key names.

It has the interface of `autoencoder.Autoencoder`: pixels 0..1 to latents of unit scale at an eighth of the size, and
back. Encoding gives the mean of the latent distribution; its spread, a hundredth of the latents' own, is left out, so
that a clip has one encoding.
"""

import itertools
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..checkpoint import CheckpointError, load_metadata, load_strict, load_tensors, save_safetensors
from ..shapes import Frames, FramesOfOtherSize, FramesOfOtherWidth, OtherFrames
from .autoencoder import SD_LATENT_SCALE, Autoencoder, load_autoencoder

FORMAT = "followclick.sd_autoencoder"
PREFIX = "first_stage_model."
WIDTH, CHANNEL_MULT, RES_BLOCKS, LATENT_CHANNELS = 128, (1, 2, 4, 4), 2, 4


class ResnetBlock(nn.Module):
    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.norm1 = nn.GroupNorm(32, in_channels, eps=1e-6)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(32, out_channels, eps=1e-6)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, x: Frames) -> FramesOfOtherWidth:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (x if self.nin_shortcut is None else self.nin_shortcut(x))


class AttnBlock(nn.Module):
    """Self-attention of one head over all positions."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.GroupNorm(32, channels, eps=1e-6)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Frames) -> Frames:
        h = self.norm(x)
        q, k, v = (rearrange(layer(h), "b c h w -> b 1 (h w) c") for layer in (self.q, self.k, self.v))
        h = rearrange(F.scaled_dot_product_attention(q, k, v), "b 1 (h w) c -> b c h w", h=x.shape[-2])
        return x + self.proj_out(h)


class Downsample(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Frames) -> FramesOfOtherSize:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Frames) -> FramesOfOtherSize:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """The ResBlocks of one resolution, and what leads to the next one."""

    def __init__(self, in_channels: int, out_channels: int, blocks: int, resample: str | None):
        super().__init__()
        widths = [in_channels] + [out_channels] * blocks
        self.block = nn.ModuleList(ResnetBlock(*pair) for pair in itertools.pairwise(widths))
        if resample == "down":
            self.downsample = Downsample(out_channels)
        elif resample == "up":
            self.upsample = Upsample(out_channels)
        self._resample = resample

    def forward(self, x: Frames) -> OtherFrames:
        for block in self.block:
            x = block(x)
        return x if self._resample is None else getattr(self, f"{self._resample}sample")(x)


class Middle(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels)
        self.attn_1 = AttnBlock(channels)
        self.block_2 = ResnetBlock(channels, channels)

    def forward(self, x: Frames) -> Frames:
        return self.block_2(self.attn_1(self.block_1(x)))


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        widths = [WIDTH * mult for mult in CHANNEL_MULT]
        last = len(widths) - 1
        self.conv_in = nn.Conv2d(3, WIDTH, 3, padding=1)
        self.down = nn.ModuleList(
            Level(widths[max(level - 1, 0)], width, RES_BLOCKS, "down" if level < last else None)
            for level, width in enumerate(widths)
        )
        self.mid = Middle(widths[-1])
        self.norm_out = nn.GroupNorm(32, widths[-1], eps=1e-6)
        self.conv_out = nn.Conv2d(widths[-1], 2 * LATENT_CHANNELS, 3, padding=1)

    def forward(self, x: Frames) -> OtherFrames:
        h = self.conv_in(x)
        for level in self.down:
            h = level(h)
        return self.conv_out(F.silu(self.norm_out(self.mid(h))))


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        widths = [WIDTH * mult for mult in CHANNEL_MULT]
        last = len(widths) - 1
        self.conv_in = nn.Conv2d(LATENT_CHANNELS, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1])
        # Numbered from full resolution, passed through from the lowest.
        self.up = nn.ModuleList(
            Level(widths[min(level + 1, last)], width, RES_BLOCKS + 1, "up" if level > 0 else None)
            for level, width in enumerate(widths)
        )
        self.norm_out = nn.GroupNorm(32, WIDTH, eps=1e-6)
        self.conv_out = nn.Conv2d(WIDTH, 3, 3, padding=1)

    def forward(self, x: Frames) -> OtherFrames:
        h = self.mid(self.conv_in(x))
        for level in reversed(self.up):
            h = level(h)
        return self.conv_out(F.silu(self.norm_out(h)))


class SDAutoencoder(nn.Module):
    """Encoder and decoder; pixels b 3 h w in 0..1, latents b 4 h/8 w/8 of unit scale."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = Encoder()
        self.decoder = Decoder()
        self.quant_conv = nn.Conv2d(2 * LATENT_CHANNELS, 2 * LATENT_CHANNELS, 1)
        self.post_quant_conv = nn.Conv2d(LATENT_CHANNELS, LATENT_CHANNELS, 1)

    def encode(self, pixels: Frames) -> OtherFrames:
        mean, _spread = self.quant_conv(self.encoder(2 * pixels - 1)).chunk(2, dim=1)
        return SD_LATENT_SCALE * mean

    def decode(self, latents: Frames) -> OtherFrames:
        """Pixels; slightly outside 0..1 at times, for the caller to clamp."""
        return (self.decoder(self.post_quant_conv(latents / SD_LATENT_SCALE)) + 1) / 2


AnyAutoencoder = Autoencoder | SDAutoencoder


def save_sd_autoencoder(path: str | Path, model: SDAutoencoder, notes: dict[str, str] | None = None) -> None:
    """Write as fp16 safetensors under the keys of a VAE file, which the host's VAE loader takes."""
    save_safetensors(
        path, {key: value.half() for key, value in model.state_dict().items()}, {"format": FORMAT, **(notes or {})}
    )


def load_sd_autoencoder(path: str | Path) -> SDAutoencoder:
    """The autoencoder inside a Stable Diffusion 1 checkpoint, or alone in a VAE file; float32, on the CPU."""
    return sd_autoencoder_from(load_tensors(path)[0], Path(path).name)


def load_any_autoencoder(path: str | Path) -> AnyAutoencoder:
    """The autoencoder in a run's `weights` folder, whichever of the two it is."""
    return load_sd_autoencoder(path) if load_metadata(path).get("format") == FORMAT else load_autoencoder(path)


def sd_autoencoder_from(tensors: dict[str, Tensor], name: str) -> SDAutoencoder:
    """The autoencoder of these tensors.

    Raises:
        CheckpointError: They hold none, or one of another architecture.
    """
    if any(key.startswith(PREFIX) for key in tensors):
        tensors = {key.removeprefix(PREFIX): value for key, value in tensors.items() if key.startswith(PREFIX)}
    if not any(key.startswith("encoder.down.") for key in tensors):
        raise CheckpointError(f"{name} holds no autoencoder of Stable Diffusion; choose a checkpoint with its VAE.")
    # Training leaves its discriminator and its copy of averages in some files.
    tensors = {key: value.float() for key, value in tensors.items() if not key.startswith(("loss.", "model_ema."))}
    with torch.device("meta"):
        model = SDAutoencoder()
    model.to_empty(device="cpu")
    load_strict(model, tensors, name)
    return model.eval()
