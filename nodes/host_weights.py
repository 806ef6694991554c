"""Weights as the host holds them: the pack's own and files in the model folders, each with a patcher that moves it."""

import functools

import comfy.model_management as memory
import comfy.sd
import torch
from comfy.model_patcher import ModelPatcher

from ..followclick_core.animator import Animator
from ..followclick_core.checkpoint import SAFETENSORS_SUFFIXES, load_metadata
from ..followclick_core.models.autoencoder import load_autoencoder
from ..followclick_core.models.bundle import load_bundle, weights_path
from ..followclick_core.models.lora import motion_lora_pairs
from ..followclick_core.models.motion_files import load_motion_file
from ..followclick_core.models.motion_model import load_motion_model
from ..followclick_core.models.text_encoder import load_text_encoder_tensors
from ..followclick_core.models.unet import load_unet
from ..followclick_core.presets import get_preset
from .host import EMBEDDED, LORA_FOLDERS, MOTION_FOLDERS, hosted, weight_path
from .host_families import with_lora
from .host_models import host_clip, host_model, host_vae
from .host_segmenters import segmenter
from .sockets import HostedAnimator, HostedMotionModel

SD15_SIZE = 512  # of models that do not say at which size they were trained


def demo_model() -> ModelPatcher:
    """The pack's own UNet as a MODEL, with the noise schedule it was trained on."""
    path = weights_path("unet")
    unet = load_unet(path)
    return host_model(unet.params, load_motion_model(weights_path("motion")).schedule, unet.state_dict(), path.name)


def demo_clip() -> comfy.sd.CLIP:
    path = weights_path("text_encoder")
    tensors, params = load_text_encoder_tensors(path)
    return host_clip(params, tensors, path.name)


def demo_vae() -> comfy.sd.VAE:
    return host_vae(load_autoencoder(weights_path("autoencoder")).state_dict())


def motion_model(name: str, fps: float | None = None) -> HostedMotionModel:
    """The embedded motion model, or a file of the motion model folders, of any family.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it is damaged, or no motion model.
    """
    path = weights_path("motion") if name == EMBEDDED else weight_path(name, MOTION_FOLDERS)
    file = load_motion_file(path)
    # In the type that the host would choose for a UNet, as the two compute together.
    model = file.model
    model = model.to(memory.unet_dtype(model_params=sum(parameter.nelement() for parameter in model.parameters())))
    preset = load_metadata(path).get("preset") if path.suffix in SAFETENSORS_SUFFIXES else None
    size = get_preset(preset).size if preset else SD15_SIZE
    return HostedMotionModel(model, hosted(model), size, file.spatial, f"{file.form}\n{file.family.about()}", fps)


def with_motion_lora(motion: HostedMotionModel, name: str, strength: float) -> HostedMotionModel:
    """The motion model with a motion LoRA file added, `strength` times.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it is no motion LoRA, or one for another motion model.
    """
    path = weight_path(name, LORA_FOLDERS)
    return with_lora(motion, motion_lora_pairs(motion.model, path), strength)


@functools.lru_cache(maxsize=1)
def demo_animator() -> HostedAnimator:
    """The whole method with the pack's own weights; kept, as the host caches loaders but not what a node loads."""
    bundle = load_bundle().to(torch.device("cpu"))
    hosted_segmenter = segmenter(EMBEDDED)
    patcher = hosted(bundle.unet, bundle.motion, bundle.autoencoder, bundle.text)
    return HostedAnimator(Animator(bundle, hosted_segmenter.segmenter), hosted_segmenter, patcher)
