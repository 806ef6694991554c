"""Loader nodes: the demo model, motion models and segmenters, and a picture to start with."""

from comfy_api.latest import io

from .host import (
    EMBEDDED,
    LORA_FOLDERS,
    MOTION_FOLDERS,
    SEGMENTER_FOLDERS,
    example_picture,
    example_pictures,
    files_in,
    weight_files,
)
from .host_segmenters import segmenter
from .host_weights import demo_clip, demo_model, demo_vae, motion_model, with_motion_lora
from .sockets import HostedMotionModel, MotionModelSocket, SegmenterSocket


class LoadDemoModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FollowClick_LoadDemoModel",
            display_name="Load Demo Model",
            category="FollowClick/loaders",
            description=(
                "The small model that comes with the pack, trained on generated clips: all that is needed to animate a "
                "photo, with nothing to download. Stock nodes (KSampler, CLIPTextEncode, VAEDecode) take its outputs."
            ),
            inputs=[],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The image model, for Apply Motion Model."),
                io.Clip.Output(display_name="clip", tooltip="Its text encoder."),
                io.Vae.Output(display_name="vae", tooltip="Its autoencoder."),
                MotionModelSocket.Output(display_name="motion_model", tooltip="What makes a clip of pictures."),
                SegmenterSocket.Output(display_name="segmenter", tooltip="Finds the object under a click."),
            ],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput(demo_model(), demo_clip(), demo_vae(), motion_model(EMBEDDED), segmenter(EMBEDDED))


class ExamplePhoto(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FollowClick_ExamplePhoto",
            display_name="Example Photo",
            category="FollowClick/loaders",
            description="A photo that comes with the pack, to start with. For your own, put Load Image in its place.",
            inputs=[
                io.Combo.Input(
                    "picture",
                    options=list(example_pictures()),
                    tooltip="rocket: a Falcon 9 at night, SpaceX. saucer_and_rocket: two objects, for two motions.",
                )
            ],
            outputs=[io.Image.Output(display_name="image")],
        )

    @classmethod
    def execute(cls, picture: str) -> io.NodeOutput:
        return io.NodeOutput(example_picture(picture))


class LoadMotionModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FollowClick_LoadMotionModel",
            display_name="Load Motion Model",
            category="FollowClick/loaders",
            description=(
                "A motion model for a checkpoint that you load with Load Checkpoint. The file itself tells what it is: "
                "this pack's, the authors' release, PIA, AnimateDiff v1, v2 or v3, AnimateLCM."
            ),
            inputs=[
                io.Combo.Input(
                    "name",
                    options=weight_files(MOTION_FOLDERS),
                    tooltip=(
                        f"{EMBEDDED} comes with the pack and fits its demo model only. "
                        "Others lie in models/followclick or models/animatediff_models."
                    ),
                ),
                io.Float.Input(
                    "fps",
                    default=2.0,
                    min=0.1,
                    max=60.0,
                    step=0.1,
                    optional=True,
                    tooltip="Frames per second that the authors' release is told; other models have no such input.",
                ),
            ],
            outputs=[
                MotionModelSocket.Output(display_name="motion_model"),
                io.String.Output(
                    display_name="about",
                    tooltip="Its family, and what the first frame, the motion prompt and the magnitude do in it.",
                ),
            ],
        )

    @classmethod
    def execute(cls, name: str, fps: float = 2.0) -> io.NodeOutput:
        loaded = motion_model(name, fps)
        return io.NodeOutput(loaded, loaded.about)


class LoadMotionLora(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FollowClick_LoadMotionLora",
            display_name="Load Motion LoRA",
            category="FollowClick/loaders",
            description="Adds a motion LoRA, such as AnimateDiff's camera moves, to a motion model. Chain several.",
            inputs=[
                MotionModelSocket.Input("motion_model", tooltip="The one that the LoRA was trained on."),
                io.Combo.Input(
                    "name", options=files_in(LORA_FOLDERS), tooltip="Files in models/animatediff_motion_lora."
                ),
                io.Float.Input(
                    "strength", default=1.0, min=-10.0, max=10.0, step=0.01, tooltip="1 as trained, 0 nothing."
                ),
            ],
            outputs=[MotionModelSocket.Output(display_name="motion_model")],
        )

    @classmethod
    def execute(cls, motion_model: HostedMotionModel, name: str, strength: float) -> io.NodeOutput:
        return io.NodeOutput(with_motion_lora(motion_model, name, strength))


class LoadSegmenter(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FollowClick_LoadSegmenter",
            display_name="Load Segmenter",
            category="FollowClick/loaders",
            description="The model that finds the object under a click: Segment Anything.",
            inputs=[
                io.Combo.Input(
                    "name",
                    options=weight_files(SEGMENTER_FOLDERS),
                    tooltip=f"{EMBEDDED} comes with the pack. SAM ViT-B, ViT-L and ViT-H files lie in models/sams.",
                )
            ],
            outputs=[SegmenterSocket.Output(display_name="segmenter")],
        )

    @classmethod
    def execute(cls, name: str) -> io.NodeOutput:
        return io.NodeOutput(segmenter(name))
