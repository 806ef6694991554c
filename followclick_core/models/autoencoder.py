"""A small autoencoder of TAESD's shape (Ollin Boer Bohan, "TAESD"), so that the host's VAE loader takes its file.

It maps pixels 0..1 to latents of unit scale at an eighth of the size, and back.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from ..checkpoint import load_safetensors, load_strict, save_safetensors
from ..shapes import Frames, OtherFrames

# The host divides by this when it encodes and multiplies when it decodes: Stable Diffusion 1.5's latent scale.
SD_LATENT_SCALE = 0.18215


class Clamp(nn.Module):
    """A soft clamp to -3..3: stray latents stay within what the decoder has seen."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x / 3) * 3


class Block(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
        )
        self.fuse = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.fuse(self.conv(x) + x)


class Autoencoder(nn.Module):
    """Encoder and decoder; pixels b 3 h w in 0..1, latents b 4 h/8 w/8."""

    def __init__(self, latent_channels: int = 4, width: int = 64):
        super().__init__()
        self.taesd_encoder = nn.Sequential(*_encoder_layers(latent_channels, width))
        self.taesd_decoder = nn.Sequential(*_decoder_layers(latent_channels, width))
        self.vae_scale = nn.Parameter(torch.tensor(SD_LATENT_SCALE), requires_grad=False)
        self.vae_shift = nn.Parameter(torch.tensor(0.0), requires_grad=False)

    def encode(self, pixels: Frames) -> OtherFrames:
        return self.taesd_encoder(pixels)

    def decode(self, latents: Frames) -> OtherFrames:
        """Pixels; slightly outside 0..1 at times, for the caller to clamp."""
        return self.taesd_decoder(latents)


def save_autoencoder(path: str | Path, model: Autoencoder, notes: dict[str, str] | None = None) -> None:
    metadata = {"format": "followclick.autoencoder", **(notes or {})}
    save_safetensors(path, {key: value.half() for key, value in model.state_dict().items()}, metadata)


def load_autoencoder(path: str | Path) -> Autoencoder:
    """Read TAESD-shaped weights, in float32 on the CPU; CheckpointError if they are something else.

    `sd_autoencoder.load_any_autoencoder` reads Stable Diffusion's too.
    """
    tensors, _ = load_safetensors(path)
    model = Autoencoder()
    load_strict(model, {key: value.float() for key, value in tensors.items()}, Path(path).name)
    return model.eval()


def _encoder_layers(latent_channels: int, width: int) -> list[nn.Module]:
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1), Block(width)]
    for _ in range(3):
        layers += [nn.Conv2d(width, width, 3, padding=1, stride=2, bias=False), *(Block(width) for _ in range(3))]
    return [*layers, nn.Conv2d(width, latent_channels, 3, padding=1)]


def _decoder_layers(latent_channels: int, width: int) -> list[nn.Module]:
    layers: list[nn.Module] = [Clamp(), nn.Conv2d(latent_channels, width, 3, padding=1), nn.ReLU()]
    for _ in range(3):
        layers += [
            *(Block(width) for _ in range(3)),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
        ]
    return [*layers, Block(width), nn.Conv2d(width, 3, 3, padding=1)]
