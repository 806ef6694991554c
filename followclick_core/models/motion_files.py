"""Motion models of every family, recognised by the names and shapes in the file alone.

Each family says what its files hold; a file is of the family whose list it fits exactly. So there is nothing to guess,
and of a file that fits none it can be said what is missing or too much for the closest. Nothing depends on how wide the
UNet is.
"""

import functools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ..checkpoint import CheckpointError, listed, load_strict, load_tensors, params_from
from ..families import FAMILIES, FOLLOWCLICK, Family
from .motion_keys import ENCODING, from_adapter, is_adapter_key, unet_keys
from .motion_model import MotionModel, MotionParams, describe, params_from_json
from .motion_module import frame_positions
from .unet import UNet, UNetParams

_MODULE = re.compile(r"^(down_blocks|up_blocks)\.(\d+)\.motion_modules\.(\d+)\.temporal_transformer\.(.*)$")
_FIRST_CONV = "first_frame_conv.weight"
_NOISY_CHANNELS = 4
_SD15 = UNetParams()

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class MotionFile:
    """What a motion model file holds.

    Args:
        model: On the CPU, in the file's own precision; its weights are read from the file where they are used.
        spatial: The UNet's own weights under LDM's names, of families that have them (`Family.own_spatial`).
        form: Which family, and in whose format.
    """

    model: MotionModel
    spatial: Mapping[str, Tensor]
    form: str

    @property
    def family(self) -> Family:
        return self.model.family


def load_motion_file(path: str | Path) -> MotionFile:
    """Read a motion model of any family.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: unreadable, no motion model, or one that fits no family; the text says what does not fit the
            closest one.
    """
    tensors, metadata = load_tensors(path)
    name = Path(path).name
    if metadata.get("format") == "followclick.motion":
        params = params_from(metadata, params_from_json, name)
        return MotionFile(_load(params, tensors, name), {}, FOLLOWCLICK.title)
    contents = _Contents.of(tensors)
    if not any(".motion_modules." in key for key in contents.tensors):
        raise CheckpointError(
            f"{name} is {describe(tensors, metadata)}, not a motion model; choose one of this pack, AnimateDiff, "
            "AnimateLCM or PIA."
        )
    family = _recognise(contents, name)
    check_encodings(contents.encodings, name)
    params = _params(family, contents)
    weights, spatial = _split(family, contents, _motion_names(params))
    form = f"{family.title}, as diffusers' motion adapter" if contents.is_adapter else family.title
    return MotionFile(_load(params, weights, name), spatial, form)


def check_encodings(encodings: Mapping[str, Tensor], name: str) -> None:
    """AnimateDiff never trains its encodings. A file with others would behave differently with computed ones.

    Raises:
        CheckpointError: they are not those that this model computes.
    """
    for key, value in encodings.items():
        if value.ndim != 3:
            raise CheckpointError(f"{name}: {key} has the shape {tuple(value.shape)}, not 1 x frames x channels.")
        computed = frame_positions(value.shape[1], value.shape[2], value.device, torch.float32)
        if not value[0].float().allclose(computed, atol=2e-3):
            raise CheckpointError(
                f"{name} has positional encodings of its own ({key}), which this model computes; "
                "choose a file with AnimateDiff's."
            )


@dataclass(frozen=True)
class _Contents:
    """A file's tensors under AnimateDiff's names, and what can be read off them about the UNet."""

    tensors: dict[str, Tensor]
    encodings: dict[str, Tensor]
    is_adapter: bool
    unet_params: UNetParams
    unet_names: dict[str, str] = field(repr=False)
    unet_shapes: Shapes = field(repr=False)

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> "_Contents":
        tensors = {key.removeprefix("unet."): value for key, value in tensors.items()}
        is_adapter = any(is_adapter_key(key) for key in tensors)
        encodings = {key: value for key, value in tensors.items() if ENCODING.search(key)}
        tensors = {from_adapter(key): value for key, value in tensors.items() if key not in encodings}
        params = _unet_params(tensors)
        return cls(tensors, encodings, is_adapter, params, *_unet_names(params))


@functools.lru_cache(maxsize=2)
def _unet_names(params: UNetParams) -> tuple[dict[str, str], Shapes]:
    """diffusers' name of each weight of the UNet -> ours, and our names' shapes."""
    with torch.device("meta"):
        unet = UNet(params)
    return unet_keys(unet), {key: tuple(value.shape) for key, value in unet.state_dict().items()}


@functools.lru_cache(maxsize=16)
def _motion_names(params: MotionParams) -> Shapes:
    with torch.device("meta"):
        return {key: tuple(value.shape) for key, value in MotionModel(params).state_dict().items()}


def _recognise(contents: _Contents, name: str) -> Family:
    levels = len(contents.unet_params.channel_mult)
    if levels != len(_SD15.channel_mult):
        raise CheckpointError(
            f"{name} is a motion model for a UNet of {levels} levels, as Stable Diffusion XL's; this pack takes those "
            f"for Stable Diffusion 1.5, which has {len(_SD15.channel_mult)}."
        )
    found = {key: tuple(value.shape) for key, value in (contents.tensors | contents.encodings).items()}
    misfits = {}
    for family in (each for each in FAMILIES if each is not FOLLOWCLICK):
        needed, allowed = _shapes(family, contents)
        missing = needed.keys() - found.keys()
        unexpected = found.keys() - needed.keys() - allowed.keys()
        wanted = allowed | needed
        reshaped = {key for key in found.keys() & wanted.keys() if found[key] != wanted[key]}
        if not (missing or unexpected or reshaped):
            return family
        misfits[family] = missing, unexpected, reshaped
    closest = min(misfits, key=lambda family: sum(map(len, misfits[family])))
    missing, unexpected, reshaped = misfits[closest]
    raise CheckpointError(
        f"{name} fits no family of motion models. The closest is {closest.title}: {listed('missing', missing)}; "
        f"{listed('unexpected', unexpected)}; {listed('of another shape', reshaped)}. "
        "Fetch it again, or choose another."
    )


