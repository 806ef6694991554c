"""Segmenters as the host holds them, and what they saw in the last pictures: shared by the nodes and the live masks.

Two threads come here, the host's worker with a node and a route's with a live mask. One lock lets them take turns, and
makes the host wait with unloading a segmenter until the mask at hand is done.
"""

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import comfy.model_management as memory
import torch

from ..followclick_core.models.bundle import weights_path
from ..followclick_core.segment import Click, ImageEmbedding, Selection, load_segmenter, select_objects
from ..followclick_core.shapes import Image, Mask
from .host import (
    EMBEDDED,
    SEGMENTER_FOLDERS,
    WholePatcher,
    hosted,
    load_on_device,
    picture_digest,
    weight_files,
    weight_path,
)
from .host_server import PromptRunsError, between_prompts
from .sockets import HostedSegmenter

REMEMBERED_PICTURES = 2

_turn = threading.RLock()
_loaded: weakref.WeakValueDictionary[tuple[str, int, int], HostedSegmenter] = weakref.WeakValueDictionary()
# The one that is kept although no node of the graph holds it.
_last_used: list[HostedSegmenter] = []
_embeddings: OrderedDict[tuple[tuple[str, int, int], bytes], ImageEmbedding] = OrderedDict()
on_release: list[Callable[[], None]] = []  # what others keep for the live masks goes with the rest


class SegmenterPatcher(WholePatcher):
    """Lets go of all that hangs on the segmenter when the host unloads it, as it does on /free."""

    def detach(self, unpatch_all: bool = True) -> torch.nn.Module:
        with _turn:
            if unpatch_all:  # otherwise the host only takes it up anew
                release()
            return super().detach(unpatch_all)


def segmenter(name: str) -> HostedSegmenter:
    """The embedded segmenter, or a file of the segmenter folder; of the same file, the one that is loaded already.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it is damaged, or no Segment Anything.
    """
    path = weights_path("segmenter") if name == EMBEDDED else weight_path(name, SEGMENTER_FOLDERS)
    status = path.stat()
    weights = (str(path), status.st_mtime_ns, status.st_size)
    with _turn:
        found = _loaded.get(weights)
        if found is None:
            loaded = load_segmenter(path, "cpu")
            found = HostedSegmenter(loaded, hosted(loaded.sam, kind=SegmenterPatcher), weights)
            _loaded[weights] = found
        return found


def listed_segmenter(name: str) -> HostedSegmenter:
    """As `segmenter`, for names that come from outside.

    Raises:
        ValueError: Load Segmenter does not offer the name.
    """
    if name not in weight_files(SEGMENTER_FOLDERS):
        raise ValueError(f"There is no segmenter {name[:60]!r}; choose one that Load Segmenter lists.")
    return segmenter(name)


def select(
    hosted: HostedSegmenter, picture: Image, clicks: Sequence[Click], drawn: Mask | None = None, grow: int = 0
) -> dict[int, Selection]:
    """`select_objects` in a node: on the host's device, and with the last pictures remembered.

    Raises:
        ValueError: As select_objects.
    """
    with _turn:
        load_on_device(hosted.patcher)
        embedding = remembered_embedding(hosted, picture_digest(picture), lambda: picture)
        return select_objects(hosted.segmenter, embedding, clicks, drawn, grow)


@contextmanager
def live(hosted: HostedSegmenter) -> Iterator[None]:
    """The segmenter is on its device and stays there, for a mask that is made beside the host's queue.

    Raises:
        PromptRunsError: A prompt runs on the same device, and that is no CPU.
    """
    with _turn, torch.inference_mode():
        if not _is_on_device(hosted):
            try:
                with between_prompts():
                    memory.load_models_gpu([hosted.patcher])
            except PromptRunsError:
                # On a CPU the weights lie where they are used, whether the host knows of them or not.
                if hosted.patcher.load_device.type != "cpu":
                    raise
        elif hosted.patcher.load_device.type != "cpu":
            with between_prompts():
                pass
        _last_used[:] = [hosted]
        yield


def remembered_embedding(hosted: HostedSegmenter, digest: bytes, picture: Callable[[], Image]) -> ImageEmbedding:
    """What the segmenter sees in the picture of that digest; `picture` is only called where it is not remembered."""
    key = (hosted.weights, digest)
    if key not in _embeddings:
        _embeddings[key] = hosted.segmenter.embed(picture()).to("cpu")
        while len(_embeddings) > REMEMBERED_PICTURES:
            _embeddings.popitem(last=False)
    _embeddings.move_to_end(key)
    return _embeddings[key].to(hosted.segmenter.device)


def release() -> None:
    """Forget the pictures, and the segmenter that no node holds."""
    with _turn:
        _embeddings.clear()
        _last_used.clear()
        for clear in on_release:
            clear()


def _is_on_device(hosted: HostedSegmenter) -> bool:
    return any(loaded.model is hosted.patcher for loaded in memory.current_loaded_models)
