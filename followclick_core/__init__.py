"""Click an object in a photo, say a verb, and get a clip in which only that object moves.

>>> from followclick_core import Animator, load_image
>>> clip = Animator.load("demo").animate(load_image("photo.jpg"), [(320, 200, 1)], motion="run", magnitude=6)
>>> clip.save("out.webp")
"""

import importlib
from typing import TYPE_CHECKING, Any

from .version import VERSION

if TYPE_CHECKING:
    from .animator import Animator
    from .checkpoint import CheckpointError
    from .clip import Clip, load_frames
    from .flow import MotionReport, measure_motion
    from .images import load_image, load_mask, save_mask
    from .segment import Click, Segmenter, load_segmenter

__version__ = VERSION

# Each name and the module it comes from. They are imported when first used, so that `import followclick_core`, which
# every command and every start of the host does, does not wait for torch.
_HOMES = {
    "Animator": "animator",
    "CheckpointError": "checkpoint",
    "Click": "segment",
    "Clip": "clip",
    "MotionReport": "flow",
    "Segmenter": "segment",
    "load_frames": "clip",
    "load_image": "images",
    "load_mask": "images",
    "load_segmenter": "segment",
    "measure_motion": "flow",
    "save_mask": "images",
}

__all__ = [
    "Animator",
    "CheckpointError",
    "Click",
    "Clip",
    "MotionReport",
    "Segmenter",
    "__version__",
    "load_frames",
    "load_image",
    "load_mask",
    "load_segmenter",
    "measure_motion",
    "save_mask",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