def _shapes(family: Family, contents: _Contents) -> tuple[Shapes, Shapes]:
    """What a file of the family must hold, and what it may hold besides, for the UNet of this file."""
    needed = dict(_motion_names(_params(family, contents)))
    spatial = {theirs: contents.unet_shapes[ours] for theirs, ours in contents.unet_names.items()}
    if needed.pop(_FIRST_CONV, None):
        out, channels, *size = spatial["conv_in.weight"]
        # One convolution in the file: four noisy channels, then the mask and the first frame.
        spatial["conv_in.weight"] = (out, channels + 5, *size)
        needed |= {key: spatial[key] for key in ("conv_in.weight", "conv_in.bias")}
    if family.own_spatial:
        needed |= spatial
    frames = family.positions if family.stores_positions or contents.is_adapter else None
    if frames is not None:
        needed |= dict(_encoding_shapes(needed, frames, contents.is_adapter))
    # Training code saves the whole UNet; of these families only the motion modules count.
    return needed, spatial


def _encoding_shapes(names: Shapes, frames: int, is_adapter: bool) -> Iterable[tuple[str, tuple[int, ...]]]:
    for key, shape in names.items():
        if (module := key.removesuffix("temporal_transformer.norm.weight")) != key:
            block = f"{module}{'' if is_adapter else 'temporal_transformer.'}transformer_blocks.0."
            inner = (
                ("pos_embed",) if is_adapter else ("attention_blocks.0.pos_encoder", "attention_blocks.1.pos_encoder")
            )
            yield from ((f"{block}{each}.pe", (1, frames, shape[0])) for each in inner)


def _params(family: Family, contents: _Contents) -> MotionParams:
    unet = contents.unet_params
    return MotionParams(
        model_channels=unet.model_channels,
        channel_mult=unet.channel_mult,
        num_res_blocks=unet.num_res_blocks,
        num_heads=unet.num_heads,
        context_dim=None,
        mid_block=bool(family.mid_block),
        layout=family.layout or MotionParams.layout,
        schedule=family.schedule,
        family=family.name,
    )


def _unet_params(tensors: Mapping[str, Tensor]) -> UNetParams:
    """The numbers of the UNet that a motion model is for; Stable Diffusion's where the file does not tell."""
    widths: dict[int, int] = {}
    modules: dict[int, set[int]] = {}
    for key, value in tensors.items():
        if (match := _MODULE.match(key)) is None or match[1] != "down_blocks":
            continue
        modules.setdefault(int(match[2]), set()).add(int(match[3]))
        if match[4] == "norm.weight":
            widths[int(match[2])] = len(value)
    width = widths.get(0, _SD15.model_channels)
    mult = tuple(
        max(1, widths.get(level, width * _SD15.channel_mult[min(level, 3)]) // width) for level in sorted(modules)
    )
    channel_mult = mult or _SD15.channel_mult
    attentions = [
        any(key.startswith(f"down_blocks.{level}.attentions.") for key in tensors) for level in range(len(channel_mult))
    ]
    depth = attentions if any(attentions) else [level < len(channel_mult) - 1 for level in range(len(channel_mult))]
    text = tensors.get("mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight")
    return UNetParams(
        model_channels=width,
        channel_mult=channel_mult,
        num_res_blocks=max((len(each) for each in modules.values()), default=_SD15.num_res_blocks),
        transformer_depth=tuple(map(int, depth)),
        context_dim=_SD15.context_dim if text is None else text.shape[-1],
    )


def _split(family: Family, contents: _Contents, names: Shapes) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The motion model's weights, and the UNet's own where the family has them."""
    weights = {key: value for key, value in contents.tensors.items() if key in names}
    spatial = (
        {ours: contents.tensors[theirs] for theirs, ours in contents.unet_names.items()} if family.own_spatial else {}
    )
    if _FIRST_CONV in names:
        conv = contents.tensors["conv_in.weight"]
        weights[_FIRST_CONV] = conv[:, _NOISY_CHANNELS:].clone()
        if spatial:
            spatial[contents.unet_names["conv_in.weight"]] = conv[:, :_NOISY_CHANNELS].clone()
    return weights, spatial


def _load(params: MotionParams, tensors: dict[str, Tensor], name: str) -> MotionModel:
    with torch.device("meta"):
        model = MotionModel(params)
    types = {value.dtype for value in tensors.values()}
    if len(types) > 1:  # computing needs one; the widest loses nothing
        widest = max(types, key=lambda dtype: torch.finfo(dtype).bits if dtype.is_floating_point else 0)
        tensors = {key: value.to(widest) for key, value in tensors.items()}
    load_strict(model, tensors, name)
    return model.eval()
