"""Pictures and masks from the outside world: any file or array to uint8 RGB, or to a bool mask.

A photo arrives here once; everything after may rely on uint8 h w 3, upright, in sRGB.
"""

import io
import re
import warnings
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float
from PIL import Image as PillowImage
from PIL import ImageCms, ImageOps, UnidentifiedImageError

from .files import atomic_path
from .shapes import Image, Mask

MIN_SIDE = 16
MAX_SIDE = 16_384
# A phone's largest photo is 50 megapixels; beyond this the copies made on the way would fill a small machine.
MAX_PIXELS = 80_000_000

BACKDROP = 255  # transparent pixels show white, as in an image viewer or on a page


def load_image(path: str | Path) -> Image:
    """The picture in a file as uint8 RGB, h w 3, upright.

    EXIF orientation is applied, so pixel positions are those of the picture as viewers show it. An embedded colour
    profile (wide-gamut phones, CMYK) is converted to sRGB. Transparent pixels are laid over white, 16-bit values are
    scaled to 8 bits, and of an animation the first frame counts.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no picture, it is damaged, or a side or the area is beyond MIN_SIDE, MAX_SIDE, MAX_PIXELS.
    """
    with _open(path) as picture:
        if picture.mode in ("I", "F") or picture.mode.startswith("I;16"):
            return to_rgb_uint8(_high_depth_levels(np.asarray(picture), path))
        return np.array(_over(_to_srgb(picture), BACKDROP))


def to_rgb_uint8(array: np.ndarray) -> Image:
    """An array of any usual kind as uint8 RGB, h w 3.

    Args:
        array: h w, h w 1 (grey), h w 2 (grey, alpha), h w 3 or h w 4 (alpha, laid over white); uint8 0..255, uint16
            0..65535, bool, or floats 0..1.

    Raises:
        ValueError: Another shape or type, floats outside 0..1 or not finite, or a size beyond the limits.
    """
    array = np.asarray(array)
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[-1] not in (1, 2, 3, 4):
        raise ValueError(f"An image has the shape (height, width, 1 to 4 channels), not {array.shape}.")
    check_size(array.shape[1], array.shape[0], "The image")
    array = _to_uint8(array)
    if array.shape[-1] in (2, 4):
        colour, alpha = array[..., :-1].astype(np.float32), array[..., -1:].astype(np.float32) / 255
        array = np.rint(colour * alpha + BACKDROP * (1 - alpha)).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(array, (*array.shape[:2], 3)))


def check_size(width: int, height: int, name: str) -> None:
    """Raise ValueError, one sentence beginning with `name`, if a picture of this size cannot be animated."""
    if min(width, height) < MIN_SIDE:
        raise ValueError(
            f"{name} is {width}x{height} pixels, too small to animate; each side must have at least {MIN_SIDE}."
        )
    if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
        raise ValueError(
            f"{name} is {width}x{height} pixels, too large; scale it down to at most {MAX_SIDE} on a side "
            f"and {MAX_PIXELS // 10**6} megapixels."
        )


def load_mask(path: str | Path) -> Mask:
    """The mask in a picture file, bool h w: True, the pixels that move, where it is brighter than mid-grey.

    Transparent pixels count as black, so a region painted on an empty layer is a mask too.

    Raises:
        FileNotFoundError, ValueError: As load_image.
    """
    with _open(path) as picture:
        if picture.mode in ("I", "F") or picture.mode.startswith("I;16"):
            levels = to_rgb_uint8(_high_depth_levels(np.asarray(picture), path))[..., 0]
        else:
            levels = np.asarray(_over(picture, 0).convert("L"))
    return levels >= 128


def save_mask(path: str | Path, mask: Bool[np.ndarray, "h w"] | Float[np.ndarray, "h w"]) -> None:
    """Write a mask as an 8-bit grey PNG, white where it moves, atomically; floats 0..1 keep their soft edge.

    Raises:
        FileNotFoundError, ValueError: The name does not end in .png, or the place cannot be written.
    """
    check_mask_name(path)
    levels = _to_uint8(mask)
    with atomic_path(path) as temporary:
        PillowImage.fromarray(levels).save(temporary)


