"""Motion model files of every family, synthesised: the published files' names and shapes, random weights.

The lists are written down here by themselves, not taken from the models under test; `tests/core/test_motion_files.py`
compares them with the published ones. `width` is that of the UNet's first level, 320 for Stable Diffusion 1.5; a tenth
has the same names and is quick.
"""

import math
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

WIDTH = 32
HEADS = 8
TEXT = 768
MULT = (1, 2, 4, 4)

# family -> frames of the positional encodings, module in the middle
MODULES = {
    "animatediff_v1": (24, False),
    "animatediff_v2": (32, True),
    "animatediff_v3": (32, False),
    "animatelcm": (None, True),
    "pia": (32, False),
    "release": (24, False),
}
FAMILIES = tuple(MODULES)
ADAPTERS = ("animatediff_v1", "animatediff_v2", "animatediff_v3", "animatelcm", "pia")


def motion_tensors(
    family: str, width: int = WIDTH, seed: int = 0, dtype: torch.dtype = torch.float32, text: int = TEXT
):
    """What a published file of the family holds, name -> tensor.

    Args:
        family: One of FAMILIES.
        width: Channels of the UNet's first level, a multiple of 32.
        text: Width of the text embedding that the UNet of the release reads.
    """
    frames, middle = MODULES[family]
    shapes = motion_shapes(width, frames, middle)
    if family == "pia":
        shapes = {"conv_in.weight": (width, 9, 3, 3), "conv_in.bias": (width,)} | shapes
    if family == "release":
        shapes |= unet_shapes(width, text) | embedding_shapes(width)
    return random_tensors(shapes, seed, dtype)


def adapter_tensors(family: str, width: int = WIDTH, seed: int = 0, dtype: torch.dtype = torch.float32):
    """The same weights as diffusers' MotionAdapter stores them; one encoding per module, with AnimateLCM too."""
    frames, middle = MODULES[family]
    renamed = {}
    for key, value in motion_tensors(family, width, seed, dtype).items():
        if not key.endswith(".pe"):
            for theirs, ours in ((".norms.0.", ".norm1."), (".norms.1.", ".norm2."), (".ff_norm.", ".norm3.")):
                key = key.replace(theirs, ours)
            for index in (0, 1):
                key = key.replace(f".attention_blocks.{index}.", f".attn{index + 1}.")
            renamed[key.replace(".temporal_transformer.", ".")] = value
    for module, channels in _modules(width, middle):
        renamed[f"{module}.transformer_blocks.0.pos_embed.pe"] = positions(frames or 64, channels).to(dtype)
    return renamed


def lora_tensors(family: str = "animatediff_v2", width: int = WIDTH, rank: int = 4, seed: int = 1):
    """An AnimateDiff motion LoRA for the family's modules."""
    shapes = {}
    for module, channels in _modules(width, MODULES[family][1]):
        for index in (0, 1):
            for part in ("q", "k", "v", "out"):
                block = f"{module}.temporal_transformer.transformer_blocks.0.attention_blocks.{index}.processor"
                shapes[f"{block}.to_{part}_lora.down.weight"] = (rank, channels)
                shapes[f"{block}.to_{part}_lora.up.weight"] = (channels, rank)
    return random_tensors(shapes, seed, torch.float32)


