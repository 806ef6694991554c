"""Where it moves: from a click on a picture to a mask."""

from comfy_api.latest import io
from torch import Tensor

from ..followclick_core.segment import clicks_to_json, feather_mask, grow_mask, parse_clicks, predict_masks
from ..followclick_core.shapes import Image, Mask
from .host import image_to_array, masks_to_comfy
from .host_weights import embed
from .sockets import HostedSegmenter, SegmenterSocket


def clicks_input() -> io.String.Input:
    return io.String.Input(
        "clicks",
        default="[]",
        multiline=True,
        tooltip=(
            "JSON list of clicks on the object. x and y go from 0 to 1 over the image; label 1 selects what is there, "
            "0 excludes it; clicks with the same object number select one object together: "
            '[{"x": 0.5, "y": 0.4, "label": 1, "object": 1}]. '
            'Pixel lists of other packs, [{"x": 320, "y": 200}], are taken too.'
        ),
    )


class ClickToMask(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FollowClick_ClickToMask",
            display_name="Click to Mask",
            category="FollowClick/where",
            description="Selects the object under your clicks. Only what is selected will move.",
            inputs=[
                io.Image.Input("image", tooltip="The photo. Of a batch, the first image."),
                SegmenterSocket.Input("segmenter", tooltip="From Load Demo Model or Load Segmenter."),
                clicks_input(),
                io.Int.Input("grow", default=0, min=-64, max=64, tooltip="Widens the mask by so many pixels."),
                io.Float.Input(
                    "feather", default=0.0, min=0.0, max=64.0, step=0.5, tooltip="Softness of the edge in pixels."
                ),
            ],
            outputs=[
                io.Mask.Output(display_name="mask", tooltip="One mask per object; 1 moves."),
                io.String.Output(display_name="clicks", tooltip="The clicks as JSON, for other nodes."),
            ],
        )

    @classmethod
    def execute(
        cls, image: Tensor, segmenter: HostedSegmenter, clicks: str, grow: int, feather: float
    ) -> io.NodeOutput:
        picture = image_to_array(image)
        masks = clicked_masks(picture, segmenter, clicks)
        finished = [feather_mask(grow_mask(mask, grow), feather) for mask in masks]
        return io.NodeOutput(masks_to_comfy(finished), clicks_as_json(clicks, picture))


def clicked_masks(picture: Image, segmenter: HostedSegmenter, clicks: str) -> list[Mask]:
    """A mask for each object that the clicks, in any of their forms, select."""
    parsed = parse_clicks(clicks, (picture.shape[1], picture.shape[0]))
    return list(predict_masks(segmenter.segmenter, embed(segmenter, picture), parsed).values())


def clicks_as_json(clicks: str, picture: Image) -> str:
    """The same clicks in the pack's own form, which names the picture's size."""
    size = (picture.shape[1], picture.shape[0])
    return clicks_to_json(parse_clicks(clicks, size), size)
