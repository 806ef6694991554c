"""The file formats of a clip, one writer and one reader each."""

import re
from collections.abc import Callable, Iterable
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image as PillowImage
from PIL import ImageSequence, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from .files import atomic_path, check_writable
from .images import load_image
from .shapes import Frames8

MAX_FRAMES = 1024
# Pillow looks palette colours up in cells of four levels, by each cell's lower edge: without this all turns darker.
PALETTE_LOOKUP_SHIFT = 1.5
# In the text of every frame written here: only such files may be replaced or removed.
FRAME_MARK = ("Software", "followclick")
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")


def write_webp(path: Path, frames: Frames8, fps: int) -> None:
    """Animated WebP that loops. Quality 90: below it the still background shows blocks."""
    _write_animation(path, _pictures(frames), fps, format="WEBP", quality=90, method=4)


def write_gif(path: Path, frames: Frames8, fps: int) -> None:
    """Animated GIF that loops, with one palette for the whole clip and an ordered dither.

    Error diffusion would let a change anywhere run through all pixels after it, so the still background would boil. The
    threshold of an ordered dither depends on the position alone: a pixel that keeps its colour keeps its index.
    """
    palette = _clip_palette(frames)
    spread = _palette_spacing(palette)
    height, width = frames.shape[1:3]
    dither = np.tile(_bayer_matrix(8), (-(-height // 8), -(-width // 8)))[:height, :width, None] * spread
    pictures = []
    for frame in frames:
        dithered = np.clip(np.rint(frame + dither + PALETTE_LOOKUP_SHIFT), 0, 255).astype(np.uint8)
        picture = PillowImage.fromarray(dithered)
        pictures.append(picture.quantize(palette=palette, dither=PillowImage.Dither.NONE))
    _write_animation(path, pictures, fps, format="GIF", optimize=False)


def write_mp4(path: Path, frames: Frames8, fps: int) -> None:
    """H.264 in MP4, 4:2:0, which needs even sides: an odd width or height gets its last column or row twice."""
    import av
    from av.video.reformatter import ColorRange, Colorspace

    height, width = frames.shape[1:3]
    frames = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    with atomic_path(path) as temporary, av.open(str(temporary), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=Fraction(fps), options={"crf": "16", "preset": "medium"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        # Named, since a player that has to guess shows other colours below 720 lines than above.
        stream.codec_context.colorspace = Colorspace.ITU709.value
        stream.codec_context.color_range = ColorRange.MPEG.value
        stream.codec_context.color_primaries = 1  # BT.709
        stream.codec_context.color_trc = 1  # BT.709
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            picture = picture.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())


WRITERS: dict[str, Callable[[Path, Frames8, int], None]] = {".webp": write_webp, ".gif": write_gif, ".mp4": write_mp4}


def write_png_folder(path: Path, frames: Frames8) -> None:
    """A folder of frame_0000.png, … that appears whole. An older one is replaced if it holds nothing but such a clip.

    Raises:
        ValueError: There is a file of that name, or a folder with other things in it.
    """
    check_frame_folder(path)
    with atomic_path(path) as temporary:
        temporary.mkdir()
        for index, picture in enumerate(_pictures(frames)):
            _save_frame(temporary / f"frame_{index:04d}.png", picture)


def check_frame_folder(path: Path) -> None:
    """Raise what write_png_folder would raise."""
    if path.exists() and not path.is_dir():
        raise ValueError(f"{path} is a file, where a folder of frames is to be written; name another folder.")
    entries = path.iterdir() if path.is_dir() else ()
    others = [entry.name for entry in entries if not (_is_frame(entry, "frame") and _is_ours(entry))]
    if others:
        raise ValueError(f"The folder {path} holds other files, such as {min(others)}; name a new or an empty one.")
    check_writable(path.with_name(path.name + ".probe"))


def write_numbered_pngs(path: Path, frames: Frames8) -> None:
    """out.png gives out_0000.png, …; each file is whole, and the surplus of an older, longer clip is removed.

    Raises:
        ValueError: There are files of such names that are no clip's frames.
    """
    check_numbered_pngs(path)
    for index, picture in enumerate(_pictures(frames)):
        with atomic_path(path.with_name(f"{path.stem}_{index:04d}.png")) as temporary:
            _save_frame(temporary, picture)
    for surplus in _numbered(path)[len(frames) :]:
        surplus.unlink()


def check_numbered_pngs(path: Path) -> None:
    """Raise what write_numbered_pngs would raise."""
    check_writable(path)
    others = [file.name for file in _numbered(path) if not _is_ours(file)]
    if others:
        raise ValueError(
            f"{path.parent} holds {others[0]}, which {path.name} would replace; give the clip another name."
        )


def read_numbered_pngs(path: Path) -> Frames8:
    files = _numbered(path)
    if not files:
        raise FileNotFoundError(f"There is no clip {path}, nor {path.stem}_0000.png beside it; check the name.")
    return _stack((load_image(file) for file in files), path)


def read_picture_folder(path: Path) -> Frames8:
    """The pictures of a folder in the order of their names."""
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in PICTURE_SUFFIXES and file.name[0] != ".")
    if not files:
        raise ValueError(f"The folder {path} holds no pictures; put the frames of the clip there as PNG files.")
    return _stack((load_image(file) for file in files), path)


def read_animation(path: Path) -> Frames8:
    """Animated WebP, GIF or PNG. Encoders drop a frame that repeats the one before and show that one longer."""
    durations, frames = [], []
    try:
        with PillowImage.open(path) as animation:
            for frame in ImageSequence.Iterator(animation):
                # A copy, as the next frame may be decoded into the same memory.
                frames.append(np.array(frame.convert("RGB")))
                durations.append(frame.info.get("duration") or 0)
                if len(frames) > MAX_FRAMES:
                    break
    except UnidentifiedImageError as error:
        raise ValueError(f"{path} is not a picture that Pillow can read; give a WebP, GIF or MP4 clip.") from error
    except (OSError, EOFError, SyntaxError) as error:
        raise ValueError(f"{path} is damaged or cut short ({error}); make or fetch the clip again.") from error
    usual = float(np.median(durations)) or 1.0
    repeats = [max(1, round(duration / usual)) for duration in durations]
    return _stack((frame for frame, count in zip(frames, repeats, strict=True) for _ in range(count)), path)


def read_video(path: Path) -> Frames8:
    """The first video stream of anything that PyAV decodes."""
    import av
    from av.error import FFmpegError

    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise ValueError(f"{path} holds no pictures; give a WebP, GIF or MP4 clip or a folder of PNG frames.")
            return _stack((frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)), path)
    except (FFmpegError, OSError) as error:
        raise ValueError(f"{path} cannot be decoded ({error.strerror}); give a WebP, GIF or MP4 clip.") from error


def _stack(frames: Iterable[np.ndarray], path: Path) -> Frames8:
    stacked: list[np.ndarray] = []
    for frame in frames:
        if stacked and frame.shape != stacked[0].shape:
            sizes = [f"{shape[1]}x{shape[0]}" for shape in (frame.shape, stacked[0].shape)]
            raise ValueError(f"Frame {len(stacked)} of {path} is {sizes[0]}, the first {sizes[1]}; make them one size.")
        if len(stacked) == MAX_FRAMES:
            raise ValueError(f"{path} has more than {MAX_FRAMES} frames; cut out the part that is meant.")
        stacked.append(frame)
    if not stacked:
        raise ValueError(f"{path} holds no frame; make or fetch the clip again.")
    return np.stack(stacked)


def _write_animation(path: Path, pictures: list[PillowImage.Image], fps: int, **options) -> None:
    # Both formats count whole steps (1 ms, 10 ms), so rounding the end of each frame keeps the clip's length right.
    step = 10 if options["format"] == "GIF" else 1
    ends = [round(1000 * index / fps / step) * step for index in range(len(pictures) + 1)]
    durations = [end - start for start, end in pairwise(ends)]
    with atomic_path(path) as temporary:
        pictures[0].save(temporary, save_all=True, append_images=pictures[1:], duration=durations, loop=0, **options)


def _pictures(frames: Frames8) -> list[PillowImage.Image]:
    return [PillowImage.fromarray(frame) for frame in frames]


def _save_frame(path: Path, picture: PillowImage.Image) -> None:
    mark = PngInfo()
    mark.add_text(*FRAME_MARK)
    picture.save(path, pnginfo=mark)


def _is_ours(path: Path) -> bool:
    try:
        with PillowImage.open(path) as picture:
            return picture.info.get(FRAME_MARK[0]) == FRAME_MARK[1]
    except (OSError, SyntaxError):
        return False


def _is_frame(path: Path, stem: str) -> bool:
    return re.fullmatch(re.escape(stem) + r"_\d{4,}\.png", path.name) is not None


def _numbered(path: Path) -> list[Path]:
    if not path.parent.is_dir():
        return []
    return sorted(file for file in path.parent.iterdir() if _is_frame(file, path.stem))


def _clip_palette(frames: Frames8) -> PillowImage.Image:
    """256 colours for all frames: median cut over a sample of each frame's pixels, the same positions in all."""
    stride = max(1, round((frames[..., 0].size / 500_000) ** 0.5))
    sample = frames[:, ::stride, ::stride]
    sample = sample.reshape(-1, sample.shape[2], 3)
    return PillowImage.fromarray(np.ascontiguousarray(sample)).quantize(256, method=PillowImage.Quantize.MEDIANCUT)


def _palette_spacing(palette: PillowImage.Image) -> float:
    """How far apart neighbouring palette colours lie per channel: the amplitude at which a dither can mix them."""
    colours = np.array(palette.getpalette(), dtype=np.float32).reshape(-1, 3)
    colours = np.unique(colours, axis=0)
    if len(colours) < 2:
        return 0.0
    distances = np.abs(colours[:, None] - colours[None]).max(axis=-1) + 1e3 * np.eye(len(colours))
    return float(np.median(distances.min(axis=1)))


def _bayer_matrix(size: int) -> np.ndarray:
    """Thresholds -0.5..0.5 in the order that spreads them most evenly (Bayer 1973); `size` is a power of two."""
    matrix = np.zeros((1, 1))
    while len(matrix) < size:
        matrix = np.block([[4 * matrix, 4 * matrix + 2], [4 * matrix + 3, 4 * matrix + 1]])
    return (matrix + 0.5) / size**2 - 0.5
