"""Where training starts: AnimateDiff's motion modules, in every published form of their files.

    mm_sd_v14, mm_sd_v15 (v1)   20 modules, positional encodings of 24 frames
    mm_sd_v15_v2                21 modules, one in the middle of the UNet; 32 frames
    v3_sd15_mm                  20 modules; 32 frames
    AnimateLCM's                21 modules, no encodings in the file

The modules' names are ours (motion_module.py), so the key map only drops what the files hold besides weights: the
encodings, which are computed, and entries of other parts. What the method adds to AnimateDiff stays as it is made and
changes nothing at first: the motion-augmented attention, the first frame's convolution, the magnitude.
"""

import re
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from ..checkpoint import CheckpointError, load_strict, load_tensors
from .motion_model import MotionModel, MotionParams, describe, load_motion_model
from .motion_module import frame_positions

_ENCODING = re.compile(r"\.attention_blocks\.\d+\.pos_encoder\.pe$")
# Parts of the method that AnimateDiff's files do not have.
_ADDED = re.compile(r"\.attention_blocks\.2\.|\.norms\.2\.|^first_frame_conv\.|^motion_embedding\.")


def load_motion_start(path: str | Path, params: MotionParams) -> MotionModel:
    """A motion model to train on from: one of this pack, or AnimateDiff's modules with the method's parts added.

    Args:
        params: The UNet's numbers. The file decides whether there is a module in the middle of the UNet; layout and
            schedule, which AnimateDiff's files do not name, are taken from here. A file of this pack keeps its own.

    Raises:
        FileNotFoundError: There is no such file.
        CheckpointError: It is something else, damaged, or for another UNet.
    """
    tensors, metadata = load_tensors(path)
    if metadata.get("format") == "followclick.motion":
        return load_motion_model(path)
    name = Path(path).name
    if "conv_in.weight" in tensors or not any(".motion_modules." in key for key in tensors):
        raise CheckpointError(
            f"{name} is {describe(tensors, metadata)}; training starts from a motion model of this pack or from "
            "AnimateDiff's v1, v2 or v3 motion modules."
        )
    tensors = {key.removeprefix("unet."): value for key, value in tensors.items() if ".motion_modules." in key}
    _check_encodings(tensors, name)
    tensors = {key: value.float() for key, value in tensors.items() if not _ENCODING.search(key)}
    has_middle = any(key.startswith("mid_block.") for key in tensors)
    model = MotionModel(replace(params, mid_block=has_middle))
    added = {key: value for key, value in model.state_dict().items() if _ADDED.search(key)}
    load_strict(model, added | tensors, name)
    return model


def _check_encodings(tensors: dict[str, Tensor], name: str) -> None:
    """AnimateDiff never trains its encodings. A file with others would behave differently with computed ones."""
    for key, value in tensors.items():
        if not _ENCODING.search(key):
            continue
        if value.ndim != 3:
            raise CheckpointError(f"{name}: {key} has the shape {tuple(value.shape)}, not 1 x frames x channels.")
        computed = frame_positions(value.shape[1], value.shape[2], value.device, value.dtype)
        if not value[0].allclose(computed, atol=2e-3):
            raise CheckpointError(
                f"{name} has positional encodings of its own ({key}), which this model computes; "
                "choose a file with AnimateDiff's."
            )
