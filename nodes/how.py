"""How it moves: the motion prompt, the magnitude, and the first frame from which the clip sets out."""

from comfy_api.latest import io
from torch import Tensor

from ..followclick_core.animator import MAX_FRAMES, MAX_MAGNITUDE, check_request
from ..followclick_core.regions import REGION_MODES, check_region_mode
from .host import one_mask
from .host_models import encode_text
from .host_motion import first_frame_conditioning, magnitude_points, with_motion
from .host_windows import with_context_windows
from .sockets import (
    ClickedObject,
    ClickedObjects,
    HostedMotionModel,
    MotionModelSocket,
    ObjectsSocket,
    Region,
    Regions,
    RegionsSocket,
)


def prompt_input() -> io.String.Input:
    return io.String.Input(
        "motion_prompt",
        default="jump",
        tooltip='What it does, as a short verb phrase such as "run", "flap the wings" or "move left".',
    )


def magnitude_input() -> io.Float.Input:
    return io.Float.Input(
        "motion_magnitude",
        default=6.0,
        min=0.0,
        max=MAX_MAGNITUDE,
        step=0.5,
        tooltip="How strongly: pixels per frame at 512 pixels of width. 2 is a tremble, 6 moderate, 16 fast.",
    )


def length_input() -> io.Int.Input:
    return io.Int.Input(
        "length",
        default=16,
        min=1,
        max=MAX_FRAMES,
        tooltip=(
            "Frames of the clip. The models are trained on 16; longer clips need Context Windows, which Animate Region "
            "uses by itself."
        ),
    )


class MotionRegion(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FollowClick_MotionRegion",
            display_name="Motion Region",
            category="FollowClick/how",
            description="What the selected region does, and how strongly. Chain several for several objects.",
            inputs=[
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="The region, from Click to Mask or drawn; several masks count as one.",
                ),
                io.Clip.Input("clip", tooltip="The text encoder of the model."),
                prompt_input(),
                magnitude_input(),
                RegionsSocket.Input(
                    "regions", optional=True, tooltip="Regions that move as well, from another Motion Region."
                ),
                ObjectsSocket.Input(
                    "objects",
                    optional=True,
                    tooltip=(
                        "From Click to Mask: a region for each object, with the motion prompt and the magnitude that "
                        "the click editor says. Where it says none, those of this node count."
                    ),
                ),
            ],
            outputs=[RegionsSocket.Output(display_name="regions", tooltip="All regions so far, for First Frame.")],
        )

    @classmethod
    def execute(
        cls,
        clip: io.Clip.Type,
        motion_prompt: str,
        motion_magnitude: float,
        mask: Tensor | None = None,
        regions: Regions = (),
        objects: ClickedObjects = (),
    ) -> io.NodeOutput:
        asked = [] if mask is None else [(mask, motion_prompt, motion_magnitude)]
        asked += [motion_of(each, motion_prompt, motion_magnitude) for each in objects or ()]
        if not asked:
            raise ValueError("Nothing says where it moves; connect mask or objects from Click to Mask.")
        return io.NodeOutput((*(regions or ()), *(region(clip, *each) for each in asked)))


def motion_of(clicked: ClickedObject, prompt: str, magnitude: float) -> tuple[Tensor, str, float]:
    """Where and how the object moves: as the editor says, or by this prompt and magnitude where it does not."""
    own = clicked.motion_magnitude
    return clicked.mask, clicked.motion_prompt.strip() or prompt, magnitude if own is None else own


def region(clip: io.Clip.Type, mask: Tensor, prompt: str, magnitude: float) -> Region:
    """A part of the picture that moves, with its prompt embedded.

    Raises:
        ValueError: The mask or the prompt is empty, or the magnitude makes no sense.
    """
    check_request(prompt, magnitude, num_frames=1, steps=1, guidance_scale=1)
    context, empty_context = encode_text(clip, prompt.strip()), encode_text(clip, "")
    return Region(one_mask(mask), prompt, context, empty_context, magnitude)


