"""What is taken from a video: the right frames, none across a cut, and names for all that cannot be used."""

import random
import subprocess
import sys

import numpy as np
import pytest

from followclick_core.dataset.clips import VideoOutcome, plan_starts, take_clips
from followclick_core.dataset.decode import VideoError, VideoInfo, open_video
from followclick_core.dataset.params import ClipParams
from followclick_core.dataset.sources import Video

from .conftest import SIDE, scene, write_video

SMALL = ClipParams(size=SIDE, clips_per_video=1)


def take(path, params=SMALL, **place):
    outcome = VideoOutcome("video")
    return list(take_clips(Video("video", str(path), "", **place), params, outcome)), outcome


def reasons(outcome):
    return [problem.reason for problem in outcome.problems]


def numbered(count, width=64, height=64):
    """Frames whose brightness tells their number: 60 + 2 * number."""
    return np.stack([np.full((height, width, 3), 60 + 2 * index, np.uint8) for index in range(count)])


def numbers(clip):
    return [round((float(frame.mean()) - 60) / 2) for frame in clip.frames]


def test_sixteen_frames_at_stride_four_are_those_frames(tmp_path):
    [clip], outcome = take(write_video(tmp_path / "v.mp4", numbered(70)), ClipParams(size=64, clips_per_video=1))
    assert numbers(clip) == list(range(0, 64, 4))
    assert clip.frames.shape == (16, 64, 64, 3)
    assert (clip.variable_rate, clip.repeated_frames, outcome.cuts) == (False, 0, 0)


def test_a_clip_may_end_with_the_last_frame_but_not_behind_it(tmp_path):
    [clip], _ = take(write_video(tmp_path / "v.mp4", numbered(61)), ClipParams(size=64))
    assert numbers(clip)[-1] == 60
    clips, outcome = take(write_video(tmp_path / "short.mp4", numbered(60)), ClipParams(size=64))
    assert not clips and reasons(outcome) == ["too short"]


def test_clips_are_spread_over_the_video_and_do_not_overlap():
    info = VideoInfo(64, 64, 25.0, 100.0, "h264", "pyav")
    starts = plan_starts(info, ClipParams(clips_per_video=4))
    assert np.allclose(np.diff(starts), 25, atol=0.1) and starts[0] == 0
    assert len(plan_starts(VideoInfo(64, 64, 25.0, 5.0, "h264", "pyav"), ClipParams(clips_per_video=4))) == 2
    with pytest.raises(VideoError, match="too short"):
        plan_starts(VideoInfo(64, 64, 25.0, 2.0, "h264", "pyav"), ClipParams())


def test_a_variable_frame_rate_is_sampled_by_time(tmp_path):
    # 50 fps for a second, then 25 fps: the average is about 34, and motion must not slow down half way.
    times = [*(index / 50 for index in range(50)), *(1 + index / 25 for index in range(60))]
    frames = np.stack([np.full((64, 64, 3), round(40 + 40 * time), np.uint8) for time in times])
    [clip], outcome = take(
        write_video(tmp_path / "v.mp4", frames, times, fps=50), ClipParams(size=64, clips_per_video=1)
    )
    assert clip.variable_rate and outcome.variable_rate
    steps = np.diff([float(frame.mean()) for frame in clip.frames])
    expected = 40 * 4 / outcome.info.fps
    # A frame is shown up to 1/25 s late, which is 1.6 grey levels.
    assert np.abs(np.cumsum(steps) - expected * np.arange(1, 16)).max() < 2.5


def test_no_clip_holds_a_cut_and_one_is_found_behind_it(tmp_path):
    frames = np.concatenate([scene(30, seed=0), 255 - scene(75, seed=5)])
    [clip], outcome = take(write_video(tmp_path / "v.mp4", frames))
    assert outcome.cuts == 1
    assert clip.start == pytest.approx(30 / 25, abs=0.01)
    assert clip.cut_score < SMALL.cut_threshold


