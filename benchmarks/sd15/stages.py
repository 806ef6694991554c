"""What surrounds sampling: the segmenter that answers clicks, the autoencoder, and a clip from picture to picture."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from .host import Host
from .variants import Shape, Variant, noise_of


@dataclass(frozen=True)
class Call:
    """Something to be timed.

    Args:
        bytes: That must move through the device's memory at least: weights, input and output, each once.
    """

    run: Callable[[], object]
    bytes: int

    def __call__(self) -> object:
        with torch.inference_mode():
            return self.run()


def vit_b(host: Host) -> Any:
    """SAM ViT-B as the pack's segmenter holds it, with random weights."""
    from segment_anything import sam_model_registry

    with host.device:
        sam = sam_model_registry["vit_b"]()
    return host.core("followclick_core.segment").Segmenter(sam.to(host.device), "SAM ViT-B")


def segmenter_calls(host: Host, segmenter: Any, side: int) -> dict[str, Call]:
    """Embedding a picture of side x side, and the mask of one click on it, in float32 as the pack computes them."""
    picture = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    embedding = segmenter.embed(picture)
    click = host.core("followclick_core.segment").Click(0.4, 0.6, 1)

    def mask() -> object:
        proposals = segmenter.propose(embedding, [click])
        return segmenter.pick(proposals, embedding, None)

    sam, features = segmenter.sam, embedding.features.nbytes
    answers = _weights(sam.prompt_encoder) + _weights(sam.mask_decoder)
    return {
        f"{segmenter.name}: embed, float32": Call(
            lambda: segmenter.embed(picture), _weights(sam.image_encoder) + picture.nbytes + features
        ),
        f"{segmenter.name}: click, float32": Call(mask, answers + features + side**2),
    }


def autoencoder_calls(vae: Any, shape: Shape) -> dict[str, Call]:
    """Encoding the picture, and decoding the clip, by the host's own calls: from its memory and back to it."""
    picture, latents = torch.rand(1, shape.size, shape.size, 3), noise_of(shape)
    model = vae.first_stage_model
    return {
        f"VAE: encode 1 picture of {shape.size} px": Call(
            lambda: vae.encode(picture), _weights(model.encoder) + picture.nbytes + latents[:1].nbytes
        ),
        f"VAE: decode {shape.frames} frames of {shape.size} px": Call(
            lambda: vae.decode(latents), _weights(model.decoder) + latents.nbytes + shape.frames * picture.nbytes
        ),
    }


def sampling_calls(variants: dict[str, Variant], shape: Shape, steps: int) -> dict[str, Callable[[], object]]:
    """Noise to latents."""

    def sampling(variant: Variant) -> Callable[[], object]:
        return lambda: variant.sample(shape, steps, lambda: None)

    return {f"{name}: {steps} steps": sampling(variant) for name, variant in variants.items()}


def whole_calls(vae: Any, variants: dict[str, Variant], shape: Shape, steps: int) -> dict[str, Callable[[], object]]:
    """Picture to clip: the picture encoded, `steps` steps, all frames decoded."""
    picture = torch.rand(1, shape.size, shape.size, 3)

    def whole(variant: Variant) -> Callable[[], object]:
        def run() -> object:
            with torch.inference_mode():
                vae.encode(picture)
                return vae.decode(variant.sample(shape, steps, lambda: None))

        return run

    return {f"{name}: encode, {steps} steps, decode": whole(variant) for name, variant in variants.items()}


def _weights(module: nn.Module) -> int:
    return sum(parameter.nbytes for parameter in module.parameters())
