"""The art pack: sprites, drawn animations and photos in one file, with who made them and their side of the split.

The pack is a zip of WebP and JPEG images beside `manifest.json`, so decoding it needs only Pillow and NumPy. It is
built from installed packages (see art_build.py) and never committed.
"""

import io
import json
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from ..files import atomic_path

SPRITE_SIZE = 128  # pixels of a static sprite's square
ANIMATION_SIZE = 112  # pixels of an animation's square
_MANIFEST = "manifest.json"


@dataclass(frozen=True)
class SpriteInfo:
    """What a sprite is: an English noun in lower case; `face` holds a row of sprite_names.FACE_BOXES, or nothing."""

    code: str
    noun: str
    split: str = "train"  # or "test"
    tags: tuple[str, ...] = ()
    face: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class AnimationInfo:
    """A drawn animation: its verb, and its mean flow in widths of its own square per frame (measured, not exact)."""

    code: str
    noun: str
    verb: str
    flow: float
    split: str = "train"


@dataclass(frozen=True)
class PhotoInfo:
    name: str
    description: str  # "a meadow", for captions
    credit: str
    licence: str
    split: str = "train"


@dataclass(frozen=True)
class ArtPack:
    """All art that scenes are made of, decoded. The lists of infos go with the images by position."""

    sprites: UInt8[np.ndarray, "n s s 4"]  # RGBA, not premultiplied, centred in a square
    sprite_infos: Sequence[SpriteInfo]
    animations: UInt8[np.ndarray, "m f a a 4"]  # 16 frames
    animation_infos: Sequence[AnimationInfo]
    photos: Sequence[UInt8[np.ndarray, "_ _ 3"]]  # of different sizes
    photo_infos: Sequence[PhotoInfo]
    credits: Sequence[str] = ()

    @classmethod
    def load(cls, path: str | Path) -> "ArtPack":
        """Decode a pack; FileNotFoundError if there is none, ValueError if the file is no art pack."""
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(
                f"There is no art pack at {path}; make one with `python -m followclick_core build-art`."
            )
        try:
            with zipfile.ZipFile(path) as archive:
                manifest = json.loads(archive.read(_MANIFEST))
                sprites = [_decode(archive, name) for name in manifest["sprite_files"]]
                strips = [_decode(archive, name) for name in manifest["animation_files"]]
                photos = [_decode(archive, name)[..., :3] for name in manifest["photo_files"]]
        except (zipfile.BadZipFile, KeyError, OSError, json.JSONDecodeError) as error:
            raise ValueError(
                f"{path} is no art pack ({error}); make one with `python -m followclick_core build-art`."
            ) from error
        size = strips[0].shape[1] if strips else ANIMATION_SIZE
        return cls(
            sprites=np.stack([_centred(sprite, SPRITE_SIZE) for sprite in sprites]),
            sprite_infos=[SpriteInfo(**{**info, "tags": tuple(info["tags"])}) for info in manifest["sprites"]],
            animations=np.stack([strip.reshape(-1, size, size, 4) for strip in strips])
            if strips
            else np.zeros((0, 16, size, size, 4), np.uint8),
            animation_infos=[AnimationInfo(**info) for info in manifest["animations"]],
            photos=photos,
            photo_infos=[PhotoInfo(**info) for info in manifest["photos"]],
            credits=manifest["credits"],
        )

    def save(self, path: str | Path) -> None:
        """Write the pack as one zip; the file appears only when it is complete."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        manifest = {
            "sprites": [asdict(info) for info in self.sprite_infos],
            "sprite_files": [f"sprites/{i:04d}.webp" for i in range(len(self.sprites))],
            "animations": [asdict(info) for info in self.animation_infos],
            "animation_files": [f"animations/{i:04d}.webp" for i in range(len(self.animations))],
            "photos": [asdict(info) for info in self.photo_infos],
            "photo_files": [f"photos/{i:04d}.jpg" for i in range(len(self.photos))],
            "credits": list(self.credits),
        }
        with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
            for name, sprite in zip(manifest["sprite_files"], self.sprites, strict=True):
                archive.writestr(name, _encode(_cropped(sprite), "WEBP", quality=88))
            for name, frames in zip(manifest["animation_files"], self.animations, strict=True):
                archive.writestr(name, _encode(frames.reshape(-1, frames.shape[2], 4), "WEBP", quality=82))
            for name, photo in zip(manifest["photo_files"], self.photos, strict=True):
                archive.writestr(name, _encode(photo, "JPEG", quality=90))
            archive.writestr(_MANIFEST, json.dumps(manifest, indent=1))


def _decode(archive: zipfile.ZipFile, name: str) -> UInt8[np.ndarray, "h w 4"]:
    from PIL import Image as PILImage

    with PILImage.open(io.BytesIO(archive.read(name))) as image:
        return np.asarray(image.convert("RGBA"))


def _encode(pixels: np.ndarray, kind: str, quality: int) -> bytes:
    from PIL import Image as PILImage

    stream = io.BytesIO()
    PILImage.fromarray(pixels).save(stream, kind, quality=quality)
    return stream.getvalue()


def _cropped(sprite: UInt8[np.ndarray, "s s 4"]) -> UInt8[np.ndarray, "h w 4"]:
    """The smallest centred crop that holds all of the sprite, so that `_centred` puts it back where it was."""
    rows, columns = np.nonzero(sprite[..., 3].any(1))[0], np.nonzero(sprite[..., 3].any(0))[0]
    if not len(rows):
        return sprite
    size = len(sprite)
    top, left = min(rows[0], size - 1 - rows[-1]), min(columns[0], size - 1 - columns[-1])
    return np.ascontiguousarray(sprite[top : size - top, left : size - left])


def _centred(sprite: UInt8[np.ndarray, "h w 4"], size: int) -> UInt8[np.ndarray, "s s 4"]:
    height, width = sprite.shape[:2]
    square = np.zeros((size, size, 4), np.uint8)
    top, left = (size - height) // 2, (size - width) // 2
    square[top : top + height, left : left + width] = sprite
    return square
