"""Makes the art pack from packages that install by name: emoji from npm and a Debian font, photos from Debian and PyPI.

    npm install @lobehub/fluent-emoji-3d @lobehub/fluent-emoji-anim-1 … -4
    apt-get install fonts-noto-color-emoji mate-backgrounds plasma-workspace-wallpapers lomiri-wallpapers-16.04 \\
        lomiri-wallpapers-20.04
    pip install scikit-image scikit-learn matplotlib

Whatever is missing is left out with a warning; without any sprite or any photo there is no pack.
"""

import importlib.util
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image as PILImage
from PIL import ImageDraw, ImageFont

from . import sprite_names
from .art import ANIMATION_SIZE, SPRITE_SIZE, AnimationInfo, ArtPack, PhotoInfo, SpriteInfo
from .photo_list import PHOTOS

logger = logging.getLogger("followclick")

_BORDER = 2  # transparent pixels around a sprite, so that bilinear sampling fades out at its edge
_LONGER_PHOTO_SIDE = 1024
# Every fourth of 72 drawn frames at 42 ms: consecutive frames then move visibly, and 16 of them are nearly the cycle.
_STRIDE = 4

# The drawn animations whose motion is plainly a verb of ours, by code point. The drawn faces mostly bob their heads,
# whatever they mean, so they are left to the exact verbs.
_ANIMATED = {
    "run": "1f3c3 1f40e 1f406 1f405 1f415 1f6b6",
    "dance": "1f483 1f57a 1f46f 1f938",
    "storm": "26c8 1f329 1f32a 1f327",
    "drift": "26f5 1f6a3 1f6f6",
    "flap": "1f985 1f98b 1f987 1f54a",
    "wave": "1f44b 1f3f3",
    "swim": "1f3ca 1f42c 1f41f",
}
_FASTEST = 0.06  # widths per frame; on plain surfaces (a white flag) the estimator invents more

CREDITS = (
    "Fluent Emoji by Microsoft, MIT licence (npm @lobehub/fluent-emoji-3d and @lobehub/fluent-emoji-anim-1 to -4)",
    "Noto Color Emoji by Google, SIL Open Font License 1.1 (Debian fonts-noto-color-emoji)",
)
_NOTO = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
_PHOTO_FOLDERS = (Path("/usr/share/backgrounds"), Path("/usr/share/wallpapers"))


def build_art_pack(
    emoji_folders: Sequence[str | Path],
    out: str | Path,
    photo_folders: Sequence[str | Path] = _PHOTO_FOLDERS,
    noto_font: str | Path | None = _NOTO,
) -> ArtPack:
    """Collect, name, split and pack the art; write it to `out` and return it.

    Args:
        emoji_folders: Folders that hold the npm packages, e.g. `node_modules`; searched for their `assets`.
        photo_folders: Searched by file name for the photos of photo_list.PHOTOS, as are the installed PyPI packages.
        noto_font: The bitmap emoji font, for a second drawing style of each sprite; None or no such file leaves it out.
    """
    static, animated = _emoji_files(emoji_folders)
    codes = sorted({sprite_names.base_code(name) for name in [*static, *animated]})
    split = sprite_names.split_codes([code for code in codes if sprite_names.is_object(code)])
    sprites, infos = _static_sprites(static, split, noto_font)
    animations, animation_infos = _animations(animated, split)
    photos, photo_infos = _photos([Path(folder) for folder in photo_folders])
    if not sprites or not photos:
        raise FileNotFoundError(
            f"Found {len(sprites)} sprites in {[str(f) for f in emoji_folders]} and {len(photos)} photos; install the "
            "packages that followclick_core/data/art_build.py names and give their folders."
        )
    pack = ArtPack(
        sprites=np.stack(sprites),
        sprite_infos=infos,
        animations=np.stack(animations)
        if animations
        else np.zeros((0, 16, ANIMATION_SIZE, ANIMATION_SIZE, 4), np.uint8),
        animation_infos=animation_infos,
        photos=photos,
        photo_infos=photo_infos,
        credits=[*CREDITS, *sorted({f"{info.name}: {info.credit}, {info.licence}" for info in photo_infos})],
    )
    pack.save(out)
    return pack


def _emoji_files(folders: Sequence[str | Path]) -> tuple[dict[str, Path], dict[str, Path]]:
    """File name without suffix -> file, of the static and of the animated Fluent emoji."""
    static, animated = {}, {}
    for folder in folders:
        for path in sorted(Path(folder).glob("**/fluent-emoji-*/assets/*.webp")):
            (animated if "anim" in path.parent.parent.name else static)[path.stem] = path
    return static, animated


def _static_sprites(files: dict[str, Path], split: dict[str, str], noto_font: str | Path | None):
    sprites, infos = [], []
    font = ImageFont.truetype(str(noto_font), 109) if noto_font and Path(noto_font).is_file() else None
    if font is None:
        logger.warning("No Noto colour emoji font at %s: sprites come in one drawing style only.", noto_font)
    for name, path in sorted(files.items()):
        code = sprite_names.base_code(name)
        tones = name.count("-1f3f")
        plain = name in (code, f"{code}-fe0f")
        if code not in split or not (plain or (tones == 1 and name.endswith(("1f3fb", "1f3fe")))):
            continue
        images = [PILImage.open(path).convert("RGBA")]
        if font is not None and plain:
            images.append(_glyph(font, chr(int(code, 16))))
        for image in images:
            square = _square(np.asarray(image), SPRITE_SIZE)
            if square is None:
                continue
            sprites.append(square)
            tags = tuple(sorted(sprite_names.tags(code)))
            infos.append(
                SpriteInfo(code, sprite_names.noun(code), split[code], tags, sprite_names.face_box(code) or {})
            )
    return sprites, infos


