"""Where training starts: AnimateDiff's motion modules, in every published form of their files.

    mm_sd_v14, mm_sd_v15 (v1)   20 modules, positional encodings of 24 frames
    mm_sd_v15_v2                21 modules, one in the middle of the UNet; 32 frames
    v3_sd15_mm                  20 modules; 32 frames
    AnimateLCM's                21 modules, no encodings in the file

The modules' names are ours (motion_module.py), so the key map only drops what the files hold besides weights: the
encodings, which are computed, and entries of other parts. What the method adds to AnimateDiff stays as it is made and
changes nothing at first: the motion-augmented attention, the first frame's convolution, the magnitude; a still gate,
where there is one, hardly anything.
"""

import re
from dataclasses import replace
from pathlib import Path

from ..checkpoint import CheckpointError, load_strict, load_tensors
from .motion_files import check_encodings
from .motion_keys import ENCODING
from .motion_model import MotionModel, MotionParams, describe, load_motion_model

# Parts of the method that AnimateDiff's files do not have.
_ADDED = re.compile(r"\.attention_blocks\.2\.|\.norms\.2\.|^first_frame_conv\.|^motion_embedding\.|^still_gate\.")


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
    encodings = {key: value for key, value in tensors.items() if ENCODING.search(key)}
    check_encodings(encodings, name)
    tensors = {key: value.float() for key, value in tensors.items() if key not in encodings}
    has_middle = any(key.startswith("mid_block.") for key in tensors)
    model = MotionModel(replace(params, mid_block=has_middle))
    added = {key: value for key, value in model.state_dict().items() if _ADDED.search(key)}
    load_strict(model, added | tensors, name)
    return model
