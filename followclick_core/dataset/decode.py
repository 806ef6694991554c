"""Videos as streams of frames from any moment on: by PyAV, or by torchcodec where that is asked for.

Only the frame at hand is in memory, whatever the length of the video. A frame is scaled to the size that is asked for
when it is asked for, so that most frames, which only the cut detector sees, cost little.
"""

import io
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from ..shapes import Image
from .sources import Video

MAX_SIDE = 16384  # px; a damaged header can claim any size


class VideoError(ValueError):
    """A video that cannot be used. `reason` is one of a few words that reports count by."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class VideoInfo:
    """What the file says of itself; width and height as shown, after rotation and with square pixels."""

    width: int
    height: int
    fps: float  # average
    duration: float | None  # s; None where the file does not say
    codec: str
    decoder: str


@runtime_checkable
class Frame(Protocol):
    """One decoded frame. `time` is in seconds from the video's start."""

    time: float
    corrupt: bool

    def rgb(self, width: int, height: int) -> Image: ...


@runtime_checkable
class VideoStream(Protocol):
    info: VideoInfo

    def frames(self, start: float) -> Iterator[Frame]:
        """The frames from `start` seconds on (or a little before), in the order of their times.

        Raises:
            VideoError: The data is damaged from here on.
        """
        ...


def open_video(video: Video, decoder: str = "pyav") -> AbstractContextManager[VideoStream]:
    """Open a video for streaming; one within a tar always by PyAV, which tells of frames that FFmpeg patched up.

    Raises:
        VideoError: It is missing, empty, no video, or damaged.
    """
    if video.length is None and decoder == "torchcodec":
        from .decode_torchcodec import TorchcodecStream

        return nullcontext(TorchcodecStream(video.path))
    return PyAVStream(video)


def torchcodec_is_there() -> bool:
    try:
        import torchcodec.decoders  # noqa: F401  # pyright: ignore[reportMissingImports]
    # It is a RuntimeError or OSError where FFmpeg's libraries are missing.
    except (ImportError, RuntimeError, OSError):
        return False
    return True


class PyAVStream:
    """The first video stream of a file, or of a part of a tar, through FFmpeg's libraries, which PyAV brings along."""

    def __init__(self, video: Video):
        self._file = _open_file(video)
        self._container: Any = None

    def __enter__(self) -> "PyAVStream":
        import av
        from av.error import FFmpegError

        try:
            # The metadata may be in any old encoding; nothing here reads it.
            self._container = av.open(self._file, metadata_errors="replace")
            self._stream = _first_picture_stream(self._container)
            self._stream.codec_context.thread_count = 1  # there is a process per core already
            self.info = self._probe()
        except (FFmpegError, OSError) as error:
            self.close()
            raise VideoError("unreadable", _words(error)) from error
        except VideoError:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._container is not None:
            self._container.close()
        self._file.close()

    def frames(self, start: float) -> Iterator["PyAVFrame"]:
        from av.error import EOFError as EndOfFile
        from av.error import FFmpegError

        self._seek(start)
        time = 0.0
        try:
            for frame in self._container.decode(self._stream):
                time = float(frame.pts * self._stream.time_base) - self._first if frame.pts is not None else time
                yield PyAVFrame(frame, time)
                time += 1 / self.info.fps
        except EndOfFile:
            return
        except (FFmpegError, OSError) as error:
            raise VideoError("damaged", _words(error)) from error

    def _seek(self, start: float) -> None:
        from av.error import FFmpegError

        stream = self._stream
        try:
            self._container.seek(round((start + self._first) / stream.time_base), stream=stream, backward=True)
        except (FFmpegError, OSError) as error:
            raise VideoError("damaged", f"seeking failed, {_words(error)}") from error

    def _probe(self) -> VideoInfo:
        stream, context = self._stream, self._stream.codec_context
        if not (0 < context.width <= MAX_SIDE and 0 < context.height <= MAX_SIDE):
            raise VideoError("unreadable", f"it claims {context.width}x{context.height} px")
        self._first = float((stream.start_time or 0) * stream.time_base)
        duration = float(stream.duration * stream.time_base) if stream.duration else None
        if duration is None and self._container.duration:
            duration = self._container.duration / 1e6
        # The first frame tells the rotation, and that there is one at all.
        frame = next(self.frames_unprobed(), None)
        if frame is None:
            raise VideoError("no frames")
        width, height = frame.width, frame.height
        aspect = float(stream.sample_aspect_ratio or 1)
        width = round(width * aspect) if 0.1 < aspect < 10 else width
        if frame.rotation % 180:
            width, height = height, width
        rate = stream.average_rate or stream.guessed_rate
        fps = float(rate) if rate and 0.1 <= rate <= 1000 else 25.0
        return VideoInfo(width, height, fps, duration, context.name, "pyav")

    def frames_unprobed(self) -> Iterator[Any]:
        """The very first frames as PyAV gives them."""
        from av.error import FFmpegError

        try:
            yield from self._container.decode(self._stream)
        except (FFmpegError, OSError) as error:
            raise VideoError("damaged", _words(error)) from error


class PyAVFrame:
    """A frame that is scaled when asked for."""

    def __init__(self, frame: Any, time: float):
        self._frame = frame
        self.time = time
        self.corrupt = bool(frame.is_corrupt)

    def rgb(self, width: int, height: int) -> Image:
        from av.video.reformatter import Interpolation

        turns = round(self._frame.rotation / 90) % 4
        if turns % 2:
            width, height = height, width
        shrinks = width < self._frame.width
        picture = self._frame.reformat(
            width, height, "rgb24", interpolation=Interpolation.AREA if shrinks else Interpolation.BICUBIC
        )
        return np.ascontiguousarray(np.rot90(picture.to_ndarray(), turns))


class _FileSlice(io.RawIOBase):
    """A stretch of a file as a file of its own: a video within an uncompressed tar."""

    def __init__(self, file: io.BufferedReader, offset: int, length: int):
        self._file, self._offset, self._length, self._at = file, offset, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._length}[whence]
        self._at = max(0, base + offset)
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        self._file.seek(self._offset + self._at)
        data = self._file.read(max(0, min(len(buffer), self._length - self._at)))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()


def _open_file(video: Video) -> Any:
    try:
        file = open(video.path, "rb")  # noqa: SIM115  # closed by the stream
        size = file.seek(0, io.SEEK_END) if video.length is None else video.length
        file.seek(0)
    except OSError as error:
        raise VideoError("file is missing", _words(error)) from error
    if size == 0:
        file.close()
        raise VideoError("empty file")
    return file if video.length is None else io.BufferedReader(_FileSlice(file, video.offset, video.length))


def _first_picture_stream(container: Any) -> Any:
    # A cover picture of a music file is a video stream, too, of one frame.
    for stream in container.streams.video:
        if not stream.disposition & stream.disposition.attached_pic:
            return stream
    raise VideoError("no video", "the file holds no moving pictures")


def _words(error: BaseException) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
