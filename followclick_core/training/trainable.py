"""Which weights are trained: sets with names, so that a run can say what it changed.

paper         the motion model: temporal transformers, motion-augmented attention, the five new channels of the
              first convolution, magnitude, still gate. The convolution's part for the noisy latents stays Stable
              Diffusion's, so that the result fits every checkpoint of it.
all           the motion model and the UNet
scratch       the same and the text encoder: for models that begin with nothing
spatial-lora  the motion model, and a LoRA on the UNet's attention
ma            motion-augmented attention and magnitude alone: a trained model learns other verbs from few clips
motion-lora   a LoRA on the temporal attention of a trained model: a manner of moving in a small file
"""

import re
from collections.abc import Iterator

from torch import nn

from ..models.lora import MOTION_LAYERS, UNET_LAYERS, add_lora

SETS = {
    "paper": re.compile(r"^motion\."),
    "all": re.compile(r"^(motion|unet)\."),
    "scratch": re.compile(r"^(motion|unet|text)\."),
    "spatial-lora": re.compile(r"^motion\.|^unet\..*\.parametrizations\.weight\.0\.(up|down)$"),
    "ma": re.compile(r"^motion\.(.*\.attention_blocks\.2\.|.*\.norms\.2\.|motion_embedding\.)"),
    "motion-lora": re.compile(r"^motion\..*\.parametrizations\.weight\.0\.(up|down)$"),
}
# Sets that leave the first frame's convolution as it is, so that it must have been trained before.
NEED_TRAINED_MODEL = ("ma", "motion-lora")


def check_set(name: str) -> None:
    if name not in SETS:
        raise ValueError(f"There is no set of weights {name!r}; choose one of {', '.join(SETS)}.")


def choose_trainable(model: nn.Module, name: str, lora_rank: int, trained_before: bool = False) -> None:
    """Let the weights of a set require gradients, and no others; LoRAs are added where the set has them.

    Args:
        model: With `motion`, `unet` and `text`.
        trained_before: Take for granted that the motion model sees the first frame.

    Raises:
        ValueError: There is no such set, or it needs a trained motion model and this one has never seen a first frame.
    """
    check_set(name)
    if name in NEED_TRAINED_MODEL and not trained_before and not _sees_first_frame(model):
        raise ValueError(
            f"The set {name} adds to a motion model that has been trained already, and this one does not see the first "
            "frame yet; train the set paper first, or give --motion a model of this pack."
        )
    if name == "spatial-lora":
        add_lora(model.unet, UNET_LAYERS, lora_rank)  # type: ignore[arg-type]
    elif name == "motion-lora":
        add_lora(model.motion, MOTION_LAYERS, lora_rank)  # type: ignore[arg-type]
    for key, parameter in model.named_parameters():
        parameter.requires_grad_(SETS[name].search(key) is not None)


def _sees_first_frame(model: nn.Module) -> bool:
    return bool(model.motion.first_frame_conv.weight.any())  # type: ignore[union-attr,operator]


def trainable_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Name and value of what is trained, in an order that never changes."""
    return ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)
