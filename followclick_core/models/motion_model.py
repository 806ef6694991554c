"""Everything that turns a Stable Diffusion UNet into Follow-Your-Click, in one module and one file."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from ..checkpoint import CheckpointError, load_strict, load_tensors, params_from, save_safetensors
from ..diffusion.schedule import ScheduleParams
from ..families import EMBEDDING, FOLLOWCLICK, Family, get_family
from ..shapes import Masks, OtherVideo
from .blocks import zero_
from .embeddings import ScalarEmbedding
from .motion_module import MotionModule
from .still_gate import StillGate

LAYOUTS = ("paper", "release", "repeat")


@dataclass(frozen=True)
class MotionParams:
    """The numbers of one motion model, and of the UNet it was made for.

    Args:
        context_dim: Width of the motion text for the motion-augmented attention; None for a model without one.
        mid_block: Whether the middle of the UNet has a motion module too (AnimateDiff v2 does).
        layout: How the first frame is laid out over time, see `conditioning.first_frame_condition`.
        schedule: The noise schedule and prediction it was trained with.
        trained_frames: Clip length in training; other lengths work less well.
        family: Which kind of motion model it is, see `families`.
        still_gate: Whether it has a gate for what stands still (still_gate.py); the paper's has none.
    """

    model_channels: int = 320
    channel_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    num_heads: int = 8
    context_dim: int | None = 768
    mid_block: bool = True
    layout: str = "repeat"
    schedule: ScheduleParams = field(default_factory=ScheduleParams)
    trained_frames: int = 16
    family: str = FOLLOWCLICK.name
    still_gate: bool = False

    def __post_init__(self) -> None:
        if self.layout not in LAYOUTS:
            raise ValueError(f"There is no first-frame layout {self.layout!r}; choose one of {', '.join(LAYOUTS)}.")
        if not get_family(self.family).takes_first_frame and self.still_gate:
            raise ValueError(
                f"A motion model of the family {self.family} sees no first frame, which a still gate needs; "
                "set still_gate to False."
            )


class MotionBlock(nn.Module):
    """The motion modules of one level, under AnimateDiff's name for the list."""

    def __init__(self, count: int, channels: int, params: MotionParams):
        super().__init__()
        self.motion_modules = nn.ModuleList(
            MotionModule(channels, params.num_heads, params.context_dim) for _ in range(count)
        )


class MotionModel(nn.Module):
    """Temporal transformers, and the first-frame convolution and embeddings of families that have them.

    `attach` joins it to a UNet. The five extra channels enter by their own convolution, whose result is added to the
    UNet's first one: conv9([x, c]) = conv4(x) + conv5(c). So the UNet keeps its weights, and any checkpoint or LoRA
    still fits it.
    """

    def __init__(self, params: MotionParams):
        super().__init__()
        self.params = params
        self.family: Family = get_family(params.family)
        widths = [params.model_channels * mult for mult in params.channel_mult]
        self.down_blocks = nn.ModuleList(MotionBlock(params.num_res_blocks, width, params) for width in widths)
        self.mid_block = MotionBlock(1, widths[-1], params) if params.mid_block else None
        self.up_blocks = nn.ModuleList(
            MotionBlock(params.num_res_blocks + 1, width, params) for width in reversed(widths)
        )
        self.first_frame_conv = (
            zero_(nn.Conv2d(5, params.model_channels, 3, padding=1, bias=False))
            if self.family.takes_first_frame
            else None
        )
        embedding = params.model_channels, 4 * params.model_channels
        self.motion_embedding = ScalarEmbedding(*embedding) if self.family.magnitude == EMBEDDING else None
        self.fps_embedding = ScalarEmbedding(*embedding) if self.family.fps is not None else None
        self.still_gate = StillGate(params.model_channels) if params.still_gate else None

    @property
    def schedule(self) -> ScheduleParams:
        return self.params.schedule

    @property
    def layout(self) -> str:
        return self.params.layout

    def first_frame(self, latents: Tensor, mask: Masks, num_frames: int) -> OtherVideo | None:
        """The first-frame condition of a clip, b 5 f h w, or None for a family that only starts from the picture."""
        if not self.family.takes_first_frame:
            return None
        return self.family.first_frame(latents, mask, num_frames, self.params.layout)


def save_motion_model(path: str | Path, model: MotionModel, notes: dict[str, str] | None = None) -> None:
    """Write as fp16 safetensors whose metadata says what it is."""
    params = asdict(model.params)
    if not model.params.still_gate:
        del params["still_gate"]  # versions before there was one read the file too
    metadata = {"format": "followclick.motion", "params": json.dumps(params), **(notes or {})}
    save_safetensors(path, {key: value.half() for key, value in model.state_dict().items()}, metadata)


def load_motion_model(path: str | Path) -> MotionModel:
    """Read a motion model of this project, in float32 on the CPU; `motion_files` reads those of others too.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: unreadable, or no motion model of a known family; the text says what the file looks like.
    """
    tensors, metadata = load_tensors(path)
    name = Path(path).name
    if metadata.get("format") != "followclick.motion":
        raise CheckpointError(
            f"{name} is {describe(tensors, metadata)}, not a motion model of this pack; "
            "choose one trained by it, such as the demo's motion.safetensors."
        )
    params = params_from(metadata, params_from_json, name)
    with torch.device("meta"):
        model = MotionModel(params)
    load_strict(model, {key: value.float() for key, value in tensors.items()}, name)
    return model.eval()


def params_from_json(text: str) -> MotionParams:
    values = json.loads(text)
    values["channel_mult"] = tuple(values["channel_mult"])
    values["schedule"] = ScheduleParams(**values["schedule"])
    return MotionParams(**values)


def describe(tensors: dict[str, Tensor], metadata: dict[str, str]) -> str:
    """What a file that is no motion model of ours seems to be, from its keys."""
    if "format" in metadata:
        return f"a file of kind {metadata['format']!r}"
    kinds = {
        "motion_modules.": "an AnimateDiff-like motion module without this method's parts",
        "model.diffusion_model.": "a Stable Diffusion checkpoint",
        "image_encoder.": "a SAM segmenter",
        "lora": "a LoRA",
    }
    for part, kind in kinds.items():
        if any(part in key for key in tensors):
            return kind
    return f"a file of {len(tensors)} tensors of no known kind"
