"""The pack's own socket types, each named once, and the values that travel on them.

Values are frozen: the host caches and shares them between runs, so nobody may change one.
"""

from dataclasses import dataclass
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


@dataclass(frozen=True, eq=False)
class HostedMotionModel:
    """A motion model, and the patcher by which the host moves its weights.

    Args:
        trained_size: Side in pixels of the clips it was trained on.
    """

    model: MotionModel
    patcher: "ModelPatcher"
    trained_size: int


@dataclass(frozen=True, eq=False)
class HostedSegmenter:
    """A segmenter, and the patcher by which the host moves its weights."""

    segmenter: Segmenter
    patcher: "ModelPatcher"


@dataclass(frozen=True, eq=False)
class HostedAnimator:
    """The whole method with one set of weights, and the patcher by which the host moves them."""

    animator: Animator
    segmenter: HostedSegmenter
    patcher: "ModelPatcher"


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