def _glyph(font: ImageFont.FreeTypeFont, character: str) -> PILImage.Image:
    image = PILImage.new("RGBA", (160, 160))
    ImageDraw.Draw(image).text((8, 8), character, font=font, embedded_color=True)
    return image


def _square(rgba: UInt8[np.ndarray, "h w 4"], size: int) -> UInt8[np.ndarray, "s s 4"] | None:
    """The sprite cropped to its alpha box, scaled to fill a square within the border; None where nothing is drawn."""
    box = _alpha_box(rgba[..., 3])
    if box is None:
        return None
    return _fit(rgba, box, size)


def _alpha_box(alpha: UInt8[np.ndarray, "h w"]) -> tuple[int, int, int, int] | None:
    rows, columns = np.nonzero((alpha > 40).any(1))[0], np.nonzero((alpha > 40).any(0))[0]
    if len(rows) < 8 or len(columns) < 8:
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _fit(rgba: UInt8[np.ndarray, "h w 4"], box: tuple[int, int, int, int], size: int) -> UInt8[np.ndarray, "s s 4"]:
    left, top, right, bottom = box
    inner = size - 2 * _BORDER
    scale = inner / max(right - left, bottom - top)
    width, height = max(1, round((right - left) * scale)), max(1, round((bottom - top) * scale))
    # Pillow resizes RGBA unpremultiplied, which bleeds the colour of transparent pixels into edges; "RGBa" does not.
    image = PILImage.fromarray(rgba).convert("RGBa").resize((width, height), PILImage.Resampling.LANCZOS, box=box)
    square = np.zeros((size, size, 4), np.uint8)
    y, x = (size - height) // 2, (size - width) // 2
    square[y : y + height, x : x + width] = np.asarray(image.convert("RGBA"))
    return square


def _animations(files: dict[str, Path], split: dict[str, str]):
    verbs = {code: verb for verb, codes in _ANIMATED.items() for code in codes.split()}
    animations, infos = [], []
    for name, path in sorted(files.items()):
        code = sprite_names.base_code(name)
        if code not in verbs or code not in split:
            continue
        frames = _animation_frames(path)
        if frames is None:
            continue
        animations.append(frames)
        infos.append(AnimationInfo(code, sprite_names.noun(code), verbs[code], _mean_flow(frames), split[code]))
    return animations, infos


def _animation_frames(path: Path, count: int = 16) -> UInt8[np.ndarray, "f s s 4"] | None:
    with PILImage.open(path) as image:
        total = getattr(image, "n_frames", 1)
        if total < count * 2:
            return None
        frames = []
        for i in range(count):
            image.seek(i * min(_STRIDE, total // count))
            frames.append(np.asarray(image.convert("RGBA")))
    box = _alpha_box(np.max([frame[..., 3] for frame in frames], axis=0))
    return None if box is None else np.stack([_fit(frame, box, ANIMATION_SIZE) for frame in frames])


def _mean_flow(frames: UInt8[np.ndarray, "f s s 4"]) -> float:
    """Mean flow (OpenCV DIS on the frames over grey) inside the silhouette, in widths of the square per frame."""
    import cv2

    size = frames.shape[1] * 2
    estimator = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    grey, inside = [], []
    for frame in frames:
        alpha = frame[..., 3:].astype(np.float32) / 255
        flat = (frame[..., :3] * alpha + 128 * (1 - alpha)).astype(np.uint8)
        grey.append(cv2.resize(cv2.cvtColor(flat, cv2.COLOR_RGB2GRAY), (size, size)))
        inside.append(cv2.resize(frame[..., 3], (size, size)) > 127)
    speeds = []
    for first, second, mask in zip(grey, grey[1:], inside, strict=False):
        flow = estimator.calc(first, second, None)  # pyright: ignore[reportCallIssue, reportArgumentType]
        speeds.append(float(np.linalg.norm(flow, axis=-1)[mask].mean()) if mask.any() else 0.0)
    return min(float(np.mean(speeds)) / size, _FASTEST)


def _photos(folders: Sequence[Path]) -> tuple[list[np.ndarray], list[PhotoInfo]]:
    for module, inside in (("skimage", "data"), ("sklearn", "datasets/images"), ("matplotlib", "mpl-data/sample_data")):
        spec = importlib.util.find_spec(module)
        if spec is not None and spec.submodule_search_locations:
            folders = [*folders, Path(spec.submodule_search_locations[0]) / inside]
    images = [
        p
        for folder in folders
        for p in sorted(folder.glob("**/*"))
        if p.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp")
    ]
    photos, infos = [], []
    for info in PHOTOS:
        # Some packages name a photo by its folder and keep it there in several sizes: the largest file wins.
        found = [p for p in images if p.stem == info.name or f"/{info.name}/contents/images/" in p.as_posix()]
        if not found:
            logger.warning("Photo %s is not installed; left out.", info.name)
            continue
        with PILImage.open(max(found, key=lambda p: p.stat().st_size)) as image:
            image = image.convert("RGB")
            image.thumbnail((_LONGER_PHOTO_SIDE, _LONGER_PHOTO_SIDE), PILImage.Resampling.LANCZOS)
            photos.append(np.asarray(image))
        infos.append(info)
    return photos, infos
