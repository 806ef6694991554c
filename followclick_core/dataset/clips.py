"""Clips of a video: windows spread over it, sampled by time, none with a cut inside.

Each window is decoded by itself, from the nearest key frame on. A cut inside it starts it anew behind the cut, so what
comes out is one shot. At most the frames of one clip are in memory.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field

import numpy as np

from ..shapes import Frames8, Image
from .decode import Frame, VideoError, VideoInfo, VideoStream, open_video
from .params import ClipParams
from .sources import Problem, Video

CUT_WIDTH = 128  # px; the cut detector sees frames of this width
SEARCH_SPANS = 8  # a window is looked for within so many lengths of a clip; a video of short shots would cost hours
TOLERANCE = 0.25  # of a frame's duration: how exactly times in a file are meant
CONTENT_SCORE = "content_val"  # scenedetect's name for the value that the threshold is compared with
UNEVEN = 1.5  # longest / shortest distance of neighbouring frames beyond which a frame rate is variable


@dataclass(frozen=True)
class Clip:
    """Frames of one shot, and where they come from.

    Attributes:
        start: Of the first frame, in seconds of the video.
        cut_score: The largest content value between neighbouring frames, 0..255; below the threshold by construction.
        variable_rate: Whether the distances of the video's frames differ here.
        repeated_frames: How many of the frames show the same picture as the one before, for lack of another.
    """

    frames: Frames8
    start: float
    cut_score: float
    variable_rate: bool
    repeated_frames: int


@dataclass
class VideoOutcome:
    """What became of one video; filled while its clips are taken."""

    name: str
    info: VideoInfo | None = None
    clips: int = 0
    cuts: int = 0
    variable_rate: bool = False
    problems: list[Problem] = field(default_factory=list)

    def to_dict(self) -> dict:
        return asdict(self)


def take_clips(video: Video, params: ClipParams, outcome: VideoOutcome) -> Iterator[Clip]:
    """Yield the clips of a video; what went wrong is in `outcome.problems`, never raised."""
    try:
        with open_video(video, params.decoder) as stream:
            outcome.info = stream.info
            searched = 0.0
            for start in plan_starts(stream.info, params):
                window = _Window(stream, max(start, searched), params, outcome)
                # A search that went on for long has covered the next start already, or come to the end.
                clip = window.search() if window.start == start or window.fits else None
                searched = window.searched
                if clip is not None:
                    outcome.clips += 1
                    outcome.variable_rate |= clip.variable_rate
                    yield clip
    except VideoError as error:
        outcome.problems.append(Problem(video.name, error.reason, error.detail))


def clip_span(info: VideoInfo, params: ClipParams) -> float:
    """Seconds from a clip's first frame to its last."""
    return (params.num_frames - 1) * params.stride / info.fps


def plan_starts(info: VideoInfo, params: ClipParams) -> list[float]:
    """Where to look for each clip, in seconds: equal parts of the video, as many as whole clips fit.

    Raises:
        VideoError: The video is shorter than one clip.
    """
    span = clip_span(info, params)
    if info.duration is None:
        return [0.0]
    last = info.duration - 1 / info.fps  # when the last frame appears
    if last < span - TOLERANCE / info.fps:
        raise VideoError("too short", f"{info.duration:.2f} s, a clip spans {span + 1 / info.fps:.2f} s")
    count = max(1, min(params.clips_per_video, int(last / span)))
    return [index * last / count for index in range(count)]


class _Window:
    """The search for one clip from a start on; `searched` is how far it has come."""

    def __init__(self, stream: VideoStream, start: float, params: ClipParams, outcome: VideoOutcome):
        self.start = self.searched = start
        self._stream, self._params, self._outcome = stream, params, outcome
        self._span = clip_span(stream.info, params)
        self._tolerance = TOLERANCE / stream.info.fps
        self._end = start + SEARCH_SPANS * self._span

    @property
    def fits(self) -> bool:
        duration = self._stream.info.duration
        return duration is None or self.start + self._span <= duration

    def search(self) -> Clip | None:
        """The first shot of a clip's length; None, and a problem noted, where there is none."""
        cuts = self._outcome.cuts
        try:
            clip = self._search()
            cut = self._outcome.cuts > cuts
            error = VideoError("cut", "no shot is long enough") if cut else VideoError("too short", "it ends before")
        except VideoError as damage:
            clip, error = None, damage
        if clip is None:
            place = f"{self._outcome.name} at {self.start:.2f} s"
            self._outcome.problems.append(Problem(place, error.reason, error.detail))
        return clip

    def _search(self) -> Clip | None:
        info, params = self._stream.info, self._params
        sampler, cuts = _Sampler(self.start, info, params), _CutDetector(info, params)
        for frame in self._stream.frames(self.start):
            if frame.time < self.start - self._tolerance:
                continue
            self.searched = frame.time + 1 / info.fps
            if frame.corrupt:
                raise VideoError("damaged", f"frame at {frame.time:.2f} s")
            if cuts.is_cut(frame):
                self._outcome.cuts += 1
                sampler, cuts.score = _Sampler(frame.time, info, params), 0.0
            if sampler.start + self._span > self._end:
                return None
            if sampler.add(frame):
                return sampler.clip(cuts.score)
        return sampler.clip(cuts.score) if sampler.finish() else None


