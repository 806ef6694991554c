"""What surrounds sampling: the segmenter that answers clicks, the autoencoder, and a clip from picture to picture."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from .host import Host
from .variants import Shape, Variant, noise_of


def vit_b(host: Host) -> Any:
    """SAM ViT-B as the pack's segmenter holds it, with random weights."""
    from segment_anything import sam_model_registry

    with host.device:
        sam = sam_model_registry["vit_b"]()
    return host.core("followclick_core.segment").Segmenter(sam.to(host.device), "vit_b")


def segmenter_calls(host: Host, segmenter: Any, side: int) -> dict[str, Callable[[], object]]:
    """Embedding a picture of side x side, and the mask of one click on it."""
    picture = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    embedding = segmenter.embed(picture)
    click = host.core("followclick_core.segment").Click(0.4, 0.6, 1)

    def mask() -> object:
        proposals = segmenter.propose(embedding, [click])
        return segmenter.pick(proposals, embedding, None)

    return {f"{segmenter.name}: embed": lambda: segmenter.embed(picture), f"{segmenter.name}: click": mask}


def autoencoder_calls(vae: Any, shape: Shape) -> dict[str, Callable[[], object]]:
    """Encoding the picture, and decoding the clip, by the host's own calls: to and from its memory."""
    picture = torch.rand(1, shape.size, shape.size, 3)
    latents = noise_of(shape)
    return {
        "VAE: encode 1 picture": _without_gradients(lambda: vae.encode(picture)),
        f"VAE: decode {shape.frames} frames": _without_gradients(lambda: vae.decode(latents)),
    }


def whole_calls(variants: dict[str, Variant], vae: Any, shape: Shape, steps: int) -> dict[str, Callable[[], object]]:
    """Picture to clip: the picture encoded, `steps` steps, all frames decoded."""
    picture = torch.rand(1, shape.size, shape.size, 3)

    def whole(variant: Variant) -> Callable[[], object]:
        def run() -> object:
            vae.encode(picture)
            return vae.decode(variant.sample(shape, steps, lambda: None))

        return _without_gradients(run)

    return {f"{name}: {steps} steps and VAE": whole(variant) for name, variant in variants.items()}


def _without_gradients(call: Callable[[], object]) -> Callable[[], object]:
    def run() -> object:
        with torch.inference_mode():
            return call()

    return run
