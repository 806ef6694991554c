"""Segmenters as the host holds them, and what they saw in the last pictures: shared by the nodes and the live masks.

Two threads come here, the host's worker with a node and a route's with a live mask. One lock lets them take turns, and
makes the host wait with unloading a segmenter until the mask at hand is done.
"""

import functools
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import comfy.model_management as memory
import torch

from ..followclick_core.models.bundle import weights_path
from ..followclick_core.segment import Click, ImageEmbedding, Segmenter, Selection, load_segmenter, select_objects
from ..followclick_core.segment.predictor import Proposals
from ..followclick_core.shapes import Image, Mask
from .host import (
    EMBEDDED,
    SEGMENTER_FOLDERS,
    WholePatcher,
    hosted,
    load_on_device,
    on_detach,
    picture_digest,
    weight_files,
    weight_path,
)
from .host_server import PromptRunsError, between_prompts, wait_for_tidying
from .sockets import HostedSegmenter

REMEMBERED_PICTURES = 2
REMEMBERED_PROPOSALS = 16
SMALL_MODEL = 64 * 2**20  # bytes; an image encoder of such a size has small steps too
UNLOADING_SECONDS = 1.0  # longer than the host needs to strike one model off its list

Value = TypeVar("Value")

_turn = threading.RLock()
_loaded: weakref.WeakValueDictionary[tuple[str, int, int], HostedSegmenter] = weakref.WeakValueDictionary()
# Those of the live masks, which no node of the graph need hold: the last one, and others while a prompt runs.
_kept: list[HostedSegmenter] = []
_seen: OrderedDict[tuple[tuple[str, int, int], bytes], "SeenPicture"] = OrderedDict()
on_unload: list[Callable[[], None]] = []  # what others keep for the live masks goes with the rest


class SegmenterPatcher(WholePatcher):
    """Is not unloaded while a mask is made with it."""

    def detach(self, unpatch_all: bool = True) -> torch.nn.Module:
        with _turn:
            return super().detach(unpatch_all)


def _let_go(unloaded: WholePatcher) -> None:
    """Drop all that is kept for the live masks when the host unloads their segmenter, as it does on /free.

    While a prompt runs on a CPU, masks are made with a segmenter that the host does not know. Then any model of the
    pack that it unloads is the sign; where it unloads none, what is kept stays until a mask is made between prompts.
    """
    with _turn:
        if not isinstance(unloaded, SegmenterPatcher) and all(_is_on_device(each) for each in _kept):
            return
        _seen.clear()
        for clear in on_unload:
            clear()
        # Of those that the host knows, the others have their own turn.
        own = [each for each in _kept if each.patcher is unloaded or not _is_on_device(each)]
        _kept[:] = [each for each in _kept if each not in own]
        if own:
            # A model that dies while the host goes through its list of models changes that list under its hands.
            timer = threading.Timer(UNLOADING_SECONDS, own.clear)
            timer.daemon = True
            timer.start()


on_detach.append(_let_go)


def segmenter(name: str) -> HostedSegmenter:
    """The embedded segmenter, or a file of the segmenter folder; of the same file, the one that is loaded already.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it is damaged, or no Segment Anything.
    """
    with _turn:
        weights = _weights(name)
        found = _loaded.get(weights)
        if found is None:
            loaded = load_segmenter(weights[0], "cpu")
            found = HostedSegmenter(loaded, hosted(loaded.sam, kind=SegmenterPatcher), weights)
            _loaded[weights] = found
        return found


def _weights(name: str) -> tuple[str, int, int]:
    """The file as it is now."""
    path = weights_path("segmenter") if name == EMBEDDED else weight_path(name, SEGMENTER_FOLDERS)
    status = path.stat()
    return str(path), status.st_mtime_ns, status.st_size


def listed_segmenter(name: str) -> HostedSegmenter:
    """As `segmenter`, for names that come from outside.

    Raises:
        ValueError: Load Segmenter does not offer the name.
    """
    _check_listed(name)
    return segmenter(name)


def segmenter_at_hand(name: str) -> HostedSegmenter | None:
    """As `listed_segmenter`, if it is small or on its device already; a large one is loaded for a click only, as that
    takes memory from what the user runs, and seconds (see `live`).

    Raises:
        ValueError: As listed_segmenter.
    """
    _check_listed(name)
    weights = _weights(name)
    if weights[2] < SMALL_MODEL and (found := segmenter(name)).patcher.model_size() < SMALL_MODEL:
        return found
    found = _loaded.get(weights)
    return found if found is not None and _is_on_device(found) else None


def _check_listed(name: str) -> None:
    if name not in weight_files(SEGMENTER_FOLDERS):
        raise ValueError(f"There is no segmenter {name[:60]!r}; choose one that Load Segmenter lists.")