class FirstFrame(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FollowClick_FirstFrame",
            display_name="First Frame",
            category="FollowClick/how",
            description=(
                "The clip sets out from this image. It is scaled to the size that the model learned at, and put into "
                "both conditionings, with the regions and their motion."
            ),
            inputs=[
                io.Conditioning.Input(
                    "positive",
                    tooltip=(
                        "What the clip shows. Where it is empty, or a motion prompt as for the demo model, each region "
                        "gets its own motion prompt."
                    ),
                ),
                io.Conditioning.Input("negative", tooltip="What it should not show; may be empty."),
                io.Vae.Input("vae", tooltip="The autoencoder of the model."),
                io.Image.Input("image", tooltip="The photo. Of a batch, the first image."),
                RegionsSocket.Input("regions", tooltip="What moves and how, from Motion Region."),
                MotionModelSocket.Input("motion_model", tooltip="The one that Apply Motion Model gets."),
                length_input(),
                io.Combo.Input(
                    "region_mode",
                    options=list(REGION_MODES),
                    default=REGION_MODES[0],
                    optional=True,
                    tooltip=(
                        "Of several regions. blended: one pass, in which prompts and magnitudes are mixed by region, "
                        "at about the price of one region. separate: a pass for each region."
                    ),
                ),
            ],
            outputs=[
                io.Conditioning.Output(display_name="positive"),
                io.Conditioning.Output(display_name="negative"),
                io.Latent.Output(
                    display_name="latent",
                    tooltip=(
                        "A latent per frame, of the clip's size: empty, or for AnimateDiff and AnimateLCM the picture, "
                        "with a noise mask that holds what should not move."
                    ),
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        positive: io.Conditioning.Type,
        negative: io.Conditioning.Type,
        vae: io.Vae.Type,
        image: Tensor,
        regions: Regions,
        motion_model: HostedMotionModel,
        length: int,
        region_mode: str = REGION_MODES[0],
    ) -> io.NodeOutput:
        check_region_mode(region_mode)
        inputs = (positive, negative, vae, image, regions, motion_model, length, region_mode)
        return io.NodeOutput(*first_frame_conditioning(*inputs))


class ContextWindows(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FollowClick_ContextWindows",
            display_name="Context Windows",
            category="FollowClick/how",
            description=(
                "Clips of any length: they are sampled in overlapping windows, each of which continues from the one "
                "before. It can also make the last frame run into the first, so that the clip loops."
            ),
            inputs=[
                io.Model.Input("model", tooltip="From Apply Motion Model, or before it."),
                io.Int.Input(
                    "context_length",
                    default=16,
                    min=2,
                    max=MAX_FRAMES,
                    tooltip="Frames of a window: what the motion model was trained on, mostly 16.",
                ),
                io.Int.Input(
                    "context_overlap",
                    default=4,
                    min=1,
                    max=MAX_FRAMES,
                    tooltip="Frames that neighbouring windows share at least. More is smoother, and takes longer.",
                ),
                io.Boolean.Input(
                    "loop",
                    default=False,
                    tooltip="The last frame runs into the first. Best for what comes back: shake, sway, wave, flap.",
                ),
            ],
            outputs=[io.Model.Output(display_name="model")],
        )

    @classmethod
    def execute(cls, model: io.Model.Type, context_length: int, context_overlap: int, loop: bool) -> io.NodeOutput:
        return io.NodeOutput(with_context_windows(model, context_length, context_overlap, loop))


class FlowMagnitude(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FollowClick_FlowMagnitude",
            display_name="Flow Magnitude",
            category="FollowClick/how",
            description=(
                "Sets how strongly the clip moves, instead of what its regions say. Use it on both conditionings."
            ),
            inputs=[
                io.Conditioning.Input("conditioning", tooltip="From First Frame."),
                magnitude_input(),
                io.String.Input(
                    "curve",
                    default="",
                    optional=True,
                    tooltip="Magnitudes spread over the clip, separated by commas (0, 8, 2); replaces the number.",
                ),
            ],
            outputs=[io.Conditioning.Output(display_name="conditioning")],
        )

    @classmethod
    def execute(cls, conditioning: io.Conditioning.Type, motion_magnitude: float, curve: str = "") -> io.NodeOutput:
        points = magnitude_points(motion_magnitude, curve)
        return io.NodeOutput(with_motion(conditioning, magnitude=points))
