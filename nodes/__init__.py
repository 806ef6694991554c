"""The pack's nodes, and the one list of them."""

from comfy_api.latest import ComfyExtension, io

from .accelerate import AccelerateApproximately, AccelerateExactly
from .animate import AnimateRegion, ApplyMotionModel, MotionSchedule
from .finish import CropRegion, LockBackground, MeasureMotion, StitchRegion
from .how import ContextWindows, FirstFrame, FlowMagnitude, MotionRegion
from .loaders import ExamplePhoto, LoadDemoModel, LoadMotionLora, LoadMotionModel, LoadSegmenter
from .routes import add_routes
from .where import ClickToMask

NODES: list[type[io.ComfyNode]] = [
    AnimateRegion,
    LoadDemoModel,
    LoadMotionModel,
    LoadMotionLora,
    LoadSegmenter,
    ExamplePhoto,
    ClickToMask,
    MotionRegion,
    FirstFrame,
    FlowMagnitude,
    ContextWindows,
    ApplyMotionModel,
    MotionSchedule,
    AccelerateExactly,
    AccelerateApproximately,
    MeasureMotion,
    LockBackground,
    CropRegion,
    StitchRegion,
]


class FollowClickExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return list(NODES)


add_routes()  # at import: the host builds its table of routes right after it has loaded the packs