def select(
    hosted: HostedSegmenter, picture: Image, clicks: Sequence[Click], drawn: Mask | None = None, grow: int = 0
) -> dict[int, Selection]:
    """`select_objects` in a node: on the host's device, and with the last pictures remembered.

    Raises:
        ValueError: As select_objects.
    """
    with _turn:
        load_on_device(hosted.patcher)
        return seen_picture(hosted, picture_digest(picture), lambda: picture).select(hosted, clicks, drawn, grow)


@contextmanager
def live(hosted: HostedSegmenter) -> Iterator[None]:
    """The segmenter is on its device and stays there, for a mask that is made beside the host's queue.

    Where it must be moved there first, the host's queue is locked meanwhile, and so is who queues a prompt: the host's
    event loop stands still for as long as the weights take. That is short for the pack's own, and can be seconds for a
    Segment Anything of gigabytes, once per unloading.

    Raises:
        PromptRunsError: The host's worker is at work on the same device, and that is no CPU.
    """
    if hosted.patcher.load_device.type != "cpu":
        wait_for_tidying()  # before the lock is taken, for which the worker may wait to unload a model
    with _turn, torch.inference_mode():
        try:
            with between_prompts():
                if not _is_on_device(hosted):
                    memory.load_models_gpu([hosted.patcher])
                _kept[:] = [hosted]
        except PromptRunsError:
            # On a CPU the weights lie where they are used, whether the host knows of them or not.
            if hosted.patcher.load_device.type != "cpu":
                raise
            if hosted not in _kept:
                _kept.append(hosted)
        yield


class SeenPicture:
    """One picture as one segmenter sees it, and what that proposed for the last clicks on it: of several objects,
    mostly one changes. The segmenter itself is not held."""

    def __init__(self, embedding: ImageEmbedding):
        self._embedding = embedding.to("cpu")
        self._proposals: OrderedDict[tuple[Click, ...], Proposals] = OrderedDict()

    def select(
        self, hosted: HostedSegmenter, clicks: Sequence[Click], drawn: Mask | None, grow: int
    ) -> dict[int, Selection]:
        """`select_objects` on the segmenter's device."""
        embedding = self._embedding.to(hosted.segmenter.device)
        remembering = _Remembering(hosted.segmenter, self._proposals)
        return _on_one_core(lambda: select_objects(remembering, embedding, clicks, drawn, grow))


class _Remembering:
    """A segmenter that is not asked the same twice."""

    def __init__(self, segmenter: Segmenter, proposals: OrderedDict[tuple[Click, ...], Proposals]):
        self._proposals = proposals
        self._segmenter = segmenter
        self.pick = segmenter.pick

    def propose(self, embedding: ImageEmbedding, clicks: Sequence[Click]) -> Proposals:
        # A candidate is chosen among the proposals, and the object's number changes nothing.
        key = tuple(Click(click.x, click.y, click.label) for click in clicks)
        if key not in self._proposals:
            self._proposals[key] = self._segmenter.propose(embedding, clicks)
            while len(self._proposals) > REMEMBERED_PROPOSALS:
                self._proposals.popitem(last=False)
        self._proposals.move_to_end(key)
        return self._proposals[key]


def _on_one_core(compute: Callable[[], Value]) -> Value:
    """What it computes, in a thread that uses one core. A mask takes hundreds of small steps, and where other programs
    are at work, cores that share a step wait for each other at every one of them: 0.6 s instead of 0.02."""
    return _one_core().submit(torch.inference_mode()(compute)).result()


@functools.cache
def _one_core() -> ThreadPoolExecutor:
    cores = torch.get_num_threads()
    thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="followclick")
    # The number is each thread's own, but begins as the one that any thread set last: in this one, before it is set;
    # in those yet to come, with what is set here.
    thread.submit(torch.get_num_threads).result()
    thread.submit(torch.set_num_threads, 1).result()
    torch.set_num_threads(cores)
    return thread


def seen_picture(hosted: HostedSegmenter, digest: bytes, picture: Callable[[], Image]) -> SeenPicture:
    """What the segmenter sees in the picture of that digest; `picture` is only called where it is not remembered."""
    key = (hosted.weights, digest)
    if key not in _seen:
        embed = functools.partial(hosted.segmenter.embed, picture())
        small = hosted.patcher.model_size() < SMALL_MODEL
        _seen[key] = SeenPicture(_on_one_core(embed) if small else embed())
        while len(_seen) > REMEMBERED_PICTURES:
            _seen.popitem(last=False)
    _seen.move_to_end(key)
    return _seen[key]


def _is_on_device(hosted: HostedSegmenter) -> bool:
    return any(loaded.model is hosted.patcher for loaded in list(memory.current_loaded_models))
