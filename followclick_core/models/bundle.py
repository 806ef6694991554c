"""The parts of one trained model, loaded together from the folder that training wrote."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch

from ..checkpoint import WEIGHTS_DIR, CheckpointError, load_metadata
from ..presets import Preset, get_preset
from .motion_model import MotionModel, load_motion_model
from .sd_autoencoder import AnyAutoencoder, load_any_autoencoder
from .text_encoder import TextEncoder, load_text_encoder
from .unet import UNet, load_unet

FILES = ("unet", "motion", "autoencoder", "text_encoder", "segmenter")


@dataclass(frozen=True)
class ModelBundle:
    """UNet, motion model, autoencoder and text encoder that were trained for each other."""

    preset: Preset
    unet: UNet
    motion: MotionModel
    autoencoder: AnyAutoencoder
    text: TextEncoder

    @property
    def device(self) -> torch.device:
        return next(self.unet.parameters()).device

    def digest(self) -> str:
        """A short name for these very weights: changes when any of them does."""
        sums = hashlib.sha256()
        for module in (self.unet, self.motion, self.autoencoder, self.text):
            for tensor in module.state_dict().values():
                sums.update(tensor.cpu().contiguous().numpy().tobytes())
        return sums.hexdigest()[:16]

    def to(self, device: torch.device) -> "ModelBundle":
        """Move all parts; convolutions get their weights channels last, which is several times as fast on a CPU."""
        for module in (self.unet, self.motion, self.autoencoder, self.text):
            module.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return self


def weights_path(part: str, folder: str | Path | None = None) -> Path:
    """The file of one part (one of FILES): of the shipped model, or of a training run's `weights` folder."""
    path = Path(folder or WEIGHTS_DIR) / f"{part}.safetensors"
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no {path.name} in {path.parent}; reinstall the package or name another folder."
        )
    return path


def load_bundle(folder: str | Path | None = None) -> ModelBundle:
    """Load the shipped model, or the one in a training run's `weights` folder; float32, on the CPU."""
    unet_file = weights_path("unet", folder)
    preset_name = load_metadata(unet_file).get("preset")
    if preset_name is None:
        raise CheckpointError(f"{unet_file.name} does not say which preset it is; use a file that training wrote.")
    bundle = ModelBundle(
        preset=get_preset(preset_name),
        unet=load_unet(unet_file),
        motion=load_motion_model(weights_path("motion", folder)),
        autoencoder=load_any_autoencoder(weights_path("autoencoder", folder)),
        text=load_text_encoder(weights_path("text_encoder", folder)),
    )
    widths = (bundle.text.params.width, bundle.unet.params.context_dim, bundle.motion.params.context_dim)
    if len(set(widths)) > 1:
        raise CheckpointError(
            f"The files in {unet_file.parent} are of different models: text encoder, UNet and motion model have text "
            f"widths {widths[0]}, {widths[1]} and {widths[2]}; take all files from one run."
        )
    return bundle