class _Sampler:
    """Picks the frame shown at each of a clip's times, of frames that come in order."""

    def __init__(self, start: float, info: VideoInfo, params: ClipParams):
        self.start = start
        self._info, self._params = info, params
        self._shown: Frame | None = None
        self._picked: list[Image] = []
        self._last_pick: Frame | None = None
        self._repeated = 0
        self._gaps: list[float] = []

    def add(self, frame: Frame) -> bool:
        """Take in the next frame; True once the clip is whole."""
        if self._shown is None:
            self.start = frame.time
        else:
            self._gaps.append(frame.time - self._shown.time)
            self._pick_until(frame.time)
        self._shown = frame
        if len(self._picked) == self._params.num_frames - 1 and self._due() <= frame.time + self._tolerance:
            self._pick(frame)
        return len(self._picked) == self._params.num_frames

    def finish(self) -> bool:
        """At the video's end, where the last frame is shown for its own duration."""
        if self._shown is not None:
            self._pick_until(self._shown.time + 1 / self._info.fps)
        return len(self._picked) == self._params.num_frames

    def clip(self, cut_score: float) -> Clip:
        gaps = [gap for gap in self._gaps if gap > 0] or [1 / self._info.fps]
        return Clip(np.stack(self._picked), self.start, cut_score, max(gaps) > UNEVEN * min(gaps), self._repeated)

    def _pick_until(self, time: float) -> None:
        while len(self._picked) < self._params.num_frames and self._due() < time - self._tolerance:
            assert self._shown is not None
            self._pick(self._shown)

    def _pick(self, frame: Frame) -> None:
        if frame is self._last_pick:
            self._repeated += 1
            self._picked.append(self._picked[-1])
        else:
            self._picked.append(crop_frame(frame, self._info, self._params.size))
        self._last_pick = frame

    def _due(self) -> float:
        return self.start + len(self._picked) * self._params.stride / self._info.fps

    @property
    def _tolerance(self) -> float:
        return TOLERANCE / self._info.fps


def crop_frame(frame: Frame, info: VideoInfo, size: int) -> Image:
    """The centre square of a frame at `size` pixels a side."""
    scale = size / min(info.width, info.height)
    width, height = (max(size, round(side * scale)) for side in (info.width, info.height))
    left, top = (width - size) // 2, (height - size) // 2
    return np.ascontiguousarray(frame.rgb(width, height)[top : top + size, left : left + size])


class _CutDetector:
    """scenedetect's ContentDetector on small frames; `score` is the largest content value below the threshold."""

    def __init__(self, info: VideoInfo, params: ClipParams):
        from scenedetect import FrameTimecode, StatsManager
        from scenedetect.detectors import ContentDetector

        self.score = 0.0
        self._timecode, self._fps, self._number = FrameTimecode, info.fps, 0
        self._size = (CUT_WIDTH, max(16, round(CUT_WIDTH * info.height / info.width)))
        # No least length of a shot: a window must be free of every cut.
        self._detector = ContentDetector(threshold=params.cut_threshold, min_scene_len=0)
        self._detector.stats_manager = StatsManager()

    def is_cut(self, frame: Frame) -> bool:
        timecode = self._timecode(self._number, self._fps)
        self._number += 1
        picture = np.ascontiguousarray(frame.rgb(*self._size)[..., ::-1])
        if self._detector.process_frame(timecode, picture):
            return True
        if self._number > 1:
            assert self._detector.stats_manager is not None
            [score] = self._detector.stats_manager.get_metrics(timecode, [CONTENT_SCORE])
            self.score = max(self.score, float(score))
        return False