def test_a_video_of_short_shots_gives_nothing_and_says_why(tmp_path):
    shots = [scene(20, seed=seed) if seed % 2 else 255 - scene(20, seed=seed) for seed in range(6)]
    clips, outcome = take(write_video(tmp_path / "v.mp4", np.concatenate(shots)))
    assert not clips and set(reasons(outcome)) == {"cut"} and outcome.cuts >= 3


def test_a_real_video_with_cuts_gives_a_clip_between_them(real_clips):
    clips, outcome = take(real_clips / "bikes.mp4", ClipParams(size=128))
    assert outcome.cuts >= 2 and len(clips) >= 1
    for clip in clips:
        # Frames of one shot resemble their neighbours; the shots of this clip do not.
        steps = np.abs(np.diff(clip.frames.astype(int), axis=0)).mean(axis=(1, 2, 3))
        assert steps.max() < 50


@pytest.mark.parametrize(("width", "height"), [(175, 143), (163, 301)])
def test_odd_sizes_are_cropped_to_the_square_in_their_middle(tmp_path, width, height):
    frames = np.repeat(np.zeros((1, height, width, 3), np.uint8), 70, axis=0)
    side = min(width, height)
    top, left = (height - side) // 2, (width - side) // 2
    frames[:, top : top + side, left : left + side] = 200
    [clip], outcome = take(write_video(tmp_path / "v.mp4", frames), ClipParams(size=128, clips_per_video=1))
    assert (outcome.info.width, outcome.info.height) == (width, height)
    # The very rim mixes with the black beside it.
    assert clip.frames[:, 4:-4, 4:-4].min() > 190


def test_a_rotated_video_is_taken_as_it_is_shown(tmp_path):
    frames = np.zeros((70, 96, 128, 3), np.uint8)
    frames[:, :, :32] = 220
    [clip], outcome = take(write_video(tmp_path / "v.mp4", frames, rotation=90), ClipParams(size=96, clips_per_video=1))
    assert (outcome.info.width, outcome.info.height) == (96, 128)
    # A quarter turn counter-clockwise brings the left side to the bottom.
    assert clip.frames[0, -10:].mean() > 150 and clip.frames[0, :60].mean() < 30


def test_pixels_that_are_not_square_become_so(real_clips):
    with open_video(Video("v", str(real_clips / "carphone_pristine.mp4"), "")) as stream:
        assert (stream.info.width, stream.info.height) == (193, 144)  # 176 * 128/117
        assert next(iter(stream.frames(0))).rgb(193, 144).shape == (144, 193, 3)


def test_a_video_within_a_tar_gives_the_same_clip(sliding_video, tmp_path):
    content = sliding_video.read_bytes()
    (tmp_path / "s.tar").write_bytes(b"x" * 700 + content + b"y" * 300)
    [expected], _ = take(sliding_video)
    [clip], outcome = take(tmp_path / "s.tar", offset=700, length=len(content))
    assert not outcome.problems
    np.testing.assert_array_equal(clip.frames, expected.frames)


