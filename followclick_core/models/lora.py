"""Low-rank additions to attention weights (LoRA, Hu et al. 2021, arXiv:2106.09685): trained, saved, read, merged.

A layer keeps its own code: the addition is a parametrisation of its weight, W + up down, so whatever reads the weight
gets the sum. Two file forms, each that of the models it is for:

- of the motion model: AnimateDiff's motion LoRA, `….attention_blocks.0.processor.to_q_lora.down.weight`, so other packs
  for AnimateDiff take it too; it has no alpha.
- of the UNet: `lora_unet_<layer>.lora_down.weight`, `.lora_up.weight`, `.alpha`, which the host's LoRA loader takes.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..checkpoint import CheckpointError, load_tensors, save_safetensors
from .motion_keys import from_adapter
from .motion_model import MotionModel

LoraPairs = dict[str, tuple[Tensor, Tensor]]  # layer -> (up, down)

# The temporal self-attentions; the motion-augmented one is not AnimateDiff's, so its files have no name for it.
MOTION_LAYERS = re.compile(r"motion_modules\.\d+\..*\.attention_blocks\.[01]\.to_(q|k|v|out\.0)$")
UNET_LAYERS = re.compile(r"transformer_blocks\.\d+\.attn[12]\.to_(q|k|v|out)(\.0)?$")
_MOTION_KEY = re.compile(r"^(.*\.attention_blocks\.[01])\.processor\.to_(q|k|v|out)_lora\.(down|up)\.weight$")


class LowRank(nn.Module):
    """weight -> weight + up down; `up` starts at zero, so that nothing changes at first."""

    def __init__(self, layer: nn.Linear, rank: int):
        super().__init__()
        like = layer.weight
        self.down = nn.Parameter(torch.empty(rank, layer.in_features, device=like.device))
        self.up = nn.Parameter(torch.zeros(layer.out_features, rank, device=like.device))
        nn.init.normal_(self.down, std=1 / rank)

    def forward(self, weight: Tensor) -> Tensor:
        return weight + (self.up @ self.down).to(weight.dtype)


def add_lora(module: nn.Module, layers: re.Pattern[str], rank: int) -> None:
    """Give every linear layer whose name matches an addition of this rank.

    Raises:
        ValueError: The rank is below 1, or more than a layer's own.
    """
    matching = list(_layers(module, layers))
    widest = min(min(layer.weight.shape) for _, layer in matching)
    if not 1 <= rank <= widest:
        raise ValueError(f"The LoRA's rank is {rank}; give 1 to {widest}, the narrowest layer's.")
    for _, layer in matching:
        parametrize.register_parametrization(layer, "weight", LowRank(layer, rank), unsafe=True)


def merge_lora(module: nn.Module) -> None:
    """Make the additions part of the weights, and leave the module as it was made."""
    for layer in list(module.modules()):
        if parametrize.is_parametrized(layer, "weight"):
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)


def save_motion_lora(path: str | Path, motion: nn.Module, notes: dict[str, str] | None = None) -> None:
    """Write the motion model's additions as AnimateDiff's motion LoRA, fp16."""
    tensors = {}
    for name, part in _additions(motion):
        attention, layer = re.fullmatch(r"(.*)\.to_(q|k|v|out)(?:\.0)?", name).groups()  # type: ignore[union-attr]
        for side in ("down", "up"):
            tensors[f"{attention}.processor.to_{layer}_lora.{side}.weight"] = getattr(part, side).half()
    save_safetensors(path, tensors, {"format": "followclick.motion_lora", **(notes or {})})


def save_unet_lora(path: str | Path, unet: nn.Module, notes: dict[str, str] | None = None) -> None:
    """Write the UNet's additions under the names that the host's LoRA loader knows, fp16."""
    tensors = {}
    for name, part in _additions(unet):
        key = f"lora_unet_{name.replace('.', '_')}"
        tensors |= {f"{key}.lora_down.weight": part.down.half(), f"{key}.lora_up.weight": part.up.half()}
        tensors[f"{key}.alpha"] = torch.tensor(float(len(part.down)))  # alpha / rank is the strength: 1
    save_safetensors(path, tensors, {"format": "followclick.spatial_lora", **(notes or {})})


@torch.no_grad()
def merge_motion_lora(motion: MotionModel, path: str | Path, strength: float = 1.0) -> None:
    """Add a motion LoRA (of this pack or AnimateDiff's) to a motion model's weights.

    Raises:
        FileNotFoundError: There is no such file.
        CheckpointError: It is no motion LoRA, or one for another motion model.
    """
    weights = {key: layer.weight for key, layer in _layers(motion, MOTION_LAYERS)}
    for layer, (up, down) in motion_lora_pairs(motion, path).items():
        weights[layer] += strength * (up @ down).to(weights[layer])


def motion_lora_pairs(motion: MotionModel, path: str | Path) -> LoraPairs:
    """The (up, down) matrices of a motion LoRA, in float32, for each layer of the motion model that it adds to.

    diffusers' names (`attn1`, `attn2`) are taken too.

    Raises:
        FileNotFoundError: There is no such file.
        CheckpointError: It is no motion LoRA, or one for another motion model.
    """
    tensors, name = load_tensors(path)[0], Path(path).name
    pairs: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        match = _MOTION_KEY.match(from_adapter(key.removeprefix("unet.")))
        if match is None:
            raise CheckpointError(f"{name} is no motion LoRA: it holds {key}; choose one made for motion modules.")
        layer = f"{match[1]}.to_{match[2]}" + (".0" if match[2] == "out" else "")
        pairs.setdefault(layer, {})[match[3]] = value.float()
    shapes = {key: layer.weight.shape for key, layer in _layers(motion, MOTION_LAYERS)}
    for layer, pair in pairs.items():
        fits = layer in shapes and len(pair) == 2 and pair["up"].shape[1] == pair["down"].shape[0]
        if not fits or shapes[layer] != (pair["up"].shape[0], pair["down"].shape[1]):
            raise CheckpointError(
                f"{name} does not fit this motion model at {layer}; choose a LoRA that was trained on it."
            )
    return {layer: (pair["up"], pair["down"]) for layer, pair in pairs.items()}


def _layers(module: nn.Module, layers: re.Pattern[str]) -> Iterator[tuple[str, nn.Linear]]:
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Linear) and layers.search(name):
            yield name, layer


def _additions(module: nn.Module) -> Iterator[tuple[str, LowRank]]:
    for name, layer in module.named_modules():
        if parametrize.is_parametrized(layer, "weight"):
            yield name, layer.parametrizations["weight"][0]  # type: ignore[index,misc]
