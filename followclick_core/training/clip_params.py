"""What training on shards can be told: frozen dataclasses that are saved with the run."""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..diffusion.schedule import PREDICTION_TYPES, ScheduleParams
from ..models.motion_model import LAYOUTS
from ..presets import PRESETS
from .loop import LoopParams

CAPTIONS, MOTION_CAPTIONS = TEXTS = ("captions", "motion-captions")
PRECISIONS = ("no", "bf16")


def _one_of(what: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"There is no {what} {value!r} for training on shards; choose one of {', '.join(known)}.")


@dataclass(frozen=True)
class MaskRatio:
    """Which share of the first frame's latents is set to zero (paper section 4.1), sample by sample.

    Args:
        kind: "fixed" always takes the one value, "list" one of the values, "uniform" any between the two.
    """

    kind: str = "fixed"
    values: tuple[float, ...] = (0.7,)

    def __post_init__(self) -> None:
        counts = {"fixed": len(self.values) == 1, "list": len(self.values) > 1, "uniform": len(self.values) == 2}
        within = all(0 <= value <= 1 for value in self.values)
        if not counts.get(self.kind) or not within or (self.kind == "uniform" and self.values[0] > self.values[1]):
            raise ValueError(
                f"The mask ratio {self} cannot be; give a share such as 0.7, a list such as 0,0.3,0.5,0.7, "
                "or uniform:0,0.9, all from 0 to 1."
            )

    @staticmethod
    def parse(text: str) -> "MaskRatio":
        """ "0.7", "0,0.3,0.5,0.7" or "uniform:0,0.9"."""
        name, _, numbers = text.rpartition(":")
        try:
            values = tuple(float(part) for part in numbers.split(","))
        except ValueError:
            values = ()
        return MaskRatio(name or ("fixed" if len(values) == 1 else "list"), values)

    def __str__(self) -> str:
        numbers = ",".join(f"{value:g}" for value in self.values)
        return f"uniform:{numbers}" if self.kind == "uniform" else numbers

    def draw(self, generator: torch.Generator) -> Tensor:
        """One sample's ratio."""
        draw = torch.rand((), generator=generator)
        if self.kind == "uniform":
            return self.values[0] + (self.values[1] - self.values[0]) * draw
        return torch.tensor(self.values)[int(draw * len(self.values))]


