"""The steps that workers do, a part at a time: take clips, measure motion, pack shards.

A step is a small frozen object that travels to its worker; what is heavy (an estimator, weights) is made there, when it
is first needed.
"""

import functools
import io
import os
import sys
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as PillowImage

from ..flow import FlowEstimator, dis_flow, load_raft
from ..flow.motion_mask import RULES
from .clips import Clip, VideoOutcome, take_clips
from .measure import MeasuredClip, measure_clip
from .params import ClipParams, MotionParams
from .plan import files_digest, read_part
from .sources import Problem, Video
from .store import CLIPS, MOTION, Store, digest_of
from .tars import TarIndex, open_tar_writer

CRASHES = 3  # so often may one video take its worker down before it is left out
FORMAT = 1  # of what is written; part of every digest


@dataclass(frozen=True)
class Step(ABC):
    """Makes the parts of one step of a build in `folder`."""

    folder: str
    name = ""

    @property
    def store(self) -> Store:
        return Store(self.folder)

    @abstractmethod
    def digest(self, part: int) -> str | None:
        """What the part is made of; None while an earlier step of it is missing."""

    @abstractmethod
    def make(self, part: int, tar: Any) -> dict[str, Any]:
        """Write the samples of a part to a webdataset writer, and return what the manifest says besides the digest."""

    def is_done(self, part: int) -> bool:
        digest = self.digest(part)
        return digest is not None and self.store.digest(self.name, part) == digest

    def run(self, part: int) -> None:
        """Make a part, unless it is there: first the .tar, then its manifest, each whole or not at all.

        Raises:
            ValueError: It cannot be written (a full disk).
        """
        digest = self.digest(part)
        if digest is None or self.is_done(part):
            return
        store, started = self.store, time.perf_counter()
        store.manifest(self.name, part).unlink(missing_ok=True)
        with open_tar_writer(store.tar(self.name, part)) as tar:
            content = self.make(part, tar)
        cost = {"seconds": round(time.perf_counter() - started, 3), "peak_memory": peak_memory()}
        store.write(self.name, part, {"digest": digest, **cost, **content})


@dataclass(frozen=True)
class ClipStep(Step):
    """Decode, find cuts, sample, crop; `run_id` tells the attempts of this command from those of an earlier one."""

    params: ClipParams
    run_id: str
    name = CLIPS

    def digest(self, part: int) -> str | None:
        return digest_of(FORMAT, asdict(self.params), files_digest(self.store, part))

    def make(self, part: int, tar: Any) -> dict[str, Any]:
        outcomes, samples = [], []
        attempts = _Attempts(self.store.tar(CLIPS, part).with_suffix(".attempts"), self.run_id)
        for index, video in enumerate(read_part(self.store, part)):
            outcome = VideoOutcome(video.name)
            if attempts.count(index) >= CRASHES:
                outcome.problems.append(Problem(video.name, "crashes the decoder", f"{CRASHES} workers ended on it"))
            else:
                attempts.begin(index)
                for number, clip in enumerate(_safely(video, self.params, outcome)):
                    key = f"{part:06d}-{index:04d}-{number:03d}"
                    tar.write({"__key__": key, **_jpegs(clip, self.params.jpeg_quality)})
                    samples.append(self._record(key, index, clip, outcome))
            outcomes.append(outcome.to_dict())
        attempts.forget()
        return {"videos": outcomes, "samples": samples}

    def _record(self, key: str, index: int, clip: Clip, outcome: VideoOutcome) -> dict[str, Any]:
        assert outcome.info is not None
        return {
            "key": key,
            "video": outcome.name,
            "video_index": index,
            "start": round(clip.start, 4),
            "num_frames": self.params.num_frames,
            "stride": self.params.stride,
            "size": self.params.size,
            "source": asdict(outcome.info),
            "cut_score": round(clip.cut_score, 3),
            "variable_rate": clip.variable_rate,
            "repeated_frames": clip.repeated_frames,
        }


