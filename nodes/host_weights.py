"""Weights as the host holds them: the pack's own and files in the model folders, each with a patcher that moves it."""

import functools
import hashlib
from collections import OrderedDict

import comfy.model_management as memory
import comfy.sd
import numpy as np
import torch
from comfy.model_patcher import ModelPatcher

from ..followclick_core.animator import Animator
from ..followclick_core.checkpoint import SAFETENSORS_SUFFIXES, load_metadata
from ..followclick_core.models.autoencoder import load_autoencoder
from ..followclick_core.models.bundle import load_bundle, weights_path
from ..followclick_core.models.motion_model import load_motion_model
from ..followclick_core.models.text_encoder import load_text_encoder_tensors
from ..followclick_core.models.unet import load_unet
from ..followclick_core.presets import get_preset
from ..followclick_core.segment import ImageEmbedding, load_segmenter
from .host import EMBEDDED, MOTION_FOLDERS, SEGMENTER_FOLDERS, hosted, load_on_device, weight_path
from .host_models import host_clip, host_model, host_vae
from .sockets import HostedAnimator, HostedMotionModel, HostedSegmenter

SD15_SIZE = 512  # of models that do not say at which size they were trained
REMEMBERED_PICTURES = 2


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


def motion_model(name: str) -> HostedMotionModel:
    """The embedded motion model, or a file of the motion model folders.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it is damaged, or no motion model.
    """
    path = weights_path("motion") if name == EMBEDDED else weight_path(name, MOTION_FOLDERS)
    model = load_motion_model(path)
    # In the type that the host would choose for a UNet, as the two compute together.
    model = model.to(memory.unet_dtype(model_params=sum(parameter.nelement() for parameter in model.parameters())))
    preset = load_metadata(path).get("preset") if path.suffix in SAFETENSORS_SUFFIXES else None
    return HostedMotionModel(model, hosted(model), get_preset(preset).size if preset else SD15_SIZE)


def segmenter(name: str) -> HostedSegmenter:
    """The embedded segmenter, or a file of the segmenter folder.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it is damaged, or no Segment Anything.
    """
    path = weights_path("segmenter") if name == EMBEDDED else weight_path(name, SEGMENTER_FOLDERS)
    loaded = load_segmenter(path, "cpu")
    return HostedSegmenter(loaded, hosted(loaded.sam))


@functools.lru_cache(maxsize=1)
def demo_animator() -> HostedAnimator:
    """The whole method with the pack's own weights; kept, as the host caches loaders but not what a node loads."""
    bundle = load_bundle().to(torch.device("cpu"))
    hosted_segmenter = segmenter(EMBEDDED)
    patcher = hosted(bundle.unet, bundle.motion, bundle.autoencoder, bundle.text)
    return HostedAnimator(Animator(bundle, hosted_segmenter.segmenter), hosted_segmenter, patcher)


def embed(hosted: HostedSegmenter, picture: np.ndarray) -> ImageEmbedding:
    """What the segmenter, on the host's device, sees in the picture.

    The last pictures are remembered, for who moves a click asks again about the same one.
    """
    device = load_on_device(hosted.patcher)
    key = hashlib.blake2b(picture.tobytes() + str((hosted.segmenter.name, picture.shape)).encode()).digest()
    if key not in _embeddings:
        _embeddings[key] = hosted.segmenter.embed(picture).to("cpu")
        while len(_embeddings) > REMEMBERED_PICTURES:
            _embeddings.popitem(last=False)
    return _embeddings[key].to(device)


_embeddings: OrderedDict[bytes, ImageEmbedding] = OrderedDict()
