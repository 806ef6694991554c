"""The result of an animation, and how it goes to a file and comes back."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from . import clip_files
from .files import check_writable
from .shapes import Frames8, Mask


@dataclass(frozen=True, eq=False)
class Clip:
    """Frames that play at `fps`, the region that was asked to move in the first of them, and what was measured.

    `report` holds plain JSON values: what was asked (clicks, motion, magnitude, seed), sizes, motion inside and outside
    the mask, seconds per stage, versions.
    """

    frames: Frames8
    mask: Mask
    report: dict[str, Any] = field(default_factory=dict)
    fps: int = 8  # the frame rate of the models of this family

    def __post_init__(self):
        shape = self.frames.shape
        if self.frames.dtype != np.uint8 or self.frames.ndim != 4 or shape[-1] != 3 or not all(shape):
            raise ValueError(f"A clip's frames are uint8 of shape (f, h, w, 3), not {self.frames.dtype} of {shape}.")
        if self.mask.dtype != np.bool_ or self.mask.shape != shape[1:3]:
            raise ValueError(
                f"A clip's mask is bool of its frames' shape {shape[1:3]}, not {self.mask.dtype} of {self.mask.shape}."
            )
        if self.fps < 1:
            raise ValueError(f"A clip plays at 1 frame per second or more, not {self.fps}.")

    def save(self, path: str | Path) -> None:
        """Write the frames in the format that the name asks for; a file of that name is replaced, never half-written.

        .webp  animated, loops; the best picture for its size
        .gif   animated, loops; 256 colours, chosen for the whole clip
        .mp4   H.264 4:2:0, for players and editors; an odd width or height gets its last column or row twice
        .png   one lossless file per frame: out.png gives out_0000.png, out_0001.png, …
        a name without a suffix: a folder with frame_0000.png, …

        Raises:
            ValueError: Another suffix, a place that cannot be written, or other files where frames would go.
            FileNotFoundError: The folder to write into does not exist.
        """
        path = Path(path)
        suffix = check_clip_name(path)
        if suffix == ".png":
            clip_files.write_numbered_pngs(path, self.frames)
        elif suffix == "":
            clip_files.write_png_folder(path, self.frames)
        else:
            clip_files.WRITERS[suffix](path, self.frames, self.fps)


def check_clip_name(path: str | Path) -> str:
    """The suffix of a name that Clip.save can write, in lower case; "" means a folder.

    Raises:
        ValueError: The format is not known.
    """
    suffix = Path(path).suffix.lower()
    if suffix and suffix != ".png" and suffix not in clip_files.WRITERS:
        known = ", ".join([*clip_files.WRITERS, ".png"])
        raise ValueError(f"A clip cannot be written as {suffix}; use {known}, or a folder's name for PNG frames.")
    return suffix


def check_clip_output(path: str | Path) -> None:
    """Raise now what Clip.save would raise after the sampling.

    Raises:
        ValueError, FileNotFoundError: As Clip.save.
    """
    path = Path(path)
    suffix = check_clip_name(path)
    if suffix == ".png":
        clip_files.check_numbered_pngs(path)
    elif suffix:
        check_writable(path)
    else:
        clip_files.check_frame_folder(path)


def load_frames(path: str | Path) -> Frames8:
    """The frames of a clip: an animated WebP or GIF, a video, a folder of pictures, or out.png as Clip.save numbers it.

    Raises:
        FileNotFoundError: There is no such clip.
        ValueError: It cannot be decoded, its pictures differ in size, or it has more than clip_files.MAX_FRAMES.
    """
    path = Path(path)
    if path.is_dir():
        return clip_files.read_picture_folder(path)
    if path.suffix.lower() == ".png" and not path.exists():
        return clip_files.read_numbered_pngs(path)
    if not path.exists():
        raise FileNotFoundError(f"There is no clip {path}; check the name and the folder.")
    if path.suffix.lower() in (".webp", ".gif", ".png"):
        return clip_files.read_animation(path)
    return clip_files.read_video(path)
