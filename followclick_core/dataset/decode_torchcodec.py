"""Video streams by torchcodec, which decodes with the system's FFmpeg; the same frames as PyAV's, within rounding.

It does not tell of damage that FFmpeg patched up, so it is used only where it is asked for.
"""

from collections.abc import Iterator

import numpy as np

from ..shapes import Image
from .decode import MAX_SIDE, VideoError, VideoInfo

BATCH = 8  # frames fetched at once


class TorchcodecStream:
    """A video file through torchcodec's VideoDecoder; rotation and pixel aspect are applied by it or here."""

    def __init__(self, path: str):
        from torchcodec.decoders import VideoDecoder  # pyright: ignore[reportMissingImports]

        self._check(path)
        try:
            self._decoder = VideoDecoder(path, dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode="approximate")
            data = self._decoder.metadata
            if not data.num_frames:
                raise VideoError("no frames")
            first = self._decoder.get_frame_at(0)
        except (RuntimeError, ValueError, OSError, IndexError) as error:
            if isinstance(error, VideoError):
                raise
            raise VideoError("unreadable", str(error).partition("\n")[0]) from error
        height, width = first.data.shape[:2]
        aspect = float(data.pixel_aspect_ratio or 1)
        width = round(width * aspect) if 0.1 < aspect < 10 else width
        if not (0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE):
            raise VideoError("unreadable", f"it claims {width}x{height} px")
        rate = data.average_fps
        fps = float(rate) if rate and 0.1 <= rate <= 1000 else 25.0
        self._first = float(data.begin_stream_seconds or 0)
        self.info = VideoInfo(width, height, fps, data.duration_seconds, data.codec or "", "torchcodec")

    def frames(self, start: float) -> Iterator["TorchcodecFrame"]:
        number = max(0, int(start * self.info.fps))
        total = self._decoder.metadata.num_frames or 0
        while number < total:
            try:
                batch = self._decoder.get_frames_in_range(number, min(number + BATCH, total))
            except (RuntimeError, IndexError) as error:
                raise VideoError("damaged", str(error).partition("\n")[0]) from error
            for picture, time in zip(batch.data.numpy(), batch.pts_seconds.tolist(), strict=True):
                yield TorchcodecFrame(picture, time - self._first)
            number += BATCH

    @staticmethod
    def _check(path: str) -> None:
        import os

        try:
            size = os.path.getsize(path)
        except OSError as error:
            raise VideoError("file is missing", error.strerror or str(error)) from error
        if size == 0:
            raise VideoError("empty file")


class TorchcodecFrame:
    def __init__(self, picture: np.ndarray, time: float):
        self._picture = picture
        self.time = time
        self.corrupt = False  # unknown: torchcodec passes on errors, but not FFmpeg's mark of a patched-up frame

    def rgb(self, width: int, height: int) -> Image:
        import cv2

        shrinks = width < self._picture.shape[1]
        resized = cv2.resize(
            self._picture, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
        )
        return np.ascontiguousarray(resized)