@dataclass(frozen=True)
class ClipTrainParams:
    """One stage of training on shards: what is learned, from what, and how.

    Args:
        text: Which text the model reads: the "captions" of the clips, or their short "motion-captions".
        trainable: A named set of weights, see trainable.py.
        lora_rank: Of the sets with a LoRA.
        batch_size: Clips per step, over all ranks and accumulated micro-batches.
        micro_batch: Clips that are in memory at once on a rank.
        size, num_frames: Of a clip: its side in pixels, and its length.
        layout: How the first frame is laid out over time, see `conditioning.first_frame_condition`.
        prediction: "v_prediction" with zero terminal SNR, or "epsilon" without, as Stable Diffusion 1.5 was trained.
        mask_ratio: Of the first frame's latents.
        text_dropout: Share of the samples without a text, for classifier-free guidance.
        word_dropout: Share of the words replaced by the unknown one, where the text encoder is trained.
        condition_dropout: Share of the samples without mask and first frame: the five extra channels are zero.
        still_share: Share of the samples that are an image as a video: one frame held, no region, magnitude 0, the
            caption as text. They teach that what is outside a mask stands still.
        noise_offset: Standard deviation of a constant per clip and channel that is added to the noise, so that a clip's
            mean cannot be read off x_t. A remedy against leaking the condition image, as is the next.
        condition_noise: Standard deviation, at the last timestep, of noise on the first frame's latents; it grows with
            the timestep (Zhao et al. 2024, arXiv:2406.15735, "TimeNoise"): where x_t tells least, the condition is
            least to be copied.
        region_weight: Extra weight of the loss in the region that the motion sweeps; the paper has none.
        stored_latents: Take latents from the shards, instead of encoding their frames at every step.
        precision: "no" or "bf16".
        gradient_checkpointing: Compute activations twice to store few of them.
        validation_clips: Clips that are held out and animated at every validation.
    """

    loop: LoopParams
    text: str = CAPTIONS
    trainable: str = "paper"
    lora_rank: int = 16
    batch_size: int = 32
    micro_batch: int = 1
    size: int = 512
    num_frames: int = 16
    layout: str = "repeat"
    prediction: str = "v_prediction"
    mask_ratio: MaskRatio = field(default_factory=MaskRatio)
    text_dropout: float = 0.1
    word_dropout: float = 0.0
    condition_dropout: float = 0.0
    still_share: float = 0.0
    noise_offset: float = 0.0
    condition_noise: float = 0.0
    region_weight: float = 0.0
    stored_latents: bool = False
    precision: str = "no"
    gradient_checkpointing: bool = False
    seed: int = 0
    validation_clips: int = 4
    validation_every: int = 1000
    validation_steps: int = 25

    def __post_init__(self) -> None:
        _one_of("text", self.text, TEXTS)
        _one_of("layout", self.layout, LAYOUTS)
        _one_of("prediction", self.prediction, PREDICTION_TYPES)
        _one_of("precision", self.precision, PRECISIONS)
        for name in ("text_dropout", "word_dropout", "condition_dropout", "still_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name):g}; give a share from 0 to 1.")
        for name in ("noise_offset", "condition_noise", "region_weight"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name):g}; give 0 or more.")
        if self.size < 64 or self.size % 64 or self.num_frames < 2:
            raise ValueError(
                f"Clips of {self.num_frames} frames of {self.size} px cannot be trained on; give a --size that is a "
                "multiple of 64, and 2 frames or more."
            )
        if self.batch_size < 1 or self.micro_batch < 1 or self.batch_size % self.micro_batch:
            raise ValueError(
                f"A batch of {self.batch_size} clips cannot be cut into micro-batches of {self.micro_batch}; "
                "give a batch that is a multiple of it."
            )

    @property
    def schedule(self) -> ScheduleParams:
        velocity = self.prediction == "v_prediction"
        return ScheduleParams(prediction_type=self.prediction, zero_terminal_snr=velocity)

    def accumulation(self, ranks: int) -> int:
        """Micro-batches per rank and step.

        Raises:
            ValueError: The batch cannot be shared out among so many ranks.
        """
        if self.batch_size % (ranks * self.micro_batch):
            raise ValueError(
                f"A batch of {self.batch_size} clips cannot be shared among {ranks} processes in micro-batches of "
                f"{self.micro_batch}; give --batch a multiple of {ranks * self.micro_batch}."
            )
        return self.batch_size // (ranks * self.micro_batch)


# Section 5.1 of the paper: 60,000 steps on captions, then 30,000 on motion captions, a batch of 32, a rate of 1e-4.
# It says neither of warm-up nor of decay: the rate is constant after a few steps that let AdamW's averages fill.
_PAPER = LoopParams(
    60_000, 1e-4, warmup=100, decay_from=1.0, ema_decay=0.9995, log_every=20, checkpoint_every=500, beta_2=0.999
)
_SMALL = replace(_PAPER, steps=6_000, learning_rate=5e-4, ema_decay=0.999, checkpoint_every=200)

CLIP_TRAINING = {
    "sd15": {
        CAPTIONS: ClipTrainParams(_PAPER, CAPTIONS, precision="bf16", gradient_checkpointing=True),
        MOTION_CAPTIONS: ClipTrainParams(
            replace(_PAPER, steps=30_000), MOTION_CAPTIONS, precision="bf16", gradient_checkpointing=True
        ),
    },
    **{
        name: {
            text: ClipTrainParams(
                replace(_SMALL, steps=steps),
                text,
                "all",
                batch_size=8,
                micro_batch=micro,
                size=PRESETS[name].size,
                word_dropout=0.03,
            )
            for text, steps in ((CAPTIONS, 6_000), (MOTION_CAPTIONS, 3_000))
        }
        for name, micro in (("demo", 2), ("small", 4), ("nano", 4))
    },
}


def clip_training(preset: str, text: str) -> ClipTrainParams:
    """The defaults of one stage; ValueError with the known names for another."""
    _one_of("stage", text, TEXTS)
    return CLIP_TRAINING[preset][text]
