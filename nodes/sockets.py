"""The pack's own socket types, each named once, and the values that travel on them.

Values are frozen: the host caches and shares them between runs, so nobody may change one.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from comfy_api.latest import io
from torch import Tensor

from ..followclick_core.animator import Animator
from ..followclick_core.models.motion_model import MotionModel
from ..followclick_core.segment import Segmenter

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

MotionModelSocket = io.Custom("FOLLOWCLICK_MOTION_MODEL")
SegmenterSocket = io.Custom("FOLLOWCLICK_SEGMENTER")
RegionsSocket = io.Custom("FOLLOWCLICK_MOTION_REGIONS")
PlaceSocket = io.Custom("FOLLOWCLICK_PLACE")  # followclick_core.finish.Place
ObjectsSocket = io.Custom("FOLLOWCLICK_OBJECTS")


@io.comfytype(io_type="FOLLOWCLICK_CLICKS")
class ClicksWidget(io.ComfyTypeIO):
    """A JSON text that the click editor edits, in the browser, on the picture itself."""

    Type = str

    class Input(io.WidgetInput):
        """Args: motion: Whether the editor also asks what each object does, and how strongly."""

        def __init__(self, id: str, motion: bool, tooltip: str):
            super().__init__(id, tooltip=tooltip, default="[]", extra_dict={"motion": motion})


@dataclass(frozen=True, eq=False)
class HostedMotionModel:
    """A motion model, and the patcher by which the host moves its weights.

    Args:
        trained_size: Side in pixels of the clips it was trained on.
        spatial: The UNet's own weights (LDM names), of families whose files hold them.
        about: What it is, and what it does with what the nodes ask of it; for people.
        fps: What the frame-rate embedding of the authors' release is told; None leaves it to the family.
    """

    model: MotionModel
    patcher: "ModelPatcher"
    trained_size: int
    spatial: Mapping[str, Tensor] = field(default_factory=dict)
    about: str = ""
    fps: float | None = None


@dataclass(frozen=True, eq=False)
class HostedSegmenter:
    """A segmenter, and the patcher by which the host moves its weights.

    Args:
        weights: Names the weights: what one segmenter made of a picture is nothing to another.
    """

    segmenter: Segmenter
    patcher: "ModelPatcher"
    weights: tuple[str, int, int]


@dataclass(frozen=True, eq=False)
class HostedAnimator:
    """The whole method with one set of weights, and the patcher by which the host moves them."""

    animator: Animator
    segmenter: HostedSegmenter
    patcher: "ModelPatcher"


@dataclass(frozen=True, eq=False)
class ClickedObject:
    """One object of the picture, and what the click editor says of its motion.

    Args:
        number: Counts from 1, as in the clicks.
        mask: 1 h w, 0..1, at the size of the picture that was clicked.
        motion_prompt: Empty where the editor does not say.
        motion_magnitude: Pixels per frame at 512 pixels of width; None where the editor does not say.
    """

    number: int
    mask: Tensor
    motion_prompt: str
    motion_magnitude: float | None


ClickedObjects = tuple[ClickedObject, ...]


@dataclass(frozen=True, eq=False)
class Region:
    """One part of the picture that moves, how, and how far.

    Args:
        mask: 1 h w, 0..1, at the size of the picture that was clicked; 1 moves.
        prompt: The motion prompt, as the user wrote it.
        context: Its embedding, 1 n c.
        empty_context: The embedding of an empty prompt, for the unguided half of classifier-free guidance.
        magnitude: Mean flow inside the mask, pixels per frame at 512 pixels of width.
    """

    mask: Tensor
    prompt: str
    context: Tensor
    empty_context: Tensor
    magnitude: float


Regions = tuple[Region, ...]
