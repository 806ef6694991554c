"""Picture files of the host's folders, named from outside: found safely, and decoded as the host's own loaders do."""

import functools
import os
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import folder_paths
import node_helpers
import numpy as np
from PIL import Image as PillowImage
from PIL import ImageOps, ImageSequence

from ..followclick_core.images import check_size
from ..followclick_core.shapes import Image, Mask
from .host import example_pictures

Value = TypeVar("Value")

FOLDERS = ("input", "output", "temp")
# What photos and paintings come as; Pillow would also run other programs on formats such as EPS.
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "PPM", "TGA", "TIFF", "WEBP")


class ForbiddenError(ValueError):
    """A name that leads out of the host's folders."""


@dataclass(frozen=True)
class PictureFile:
    """A file as it is now: another content is another value.

    Args:
        name: As the user knows it, for messages.
    """

    name: str
    path: Path
    changed: int
    size: int


def find_picture(filename: str, subfolder: str, folder_type: str) -> PictureFile:
    """A file of the host's input, output or temporary folder.

    Raises:
        ForbiddenError: The name leads elsewhere, be it through a link.
        FileNotFoundError: There is no such file.
        ValueError: It is no name at all.
    """
    if folder_type not in FOLDERS:
        raise ValueError(f"Pictures lie in the folders {', '.join(FOLDERS)}, not in {folder_type[:60]!r}.")
    if not filename or not _is_text(filename + subfolder):
        raise ValueError("A picture is named by its file name and subfolder; one of them is empty or no name.")
    if os.path.basename(filename) != filename or "\\" in filename or os.path.isabs(subfolder):
        raise ForbiddenError(f"{filename[:60]!r} is no name of a file; give the name alone, and its subfolder.")
    base = os.path.realpath(folder_paths.get_directory_by_type(folder_type))
    path = os.path.realpath(os.path.join(base, subfolder, filename))
    if os.path.commonpath((base, path)) != base:
        raise ForbiddenError(f"{filename[:60]!r} does not lie in the {folder_type} folder.")
    return _picture_file(Path(path), filename)


def find_example(name: str) -> PictureFile:
    """One of the pictures that come with the pack.

    Raises:
        FileNotFoundError: There is none of that name.
    """
    if name not in example_pictures():
        raise FileNotFoundError(f"There is no example picture {name[:60]!r}; choose one that Example Photo lists.")
    return _picture_file(example_pictures()[name], name)


def _is_text(name: str) -> bool:
    """Whether a file system can take it: a zero byte, or half of a surrogate pair, makes its functions raise."""
    return "\0" not in name and not re.search("[\ud800-\udfff]", name)


def _picture_file(path: Path, name: str) -> PictureFile:
    # Only a regular file: opening a pipe would wait for ever.
    if not os.path.isfile(path):
        raise FileNotFoundError(f"There is no picture {name[:60]!r} there; choose it again.")
    status = path.stat()
    return PictureFile(name[:60], path, status.st_mtime_ns, status.st_size)


def picture_pixels(file: PictureFile) -> Image:
    """What Load Image gives for the file, as uint8; transparent pixels keep their colour there.

    Raises:
        ValueError: It is damaged, no picture, or of a size that cannot be animated.
    """
    frame = _first_frame(file)
    with _in_plain_words(file):
        return np.array(frame.convert("RGB"))


def drawn_pixels(file: PictureFile) -> Mask | None:
    """What Load Image gives for the file as MASK, read as by `drawn_mask_of`: the pixels that the host's MaskEditor has
    made transparent, by at least a half. None if there is none.

    Raises:
        ValueError: As picture_pixels.
    """
    frame = _first_frame(file)
    if frame.mode == "P" and "transparency" in frame.info:
        frame = frame.convert("RGBA")
    if "A" not in frame.getbands():
        return None
    # In the host's floats, whose rounding decides about the half.
    drawn = 1.0 - np.array(frame.getchannel("A")).astype(np.float32) / 255.0 >= 0.5
    return drawn if drawn.any() else None


class Remembered(Generic[Value]):
    """What was read from the files that were asked for last."""

    def __init__(self, number: int):
        self._number = number
        self._values: OrderedDict[PictureFile, Value] = OrderedDict()

    def clear(self) -> None:
        self._values.clear()

    def get(self, file: PictureFile, read: Callable[[PictureFile], Value]) -> Value:
        if file not in self._values:
            self._values[file] = read(file)
            while len(self._values) > self._number:
                self._values.popitem(last=False)
        self._values.move_to_end(file)
        return self._values[file]


def _first_frame(file: PictureFile) -> PillowImage.Image:
    """The first frame, upright, by the very calls of the host's Load Image; the size is judged by the file's header.

    Pillow may warn of a large picture or of a small fault in the file, as it does when the host reads it. That is left
    alone: warnings are filtered for the whole process, and a route's thread is not the only one.
    """
    with _in_plain_words(file):
        opened = node_helpers.pillow(_open, file.path)
    with opened:
        check_size(*opened.size, file.name)
        with _in_plain_words(file):
            frame = node_helpers.pillow(ImageOps.exif_transpose, next(iter(ImageSequence.Iterator(opened))))
            return frame.point(lambda level: level * (1 / 255)) if frame.mode == "I" else frame


@contextmanager
def _in_plain_words(file: PictureFile) -> Iterator[None]:
    """Whatever Pillow raises as a ValueError of one sentence: damage makes its decoders fail in every way there is."""
    try:
        yield
    # The warning is raised where warnings are errors.
    except (PillowImage.DecompressionBombError, PillowImage.DecompressionBombWarning) as error:
        raise ValueError(f"{file.name} is too large to open; scale it down first.") from error
    except Exception as error:
        raise ValueError(f"{file.name} is damaged, or no picture; save it as PNG or JPEG.") from error


def _open(path: Path) -> PillowImage.Image:
    return PillowImage.open(path, formats=_known_formats())


@functools.cache
def _known_formats() -> tuple[str, ...]:
    PillowImage.init()
    return tuple(name for name in FORMATS if name in PillowImage.OPEN)
