"""The mask while you click: what stands behind the editor's route.

One mask is made at a time, in a thread, so that the host's event loop stays free. Of an editor's requests only the
newest counts.
"""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from ..followclick_core.segment import Selection, gather_clicks
from ..followclick_core.segment.bit_planes import nearest, pack_masks, packed_png
from ..followclick_core.shapes import Image, Mask
from .host import picture_digest
from .host_pictures import PictureFile, Remembered, drawn_pixels, find_example, find_picture, picture_pixels
from .host_segmenters import listed_segmenter, live, on_unload, seen_picture, segmenter_at_hand
from .live_request import ExamplePicture, LiveRequest, NamedPicture

MAX_WAITING = 16


class SupersededError(RuntimeError):
    """The same editor has asked anew."""


class CrowdedError(RuntimeError):
    """Too many editors wait."""


class Turn:
    """One request's right to run; `superseded` tells it that its answer is no longer wanted."""

    def __init__(self, editor: str):
        self.editor = editor
        self.superseded = False


class TurnTaking:
    """One request runs, the others wait in order; a waiting one goes as soon as its editor asks anew."""

    def __init__(self, most_waiting: int = MAX_WAITING):
        self._running: Turn | None = None
        self._waiting: OrderedDict[str, asyncio.Future[None]] = OrderedDict()
        self._most_waiting = most_waiting

    @asynccontextmanager
    async def turn(self, editor: str) -> AsyncIterator[Turn]:
        """The block runs alone.

        Raises:
            SupersededError: A newer request of the editor came first.
            CrowdedError: Too many wait already.
        """
        self._supersede(editor)
        own = Turn(editor)
        if self._running is not None:
            await self._wait(editor)
        self._running = own
        try:
            yield own
        finally:
            self._hand_over()

    def _supersede(self, editor: str) -> None:
        if self._running is not None and self._running.editor == editor:
            self._running.superseded = True
        older = self._waiting.pop(editor, None)
        if older is not None and not older.done():
            older.set_exception(SupersededError("A newer request of this editor came."))

    async def _wait(self, editor: str) -> None:
        if len(self._waiting) >= self._most_waiting:
            raise CrowdedError("Too many editors wait for a mask; try again.")
        place = self._waiting[editor] = asyncio.get_running_loop().create_future()
        try:
            await place
        except asyncio.CancelledError:
            if self._waiting.get(editor) is place:
                del self._waiting[editor]
            elif place.done() and not place.cancelled() and place.exception() is None:
                self._hand_over()
            raise

    def _hand_over(self) -> None:
        """The next one's turn. `_running` stays set meanwhile, so that nobody comes in between."""
        while self._waiting:
            _, place = self._waiting.popitem(last=False)
            if not place.done():
                place.set_result(None)
                return
        self._running = None


@dataclass(frozen=True)
class LiveAnswer:
    """The masks as a PNG of bit planes, and what stands in them, in the order of the bits."""

    png: bytes
    objects: list[dict[str, Any]]


@dataclass(frozen=True)
class KnownPicture:
    """What is remembered of a file that was decoded once: enough to find its embedding."""

    digest: bytes
    size: tuple[int, int]


turns = TurnTaking()
# Always the same one, for what a thread has once computed it computes faster again.
_thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="followclick")


async def live_masks(request: LiveRequest) -> LiveAnswer | None:
    """The masks of the clicks; None where there is none, but the picture is ready for the first one.

    Raises:
        ValueError, FileNotFoundError: What is wrong with the request.
        SupersededError, CrowdedError, PromptRunsError: Not now.
    """
    async with turns.turn(request.editor) as turn:
        return await asyncio.get_running_loop().run_in_executor(_thread, _make_masks, request, turn)


def _make_masks(request: LiveRequest, turn: Turn) -> LiveAnswer | None:
    """The same steps as Click to Mask's, with everything remembered that a further click can use."""
    image, drawn_file = _found(request.image), request.drawn_mask and _found(request.drawn_mask)
    # Without a click the picture is only made ready for one, where that costs little.
    wanted = bool(request.clicks["clicks"]) or drawn_file is not None
    hosted = listed_segmenter(request.segmenter) if wanted else segmenter_at_hand(request.segmenter)
    if hosted is None:
        _known_picture(image)
        return None
    with live(hosted):
        known, pixels = _known_picture(image)
        seen = seen_picture(hosted, known.digest, pixels)
        drawn = _drawn.get(drawn_file, drawn_pixels) if drawn_file else None
        # The editor itself warns of clicks that were made on another picture.
        clicks = gather_clicks(request.clicks | {"image_size": list(known.size)}, known.size)
        if not clicks and drawn is None:
            return None
        if turn.superseded:
            raise SupersededError("A newer request of this editor came.")
        selections = seen.select(hosted, clicks, drawn, request.grow)
    packed = pack_masks([selection.mask for selection in selections.values()])
    return LiveAnswer(
        packed_png(packed if request.size is None else nearest(packed, request.size)),
        [_described(number, selection) for number, selection in selections.items()],
    )


def _described(number: int, selection: Selection) -> dict[str, Any]:
    return {
        "object": number,
        "candidates": len(selection.scores),
        "candidate": selection.candidate,
        "scores": [round(score, 4) for score in selection.scores],
        "areas": [round(area, 4) for area in selection.areas],
    }


def _found(picture: NamedPicture | ExamplePicture) -> PictureFile:
    if isinstance(picture, ExamplePicture):
        return find_example(picture.name)
    return find_picture(picture.filename, picture.subfolder, picture.folder_type)


def _known_picture(file: PictureFile) -> tuple[KnownPicture, Callable[[], Image]]:
    """What is known of the picture, and its pixels, which are read once at most."""
    decoded: list[Image] = []

    def pixels() -> Image:
        if not decoded:
            decoded.append(picture_pixels(file))
        return decoded[0]

    def know(_: PictureFile) -> KnownPicture:
        height, width = pixels().shape[:2]
        return KnownPicture(picture_digest(pixels()), (width, height))

    return _known.get(file, know), pixels


_known: Remembered[KnownPicture] = Remembered(16)
_drawn: Remembered[Mask | None] = Remembered(1)
on_unload.append(_drawn.clear)