@dataclass(frozen=True)
class MotionStep(Step):
    """Flow, masks and figures of the clips that ClipStep stored; the videos are not needed any more."""

    params: MotionParams
    estimator: str  # what measures: "dis", or "raft" and the digest of its weights
    name = MOTION

    def digest(self, part: int) -> str | None:
        clips = self.store.digest(CLIPS, part)
        # Which rule a sample carries is decided when it is packed; all of them are measured here.
        measured = [self.estimator, self.params.floor, self.params.subtract_median]
        return digest_of(FORMAT, measured, clips) if clips else None

    def make(self, part: int, tar: Any) -> dict[str, Any]:
        manifest = self.store.read(CLIPS, part)
        assert manifest is not None
        figures, problems = {}, []
        estimator = _estimator(self.params.raft, self.params.device)
        clips = TarIndex(self.store.tar(CLIPS, part))
        for sample in manifest["samples"]:
            key = sample["key"]
            try:
                measured = measure_clip(_read_frames(clips, key), estimator, self.params)
            # One clip that defeats the estimator must not cost the part.
            except Exception as error:
                problems.append(asdict(Problem(f"{sample['video']} at {sample['start']:.2f} s", *_failure(error))))
                continue
            tar.write({"__key__": key, **_mask_pngs(measured), "flow.npy": npy_bytes(measured.flow)})
            figures[key] = measured.figures.to_dict()
        about = {
            "estimator": self.estimator,
            "floor": self.params.floor,
            "subtract_median": self.params.subtract_median,
        }
        return {"about": about, "figures": figures, "problems": problems}


class StepWorker:
    """What runs in a worker process: step after step on one part. A row {"part": n} comes back with what failed."""

    def __init__(self, steps: list[Step]):
        import cv2
        import torch

        self._steps = steps
        # There is a worker per core.
        cv2.setNumThreads(1)
        torch.set_num_threads(1)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        part, error = int(row["part"]), ""
        try:
            for step in self._steps:
                step.run(part)
        # Whatever happens to one part must not end the others; the report names it.
        except (ValueError, OSError) as failure:
            error = str(failure)
        except Exception:
            error = traceback.format_exc()
        return {"part": part, "error": error}


class _Attempts:
    """Which videos a part's workers have begun: one that takes its worker down each time must not hold up the build.

    A line per attempt: run, number of the video, process.
    """

    def __init__(self, path: Path, run_id: str):
        self._path, self._run_id = path, run_id
        lines = path.read_text(encoding="ascii").split() if path.exists() else []
        self._begun = [line.split(":")[1] for line in lines if line.startswith(run_id + ":")]

    def count(self, index: int) -> int:
        return self._begun.count(str(index))

    def begin(self, index: int) -> None:
        with open(self._path, "a", encoding="ascii") as file:
            file.write(f"{self._run_id}:{index}:{os.getpid()}\n")

    def forget(self) -> None:
        self._path.unlink(missing_ok=True)


def peak_memory() -> int | None:
    """The most memory that this process has held so far, in bytes; None where the system does not say."""
    try:
        import resource
    except ImportError:
        return None
    # In kilobytes, but in bytes on macOS.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def npy_bytes(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


def _safely(video: Video, params: ClipParams, outcome: VideoOutcome) -> Iterator[Clip]:
    """take_clips, with what it does not foresee as a problem of this video: libraries have surprises of their own."""
    try:
        yield from take_clips(video, params, outcome)
    except Exception as error:
        outcome.problems.append(Problem(video.name, *_failure(error)))


def _failure(error: Exception) -> tuple[str, str]:
    return "failed", f"{type(error).__name__}: {error}"


def _jpegs(clip: Clip, quality: int) -> dict[str, bytes]:
    encoded = {}
    for index, frame in enumerate(clip.frames):
        file = io.BytesIO()
        PillowImage.fromarray(frame).save(file, "JPEG", quality=quality, subsampling=0)
        encoded[f"frame.{index:03d}.jpg"] = file.getvalue()
    return encoded


def _mask_pngs(measured: MeasuredClip) -> dict[str, bytes]:
    encoded = {}
    for rule in RULES:
        file = io.BytesIO()
        PillowImage.fromarray(measured.masks[rule]).save(file, "PNG", bits=1, optimize=True)
        encoded[f"mask.{rule}.png"] = file.getvalue()
    return encoded


def _read_frames(clips: TarIndex, key: str) -> np.ndarray:
    files = clips.read(key, "frame.")
    return np.stack([np.array(PillowImage.open(io.BytesIO(files[name]))) for name in sorted(files)])


@functools.lru_cache(maxsize=1)
def _estimator(raft: str | None, device: str) -> FlowEstimator:
    return load_raft(raft, device) if raft else dis_flow()
