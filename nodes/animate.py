"""Nodes that sample: the motion model in the host's samplers, and the simple path in one node."""

import numpy as np
from comfy_api.latest import io
from torch import Tensor

from ..followclick_core.animator import check_request
from ..followclick_core.defaults import GUIDANCE_SCALE
from ..followclick_core.diffusion.schedule import SPACINGS
from .host import (
    frames_to_image,
    host_progress,
    image_to_array,
    load_on_device,
    masks_to_comfy,
    temporary_frame,
)
from .host_models import spaced_sigmas
from .host_motion import apply_motion_model
from .host_weights import demo_animator
from .how import length_input, magnitude_input, prompt_input
from .sockets import ClicksWidget, HostedMotionModel, MotionModelSocket
from .where import FORMS, clicked_masks


def steps_input() -> io.Int.Input:
    return io.Int.Input("steps", default=25, min=1, max=1000, tooltip="Sampling steps; 25 is usual.")


class ApplyMotionModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FollowClick_ApplyMotionModel",
            display_name="Apply Motion Model",
            category="FollowClick/animate",
            description=(
                "Makes any sampler sample clips with this MODEL. LoRA, ControlNet, FreeU and others combine with it as "
                "usual; the MODEL that comes in stays as it is."
            ),
            inputs=[
                io.Model.Input("model", tooltip="The checkpoint that the motion model was trained for."),
                MotionModelSocket.Input("motion_model", tooltip="From Load Demo Model or Load Motion Model."),
            ],
            outputs=[
                io.Model.Output(
                    display_name="model",
                    tooltip="For KSampler with the scheduler 'simple', or SamplerCustom with Motion Schedule.",
                )
            ],
        )

    @classmethod
    def execute(cls, model: io.Model.Type, motion_model: HostedMotionModel) -> io.NodeOutput:
        return io.NodeOutput(apply_motion_model(model, motion_model))


class MotionSchedule(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FollowClick_MotionSchedule",
            display_name="Motion Schedule",
            category="FollowClick/animate",
            description=(
                "Noise levels for SamplerCustom that begin at the last timestep, pure noise, as these models need. "
                "KSampler's scheduler 'simple' gives the same, to a timestep."
            ),
            inputs=[
                io.Model.Input("model", tooltip="The MODEL from Apply Motion Model."),
                steps_input(),
                io.Combo.Input(
                    "spacing",
                    options=list(SPACINGS),
                    default="trailing",
                    optional=True,
                    tooltip="trailing begins at pure noise; leading stops short of it, as the authors' code does.",
                ),
            ],
            outputs=[io.Sigmas.Output(display_name="sigmas")],
        )

    @classmethod
    def execute(cls, model: io.Model.Type, steps: int, spacing: str = "trailing") -> io.NodeOutput:
        return io.NodeOutput(spaced_sigmas(model, steps, spacing))


class AnimateRegion(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FollowClick_AnimateRegion",
            display_name="Animate Region",
            category="FollowClick",
            description=(
                "The simple path in one node: click on an object, say what it does, get a clip in which only it moves. "
                "Uses the demo model that comes with the pack."
            ),
            inputs=[
                io.Image.Input("image", tooltip="The photo. Of a batch, the first image."),
                ClicksWidget.Input("clicks", motion=False, tooltip=f"Click on the object that should move. {FORMS}"),
                prompt_input(),
                magnitude_input(),
                length_input(),
                steps_input(),
                io.Float.Input(
                    "cfg",
                    default=GUIDANCE_SCALE,
                    min=1.0,
                    max=100.0,
                    step=0.5,
                    tooltip="How closely to follow the motion prompt, from a tenth to seven tenths of the sampling.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="The same seed gives the same clip.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="frames", tooltip="The clip, for Create Video at 8 frames per second."),
                io.Mask.Output(display_name="mask", tooltip="What was selected, at the size of the clip."),
            ],
        )

    @classmethod
    def execute(
        cls,
        image: Tensor,
        clicks: str,
        motion_prompt: str,
        motion_magnitude: float,
        length: int,
        steps: int,
        cfg: float,
        seed: int,
    ) -> io.NodeOutput:
        check_request(motion_prompt, motion_magnitude, length, steps, cfg)
        demo, picture = demo_animator(), image_to_array(image)
        mask = np.any(clicked_masks(picture, demo.segmenter, clicks), axis=0)
        load_on_device(demo.patcher)
        clip = demo.animator.animate_mask(
            picture,
            mask,
            motion_prompt,
            motion_magnitude,
            length,
            steps,
            cfg,
            seed,
            host_progress(),
        )
        return io.NodeOutput(frames_to_image(clip.frames), masks_to_comfy([clip.mask]), ui=temporary_frame(picture))