def write_motion_file(path: Path, family: str, form: str = "flat", **options) -> Path:
    """A file of the family; the suffix decides the format (.safetensors, or .ckpt, .pth, .pt by torch.save).

    Args:
        form: "flat"; "wrapped" under "state_dict" with `module.` prefixes; "prefixed" with these alone; "adapter".
        options: For `motion_tensors` or `adapter_tensors`.
    """
    tensors = (adapter_tensors if form == "adapter" else motion_tensors)(family, **options)
    if form in ("wrapped", "prefixed"):
        tensors = {f"module.{key}": value for key, value in tensors.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        save_file(tensors, path)
    else:
        torch.save({"state_dict": tensors, "epoch": 3} if form == "wrapped" else tensors, path)
    return path


def motion_shapes(width: int, frames: int | None, middle: bool) -> dict[str, tuple[int, ...]]:
    """Names and shapes of AnimateDiff's motion modules."""
    shapes = {}
    for module, channels in _modules(width, middle):
        transformer = f"{module}.temporal_transformer"
        block = f"{transformer}.transformer_blocks.0"
        shapes |= _layer(f"{transformer}.norm", channels) | _layer(f"{transformer}.proj_in", channels, channels)
        for index in (0, 1):
            attention = f"{block}.attention_blocks.{index}"
            shapes |= {f"{attention}.to_{part}.weight": (channels, channels) for part in "qkv"}
            shapes |= _layer(f"{attention}.to_out.0", channels, channels)
            if frames is not None:
                shapes[f"{attention}.pos_encoder.pe"] = (1, frames, channels)
            shapes |= _layer(f"{block}.norms.{index}", channels)
        shapes |= _layer(f"{block}.ff.net.0.proj", 8 * channels, channels)
        shapes |= _layer(f"{block}.ff.net.2", channels, 4 * channels)
        shapes |= _layer(f"{block}.ff_norm", channels) | _layer(f"{transformer}.proj_out", channels, channels)
    return shapes


def unet_shapes(width: int, text: int = TEXT) -> dict[str, tuple[int, ...]]:
    """Names and shapes of Stable Diffusion 1.5's UNet in diffusers' naming, with nine input channels."""
    widths = [width * mult for mult in MULT]
    shapes = _layer("conv_in", width, 9, 3, 3) | _embedding("time_embedding", width)
    channels, skips = width, [width]
    for level, own in enumerate(widths):
        for index in range(2):
            shapes |= _resnet(f"down_blocks.{level}.resnets.{index}", channels, own, 4 * width)
            channels = own
            skips.append(own)
            if level < 3:
                shapes |= _attention(f"down_blocks.{level}.attentions.{index}", own, text)
        if level < 3:
            shapes |= _layer(f"down_blocks.{level}.downsamplers.0.conv", own, own, 3, 3)
            skips.append(own)
    for index in range(2):
        shapes |= _resnet(f"mid_block.resnets.{index}", channels, channels, 4 * width)
    shapes |= _attention("mid_block.attentions.0", channels, text)
    for level, own in enumerate(reversed(widths)):
        for index in range(3):
            shapes |= _resnet(f"up_blocks.{level}.resnets.{index}", channels + skips.pop(), own, 4 * width)
            channels = own
            if level > 0:
                shapes |= _attention(f"up_blocks.{level}.attentions.{index}", own, text)
        if level < 3:
            shapes |= _layer(f"up_blocks.{level}.upsamplers.0.conv", own, own, 3, 3)
    return shapes | _layer("conv_norm_out", width) | _layer("conv_out", 4, width, 3, 3)


def embedding_shapes(width: int) -> dict[str, tuple[int, ...]]:
    """The release's two embeddings."""
    return _embedding("fps_embedding", width) | _embedding("motion_embedding", width)


def positions(frames: int, channels: int) -> Tensor:
    """AnimateDiff's positional encoding, 1 f c."""
    angles = torch.arange(frames)[:, None] * torch.exp(-math.log(10000.0) * torch.arange(0, channels, 2) / channels)
    return torch.stack([angles.sin(), angles.cos()], dim=-1).reshape(1, frames, channels)


def _modules(width: int, middle: bool) -> list[tuple[str, int]]:
    widths = [width * mult for mult in MULT]
    places = [(f"down_blocks.{level}.motion_modules.{m}", widths[level]) for level in range(4) for m in range(2)]
    places += [("mid_block.motion_modules.0", widths[3])] if middle else []
    return places + [
        (f"up_blocks.{level}.motion_modules.{m}", widths[3 - level]) for level in range(4) for m in range(3)
    ]


def _layer(name: str, out: int, *shape: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (out, *shape), f"{name}.bias": (out,)}


def _embedding(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return _layer(f"{name}.linear_1", 4 * width, width) | _layer(f"{name}.linear_2", 4 * width, 4 * width)


def _resnet(name: str, channels: int, out: int, time: int) -> dict[str, tuple[int, ...]]:
    shapes = _layer(f"{name}.norm1", channels) | _layer(f"{name}.conv1", out, channels, 3, 3)
    shapes |= _layer(f"{name}.time_emb_proj", out, time)
    shapes |= _layer(f"{name}.norm2", out) | _layer(f"{name}.conv2", out, out, 3, 3)
    return shapes if channels == out else shapes | _layer(f"{name}.conv_shortcut", out, channels, 1, 1)


def _attention(name: str, channels: int, text: int) -> dict[str, tuple[int, ...]]:
    block = f"{name}.transformer_blocks.0"
    shapes = _layer(f"{name}.norm", channels) | _layer(f"{name}.proj_in", channels, channels, 1, 1)
    for attention, source in (("attn1", channels), ("attn2", text)):
        shapes[f"{block}.{attention}.to_q.weight"] = (channels, channels)
        shapes |= {f"{block}.{attention}.to_{part}.weight": (channels, source) for part in "kv"}
        shapes |= _layer(f"{block}.{attention}.to_out.0", channels, channels)
    for index in (1, 2, 3):
        shapes |= _layer(f"{block}.norm{index}", channels)
    shapes |= _layer(f"{block}.ff.net.0.proj", 8 * channels, channels) | _layer(
        f"{block}.ff.net.2", channels, 4 * channels
    )
    return shapes | _layer(f"{name}.proj_out", channels, channels, 1, 1)


def random_tensors(
    shapes: dict[str, tuple[int, ...]], seed: int = 0, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """Random weights at which a deep network neither dies nor blows up; norms about 1, encodings as they are."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for key, shape in shapes.items():
        if key.endswith(".pe"):
            tensors[key] = positions(shape[1], shape[2]).to(dtype)
            continue
        fan_in = math.prod(shape[1:]) if len(shape) > 1 else 100
        value = torch.randn(shape, generator=generator) / math.sqrt(fan_in)
        tensors[key] = (value + 1 if len(shape) == 1 and "norm" in key and key.endswith("weight") else value).to(dtype)
    return tensors