def test_files_that_are_no_videos_are_named(tmp_path, sliding_video):
    whole = sliding_video.read_bytes()
    for name, content, reason in (
        ("empty.mp4", b"", "empty file"),
        ("text.mp4", b"no video at all" * 100, "unreadable"),
        ("cut.mp4", whole[: len(whole) // 2], "unreadable"),
    ):
        (tmp_path / name).write_bytes(content)
        clips, outcome = take(tmp_path / name)
        assert not clips and reasons(outcome) == [reason], name
    assert reasons(take(tmp_path / "gone.mp4")[1]) == ["file is missing"]


def test_damaged_pictures_are_named_and_never_kept(tmp_path, sliding_video):
    content = bytearray(sliding_video.read_bytes())
    rng = random.Random(0)
    media = content.index(b"mdat") + 2000  # behind the first key frame's header
    for _ in range(300):
        content[rng.randrange(media, media + len(content) // 2)] ^= 255
    (tmp_path / "v.mp4").write_bytes(content)
    clips, outcome = take(tmp_path / "v.mp4")
    assert not clips and reasons(outcome) == ["damaged"]


def test_what_comes_before_the_damage_is_kept(tmp_path):
    path = write_video(tmp_path / "v.mp4", np.concatenate([scene(75), scene(75)]), g="25")
    content = bytearray(path.read_bytes())
    end = content.index(b"moov") if content.index(b"moov") > content.index(b"mdat") else len(content)
    start = content.index(b"mdat")
    middle = start + (end - start) * 6 // 10
    content[middle : middle + (end - start) // 4] = bytes((end - start) // 4)
    path.write_bytes(content)
    clips, outcome = take(path, ClipParams(size=SIDE, clips_per_video=2))
    assert len(clips) == 1 and clips[0].start < 0.1
    assert reasons(outcome) == ["damaged"]


def lengthened(path, source, times):
    """Repeat a video's packets, so that an hour of it takes no hour to make."""
    import av

    with av.open(str(source)) as video, av.open(str(path), "w") as container:
        stream = video.streams.video[0]
        packets = [packet for packet in video.demux(stream) if packet.dts is not None]
        copy = container.add_stream_from_template(stream)
        length = max(packet.pts for packet in packets) + packets[0].duration
        stored = [(bytes(packet), packet.pts, packet.dts, packet.is_keyframe, packet.duration) for packet in packets]
        for round_number in range(times):
            for data, pts, dts, is_key, duration in stored:
                packet = av.Packet(data)
                packet.pts, packet.dts = pts + round_number * length, dts + round_number * length
                packet.duration, packet.time_base, packet.stream = duration, stream.time_base, copy
                packet.is_keyframe = is_key
                container.mux(packet)
    return path


PROBE = """
import sys
from followclick_core.dataset.clips import VideoOutcome, take_clips
from followclick_core.dataset.params import ClipParams
from followclick_core.dataset.sources import Video
from followclick_core.dataset.steps import peak_memory

outcome = VideoOutcome("video")
count = sum(1 for _ in take_clips(Video("video", sys.argv[1], ""), ClipParams(size=256, clips_per_video=8), outcome))
print(count, outcome.info.duration, peak_memory())
"""


def probe(path):
    """Clips, duration and peak memory, of a process of its own: the peak of this one is that of all tests so far."""
    answer = subprocess.run([sys.executable, "-c", PROBE, path], check=True, capture_output=True, text=True).stdout
    count, duration, peak = answer.split()
    return int(count), float(duration), int(peak)


def test_a_two_hour_video_takes_no_more_memory_than_a_short_one(tmp_path, sliding_video):
    _, _, least = probe(lengthened(tmp_path / "short.mp4", sliding_video, 4))
    count, duration, peak = probe(lengthened(tmp_path / "long.mp4", sliding_video, 2400))
    assert duration == pytest.approx(7200, abs=10)
    assert count == 8
    # Two hours of these frames, decoded, would be 35 GB; the index of 180,000 packets is a few MB.
    assert peak - least < 60 << 20


def test_torchcodec_gives_the_same_clips(sliding_video):
    pytest.importorskip("torchcodec", exc_type=(ImportError, RuntimeError, OSError))
    from followclick_core.dataset.decode import PyAVStream
    from followclick_core.dataset.decode_torchcodec import TorchcodecStream

    with PyAVStream(Video("v", str(sliding_video), "")) as expected:
        stream = TorchcodecStream(str(sliding_video))
        assert (stream.info.width, stream.info.height) == (expected.info.width, expected.info.height)
        others = [frame for frame in expected.frames(1.0) if frame.time > 0.99]
        for mine, other in zip(stream.frames(1.0), others, strict=True):
            assert mine.time == pytest.approx(other.time, abs=1e-3)
            difference = mine.rgb(80, 80).astype(int) - other.rgb(80, 80).astype(int)
            assert np.abs(difference).mean() < 3
