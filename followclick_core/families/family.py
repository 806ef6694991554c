"""What sets one kind of motion model apart: one object per family, which everything else asks.

Sources: AnimateDiff (arXiv:2307.04725), PIA (arXiv:2312.13964), AnimateLCM (arXiv:2402.00769), and the code that the
authors of Follow-Your-Click released.
"""

from dataclasses import dataclass, replace

from torch import Tensor

from ..conditioning import first_frame_condition
from ..diffusion.schedule import ScheduleParams
from ..shapes import Masks, OtherVideo, Video
from .affinity import regional_affinity

EPSILON = ScheduleParams(zero_terminal_snr=False, prediction_type="epsilon")

# What the magnitude sets.
EMBEDDING, AFFINITY, START_NOISE = "embedding", "affinity", "start noise"


@dataclass(frozen=True)
class Family:
    """One kind of motion model.

    Args:
        name: In metadata and code.
        title: For people.
        schedule: Noise schedule and prediction type; a file of this pack names its own.
        layout: How the first frame is laid out over time (`conditioning.first_frame_condition`); None for a model that
            has no input for one, which starts from it instead (`start.py`). A file of this pack names its own.
        mid_block: Whether the middle of the UNet has a motion module; None where the file decides.
        positions: Frames for which the model knows positions; None for any number.
        stores_positions: Whether its files hold the positional encodings.
        joint_norms: Whether ResBlocks and the output normalise over all frames of a clip together. The spatial
            transformers and the motion modules normalise each frame by itself in every family.
        motion_attention: Whether motion modules attend to the motion prompt; where not, it joins the ordinary prompt.
        magnitude: What the motion magnitude sets: EMBEDDING, AFFINITY or START_NOISE.
        magnitude_in_pixels: Whether it counts pixels of the clip, so that a wider clip has a larger one.
        fps: What the frame-rate embedding is told unless somebody says otherwise; None for a model without one.
        own_spatial: Whether the files hold the weights of the whole UNet, which then replace those of the checkpoint.
        distilled_timesteps: Noise levels that a latent consistency model was distilled to; None for all others.
        steps: Its authors' number of steps. guidance: and guidance scale.
        mean_free_noise: Whether its clips start from noise without a mean over time (diffusion/noise.py).
        note: What a user should know beyond that, in a sentence.
    """

    name: str
    title: str
    schedule: ScheduleParams = EPSILON
    layout: str | None = None
    mid_block: bool | None = False
    positions: int | None = None
    stores_positions: bool = True
    joint_norms: bool = False
    motion_attention: bool = False
    magnitude: str = START_NOISE
    magnitude_in_pixels: bool = True
    fps: float | None = None
    own_spatial: bool = False
    distilled_timesteps: int | None = None
    steps: int = 25
    guidance: float = 7.5
    mean_free_noise: bool = False
    note: str = ""

    @property
    def takes_first_frame(self) -> bool:
        return self.layout is not None

    @property
    def follows_prediction(self) -> bool:
        """Whether the checkpoint decides what is predicted: spatial weights do, and most families have none."""
        return not self.own_spatial and not self.motion_attention

    def first_frame(self, latents: Tensor, mask: Masks, num_frames: int, layout: str | None = None) -> OtherVideo:
        """Region mask and first-frame latents over time, b 5 f h w.

        Args:
            latents: b 4 h w. mask: b 1 h w at any size, 1 moves.
            layout: The file's own; None takes the family's.

        Raises:
            ValueError: the family has no input for a first frame.
        """
        layout = layout or self.layout
        if layout is None:
            raise ValueError(f"{self.title} has no input for a first frame; start sampling from it instead.")
        return first_frame_condition(latents, mask, num_frames, layout)

    def channels(self, first_frame: Video, magnitude: Tensor | None, shares: Tensor | None = None) -> Video:
        """What the UNet's first convolution sees of a first-frame condition, b 5 f h w; see `regional_affinity`."""
        if self.magnitude != AFFINITY:
            return first_frame
        return regional_affinity(first_frame, magnitude, shares)

    def check_frames(self, num_frames: int) -> None:
        """
        Raises:
            ValueError: the model knows no positions for a clip of this length.
        """
        if self.positions is not None and num_frames > self.positions:
            raise ValueError(
                f"{self.title} knows the positions of {self.positions} frames, and {num_frames} are sampled together; "
                f"set the length to {self.positions} or less, or sample in context windows of at most that many."
            )

    def about(self) -> str:
        """What the model is and does with what the nodes ask of it, one line each."""
        prediction = "v" if self.schedule.prediction_type == "v_prediction" else "noise"
        terminal = ", zero terminal SNR" if self.schedule.zero_terminal_snr else ""
        follows = " (or as the checkpoint says)" if self.follows_prediction else ""
        frames = "a clip of any length" if self.positions is None else f"at most {self.positions} frames at a time"
        return "\n".join(
            line
            for line in (
                self.title,
                f"Predicts {prediction}{follows}{terminal}; beta schedule {self.schedule.beta_schedule}.",
                f"First frame: {_FIRST_FRAME[self.takes_first_frame]}",
                f"Motion prompt: {_PROMPT[self.motion_attention]}",
                f"Motion magnitude: {_MAGNITUDE[self.magnitude]}",
                f"Length: {frames}.",
                f"Its authors' settings: {self.steps} steps, cfg {self.guidance:g}.",
                self.note,
            )
            if line
        )