def check_mask_name(path: str | Path) -> None:
    """Raise ValueError unless a mask can be written under this name."""
    if Path(path).suffix.lower() != ".png":
        raise ValueError(f"A mask is written as PNG, not as {Path(path).name!r}; let its name end in .png.")


def _open(path: str | Path) -> PillowImage.Image:
    """The decoded, upright picture. Its size is judged by the file's header, before any memory is spent on it."""
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"There is no picture {path}; check the name and the folder.")
    if path.is_dir():
        raise ValueError(f"{path} is a folder, not a picture; name one file.")
    try:
        with warnings.catch_warnings():
            # Pillow warns from 89 megapixels on; check_size says it in our words.
            warnings.simplefilter("ignore", PillowImage.DecompressionBombWarning)
            picture = PillowImage.open(path)
    except PillowImage.DecompressionBombError as error:
        pixels = re.search(r"\d+", str(error))
        came = f" ({int(pixels[0]) // 10**6} megapixels)" if pixels else ""
        raise ValueError(
            f"{path} is too large to open{came}; scale it down to at most {MAX_SIDE} pixels on a side "
            f"and {MAX_PIXELS // 10**6} megapixels."
        ) from error
    except UnidentifiedImageError as error:
        raise ValueError(f"{path} is not a picture that Pillow can read; save it as PNG or JPEG.") from error
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror or error}); check its permissions.") from error
    try:
        check_size(*picture.size, str(path))
        picture.load()
        return ImageOps.exif_transpose(picture)
    except (OSError, SyntaxError, EOFError) as error:
        # Pillow reports damage inside a file as any of these.
        picture.close()
        raise ValueError(f"{path} is damaged or cut short ({error}); get a fresh copy of it.") from error
    except ValueError:
        picture.close()
        raise


def _to_srgb(picture: PillowImage.Image) -> PillowImage.Image:
    """Colours by the embedded profile, if there is a usable one: without it a wide-gamut photo would fade."""
    profile = picture.info.get("icc_profile")
    if not profile or picture.mode not in ("RGB", "RGBA", "CMYK", "L"):
        return picture
    mode = "RGBA" if picture.mode == "RGBA" else "RGB"
    try:
        embedded = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        converted = ImageCms.profileToProfile(picture, embedded, ImageCms.createProfile("sRGB"), outputMode=mode)
    except (ImageCms.PyCMSError, OSError):
        # A broken profile is common and harmless: viewers ignore it as well.
        return picture
    return converted or picture


def _over(picture: PillowImage.Image, backdrop: int) -> PillowImage.Image:
    """RGB, with transparent pixels (alpha, or a palette's transparent colour) laid over a grey level."""
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    layer = picture.convert("RGBA")
    base = PillowImage.new("RGBA", layer.size, (backdrop, backdrop, backdrop, 255))
    return PillowImage.alpha_composite(base, layer).convert("RGB")


def _high_depth_levels(levels: np.ndarray, path: str | Path) -> np.ndarray:
    """What a 16-bit or float picture holds, in a type that to_rgb_uint8 knows."""
    if levels.dtype.kind == "f":
        if not (np.isfinite(levels).all() and levels.min() >= 0 and levels.max() <= 1):
            raise ValueError(f"{path} holds floating-point values outside 0..1; save it with 8 or 16 bits a channel.")
        return levels
    # Pillow decodes some 16-bit files to 32-bit integers.
    if levels.min() < 0 or levels.max() > 65535:
        raise ValueError(f"{path} holds more than 16 bits a channel; save it with 8 or 16 bits.")
    return levels.astype(np.uint16)


def _to_uint8(array: np.ndarray) -> np.ndarray:
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * 255
    if array.dtype == np.uint16:
        return np.rint(array.astype(np.float32) / 257).astype(np.uint8)
    if array.dtype.kind == "f":
        if not np.isfinite(array).all():
            raise ValueError("The image holds values that are not finite (NaN or infinity); repair it first.")
        low, high = float(array.min()), float(array.max())
        if low < 0 or high > 1:
            raise ValueError(
                f"A floating-point image has values 0..1, not {low:g}..{high:g}; divide it by its maximum."
            )
        return np.rint(array.astype(np.float32) * 255).astype(np.uint8)
    raise ValueError(f"An image is uint8, uint16, bool or float, not {array.dtype}; convert it first.")
