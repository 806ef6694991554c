"""Other projects' names of the same weights: diffusers' motion adapter and UNet, as AnimateDiff and LDM call them."""

import re

from .unet import UNet, UNetParams

# diffusers (MotionAdapter) calls what follows a module's number by other names.
_ADAPTER = re.compile(r"(\.motion_modules\.\d+\.)(?!temporal_transformer\.)")
_ADAPTER_PARTS = (
    (".norm1.", ".norms.0."),
    (".norm2.", ".norms.1."),
    (".norm3.", ".ff_norm."),
    (".attn1.", ".attention_blocks.0."),
    (".attn2.", ".attention_blocks.1."),
)
ENCODING = re.compile(r"\.pos_encoder\.pe$|\.transformer_blocks\.0\.pos_embed\.pe$")

# LDM's names -> diffusers'.
_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_TOP = {
    "input_blocks.0.0": "conv_in",
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}


def is_adapter_key(key: str) -> bool:
    """Whether it is diffusers' name of a part of a motion module."""
    return _ADAPTER.search(key) is not None


def from_adapter(key: str) -> str:
    """AnimateDiff's name of what diffusers' MotionAdapter calls `key`; other names stay."""
    if not is_adapter_key(key):
        return key
    key = _ADAPTER.sub(r"\1temporal_transformer.", key)
    for theirs, ours in _ADAPTER_PARTS:
        key = key.replace(theirs, ours)
    return key


def unet_keys(unet: UNet) -> dict[str, str]:
    """diffusers' name of each weight of a UNet -> LDM's, which is ours."""
    return {_their_key(key, _places(unet.params)): key for key in unet.state_dict()}


def _their_key(key: str, places: dict[str, str]) -> str:
    for ours, theirs in places.items():
        if key.startswith(f"{ours}."):
            rest = key[len(ours) + 1 :]
            if ".resnets." in theirs:
                rest = next(f"{name}{rest[len(own) :]}" for own, name in _RESNET.items() if rest.startswith(f"{own}."))
            return f"{theirs}.{rest}"
    raise AssertionError(f"no place for {key}")


def _places(params: UNetParams) -> dict[str, str]:
    """Where a layer of LDM's numbering stands in diffusers'."""
    places = dict(_TOP)
    levels, per_level = len(params.channel_mult), params.num_res_blocks + 1
    for level in range(levels):
        up = levels - 1 - level  # counted from the lowest resolution
        for index in range(per_level):
            first, last = 1 + level * per_level + index, up * per_level + index
            if index < params.num_res_blocks:
                places[f"input_blocks.{first}.0"] = f"down_blocks.{level}.resnets.{index}"
                places[f"input_blocks.{first}.1"] = f"down_blocks.{level}.attentions.{index}"
            else:
                places[f"input_blocks.{first}.0.op"] = f"down_blocks.{level}.downsamplers.0.conv"
            places[f"output_blocks.{last}.0"] = f"up_blocks.{up}.resnets.{index}"
            places[f"output_blocks.{last}.1"] = f"up_blocks.{up}.attentions.{index}"
        # The upsampling follows the transformer of a level's last block, or its ResBlock where there is none.
        inner = 2 if params.transformer_depth[level] else 1
        conv = f"output_blocks.{up * per_level + params.num_res_blocks}.{inner}.conv"
        places = {conv: f"up_blocks.{up}.upsamplers.0.conv"} | places
    middle = {0: "resnets.0", 1: "attentions.0", 2: "resnets.1"}
    return places | {f"middle_block.{index}": f"mid_block.{name}" for index, name in middle.items()}