_FIRST_FRAME = {
    True: "goes into the UNet, with the region.",
    False: "sampling starts from it with noise on it, and what lies outside the region is held by the noise mask. What "
    "moves stays inside the region, so grow the mask for room to move; the model has not learned to keep the picture.",
}
_PROMPT = {
    True: "read by the motion modules and by the UNet.",
    False: "added to the ordinary prompt; the motion modules read no text.",
}
_MAGNITUDE = {
    EMBEDDING: "an input of the model.",
    AFFINITY: "how much the region may differ from the first frame (PIA's curves: 2 small, 6 medium, 16 large).",
    START_NOISE: "only the strength of the noise at the start: more departs further from the picture. It is no speed.",
}

FOLLOWCLICK = Family(
    "followclick",
    "Follow-Your-Click",
    schedule=ScheduleParams(),
    layout="repeat",
    mid_block=None,
    stores_positions=False,
    motion_attention=True,
    magnitude=EMBEDDING,
    mean_free_noise=True,
)

RELEASE = Family(
    "release",
    "Follow-Your-Click, the authors' release",
    schedule=ScheduleParams(),
    layout="release",
    positions=24,
    joint_norms=True,
    magnitude=EMBEDDING,
    magnitude_in_pixels=False,
    fps=2.0,
    own_spatial=True,
    steps=100,
    guidance=8.0,
    note="Its own UNet replaces the checkpoint's. The authors sample with leading timesteps, fps 2 and magnitude 4.",
)

PIA = Family(
    "pia", "PIA", layout="repeat", positions=32, joint_norms=True, magnitude=AFFINITY, magnitude_in_pixels=False
)

ANIMATEDIFF_V1 = Family("animatediff_v1", "AnimateDiff v1", positions=24, joint_norms=True)
ANIMATEDIFF_V2 = replace(
    ANIMATEDIFF_V1, name="animatediff_v2", title="AnimateDiff v2", positions=32, joint_norms=False, mid_block=True
)
ANIMATEDIFF_V3 = replace(ANIMATEDIFF_V2, name="animatediff_v3", title="AnimateDiff v3", mid_block=False)

ANIMATELCM = Family(
    "animatelcm",
    "AnimateLCM",
    mid_block=True,
    positions=64,
    stores_positions=False,
    distilled_timesteps=100,
    steps=4,
    guidance=1.5,
    note="Sample it with the lcm sampler, 4 to 8 steps, and its LoRA on the checkpoint.",
)

FAMILIES = (FOLLOWCLICK, RELEASE, PIA, ANIMATEDIFF_V1, ANIMATEDIFF_V2, ANIMATEDIFF_V3, ANIMATELCM)


def get_family(name: str) -> Family:
    """The family of that name.

    Raises:
        ValueError: there is none.
    """
    for family in FAMILIES:
        if family.name == name:
            return family
    known = ", ".join(family.name for family in FAMILIES)
    raise ValueError(f"There is no motion model family {name!r}; choose one of {known}.")
