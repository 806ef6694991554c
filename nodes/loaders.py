"""Loader nodes: the demo model, motion models and segmenters, and a picture to start with."""

from comfy_api.latest import io

from .host import EMBEDDED, MOTION_FOLDERS, SEGMENTER_FOLDERS, example_picture, example_pictures, weight_files
from .host_segmenters import segmenter
from .host_weights import demo_clip, demo_model, demo_vae, motion_model
from .sockets import MotionModelSocket, SegmenterSocket


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
                    "picture", options=list(example_pictures()), tooltip="rocket: a Falcon 9 at night, SpaceX."
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
            description="A motion model for a checkpoint that you load with Load Checkpoint.",
            inputs=[
                io.Combo.Input(
                    "name",
                    options=weight_files(MOTION_FOLDERS),
                    tooltip=(
                        f"{EMBEDDED} comes with the pack and fits its demo model only. "
                        "Others are those that this pack's training wrote, in models/followclick or "
                        "models/animatediff_models; AnimateDiff's own files are refused."
                    ),
                )
            ],
            outputs=[MotionModelSocket.Output(display_name="motion_model")],
        )

    @classmethod
    def execute(cls, name: str) -> io.NodeOutput:
        return io.NodeOutput(motion_model(name))


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
