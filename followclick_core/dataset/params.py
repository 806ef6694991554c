"""What a build can be told, in frozen dataclasses that are saved with it as build.json."""

from dataclasses import asdict, dataclass, field

from ..flow.motion_mask import DEFAULT_FLOOR_PX, RULES

DECODERS = ("pyav", "torchcodec")


@dataclass(frozen=True)
class ClipParams:
    """How clips are taken from a video (paper section 5.1: 16 frames at stride 4, 512x512).

    Args:
        stride: In frames of the video's average rate. Clips are sampled by time, so a video of variable frame rate
            moves at its true speed.
        clips_per_video: At most so many, spread evenly over the video.
        cut_threshold: scenedetect's content value (mean change of hue, saturation and brightness, 0..255) between
            neighbouring frames that counts as a cut.
        jpeg_quality: Of the stored frames, without chroma subsampling.
        decoder: One of DECODERS. torchcodec does not tell of damage that FFmpeg patched up, so such frames would count
            as good.
    """

    num_frames: int = 16
    stride: int = 4
    size: int = 512
    clips_per_video: int = 4
    cut_threshold: float = 27.0
    jpeg_quality: int = 95
    decoder: str = "pyav"

    def __post_init__(self):
        _require(2 <= self.num_frames <= 256, f"A clip has 2 to 256 frames, not {self.num_frames}.")
        _require(self.stride >= 1, f"The stride is 1 or more, not {self.stride}.")
        _require(
            64 <= self.size <= 2048 and self.size % 8 == 0,
            f"The size is a multiple of 8 from 64 to 2048 px, not {self.size}.",
        )
        _require(self.clips_per_video >= 1, f"Clips per video are 1 or more, not {self.clips_per_video}.")
        _require(self.cut_threshold > 0, f"The cut threshold is above 0, not {self.cut_threshold:g}.")
        _require(
            self.decoder in DECODERS, f"There is no decoder {self.decoder!r}; choose one of {', '.join(DECODERS)}."
        )
        _require(50 <= self.jpeg_quality <= 100, f"The JPEG quality is 50 to 100, not {self.jpeg_quality}.")


@dataclass(frozen=True)
class MotionParams:
    """How motion is measured. Floors are in pixels per frame at 512 px of width, so that they fit every size.

    Args:
        raft: A weights file of torchvision's RAFT; None measures by DIS.
        mask_rule: Whose mask and magnitude a sample carries as its own; all rules are measured and stored.
    """

    raft: str | None = None
    device: str = "cpu"
    floor: float = DEFAULT_FLOOR_PX
    subtract_median: bool = True
    mask_rule: str = "followed"

    def __post_init__(self):
        _require(
            self.device == "cpu" or self.device.startswith("cuda"),
            f"Workers measure on cpu or cuda, not on {self.device!r}.",
        )
        _require(self.floor >= 0, f"The floor is 0 px or more, not {self.floor:g}.")
        _require(
            self.mask_rule in RULES, f"There is no mask rule {self.mask_rule!r}; choose one of {', '.join(RULES)}."
        )


@dataclass(frozen=True)
class Thresholds:
    """Which clips are left out. Speeds in px/frame at 512 px of width, shares and brightness 0..1, sides in pixels."""

    min_area: float = 0.002  # of the frame; below it nothing moves: static
    max_area: float = 0.7  # above it everything moves: camera, crowd, water up to the edges
    max_camera: float = 1.5  # median flow: a pan or tilt
    max_border: float = 2.5  # flow along the frame's border: zoom, rotation, walking camera
    min_brightness: float = 0.08  # of the darkest frame
    min_magnitude: float = 1.0
    max_magnitude: float = 32.0
    min_side: int = 128  # of the video; smaller ones would be blown up

    def __post_init__(self):
        for name, value in asdict(self).items():
            _require(value >= 0, f"The threshold {name} is 0 or more, not {value:g}.")


@dataclass(frozen=True)
class CaptionParams:
    """Where short motion captions come from.

    Args:
        endpoint: Base URL of an OpenAI-compatible API; None uses the rules (rules.py) alone.
        key_variable: Environment variable that holds the key; the key itself is never stored.
        token_budget: Of prompts and answers together, over all runs that share the cache; None: no limit.
        attempts: Malformed answers to one caption before it is put in quarantine.
        retries: Of one request, with growing waits, while the endpoint answers 408, 409, 429, 5xx or not at all.
    """

    endpoint: str | None = None
    model: str | None = None
    key_variable: str = "OPENAI_API_KEY"
    cache: str | None = None
    concurrency: int = 16
    token_budget: int | None = None
    attempts: int = 3
    retries: int = 5
    timeout: float = 60.0

    def __post_init__(self):
        _require(
            (self.endpoint is None) == (self.model is None),
            "An endpoint needs a model and a model an endpoint; give both --endpoint and --caption-model, or neither.",
        )
        _require(self.concurrency >= 1, f"The concurrency is 1 or more, not {self.concurrency}.")
        _require(
            self.token_budget is None or self.token_budget >= 0,
            f"The token budget is 0 or more, not {self.token_budget}.",
        )


@dataclass(frozen=True)
class RunParams:
    """Where the work runs; says nothing about the result."""

    workers: int = 2
    address: str | None = None
    gpus_per_worker: float = 0.0
    videos_per_part: int = 64

    def __post_init__(self):
        _require(self.workers >= 1, f"Workers are 1 or more, not {self.workers}.")
        _require(self.videos_per_part >= 1, f"Videos per part are 1 or more, not {self.videos_per_part}.")


@dataclass(frozen=True)
class BuildParams:
    """One build: what is done, and by how many."""

    clips: ClipParams = field(default_factory=ClipParams)
    motion: MotionParams = field(default_factory=MotionParams)
    thresholds: Thresholds = field(default_factory=Thresholds)
    captions: CaptionParams = field(default_factory=CaptionParams)
    latents: str | None = None  # a folder of weights; None stores neither latents nor text embeddings
    run: RunParams = field(default_factory=RunParams)


def _require(condition: bool, sentence: str) -> None:
    if not condition:
        raise ValueError(sentence)
