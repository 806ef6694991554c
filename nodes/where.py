"""Where it moves: from clicks on a picture, and a drawn mask, to the masks of the objects."""

from comfy_api.latest import io
from torch import Tensor

from ..followclick_core.segment import (
    ObjectMotion,
    clicks_to_json,
    clicks_to_pixel_json,
    feather_mask,
    gather_clicks,
    parse_motions,
)
from ..followclick_core.segment.clicks import EXCLUDE, INCLUDE
from ..followclick_core.shapes import Image
from .host import EMBEDDED, drawn_mask_of, image_to_array, masks_to_comfy, temporary_frame
from .host_segmenters import segmenter as shared_segmenter
from .host_segmenters import select
from .sockets import ClickedObject, ClicksWidget, HostedSegmenter, ObjectsSocket, SegmenterSocket

FORMS = (
    'The value is JSON, {"image_size": [640, 427], "clicks": [{"x": 0.5, "y": 0.4, "label": 1, "object": 1}]}: x and '
    "y go from 0 to 1 over the image; label 1 selects what is there, 0 excludes it; clicks with the same object number "
    'select one object together. Pixel lists of other packs, [{"x": 320, "y": 200}], are taken too.'
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
                SegmenterSocket.Input(
                    "segmenter",
                    optional=True,
                    tooltip="From Load Demo Model or Load Segmenter. Without one, the pack's own finds the objects.",
                ),
                ClicksWidget.Input("clicks", motion=True, tooltip=f"Click on the objects that should move. {FORMS}"),
                io.Int.Input("grow", default=0, min=-64, max=64, tooltip="Widens the mask by so many pixels."),
                io.Float.Input(
                    "feather", default=0.0, min=0.0, max=64.0, step=0.5, tooltip="Softness of the edge in pixels."
                ),
                io.Mask.Input(
                    "drawn_mask",
                    optional=True,
                    tooltip=(
                        "A mask drawn by hand, such as Load Image's from the MaskEditor. Object 1 begins with it: an "
                        "including click adds the object under it, an excluding one takes that object away. Of a "
                        "batch, the first mask."
                    ),
                ),
                io.String.Input(
                    "positive_points",
                    optional=True,
                    force_input=True,
                    tooltip='Points that object 1 includes, from other packs: [{"x": 320, "y": 200}], in pixels.',
                ),
                io.String.Input(
                    "negative_points",
                    optional=True,
                    force_input=True,
                    tooltip="Points that object 1 excludes, in the same form.",
                ),
            ],
            outputs=[
                io.Mask.Output(display_name="mask", tooltip="One mask per object; 1 moves."),
                io.String.Output(display_name="clicks", tooltip="The clicks as JSON, for other nodes."),
                ObjectsSocket.Output(
                    display_name="objects", tooltip="Each object with its motion prompt and magnitude: Motion Region."
                ),
                io.String.Output(
                    display_name="positive_points",
                    tooltip="The including clicks in pixels, as KJNodes, SAM 2 and SAM 3 nodes take them.",
                ),
                io.String.Output(display_name="negative_points", tooltip="The excluding clicks in pixels."),
                io.String.Output(
                    display_name="motion_prompt",
                    tooltip="The motion prompts of the objects, separated by commas, for CLIP Text Encode.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        image: Tensor,
        clicks: str,
        grow: int,
        feather: float,
        segmenter: HostedSegmenter | None = None,
        drawn_mask: Tensor | None = None,
        positive_points: str = "",
        negative_points: str = "",
    ) -> io.NodeOutput:
        picture = image_to_array(image)
        size = (picture.shape[1], picture.shape[0])
        gathered, motions = gather_clicks(clicks, size, positive_points, negative_points), parse_motions(clicks)
        found = select(segmenter or shared_segmenter(EMBEDDED), picture, gathered, drawn_mask_of(drawn_mask), grow)
        masks = masks_to_comfy([feather_mask(selection.mask, feather) for selection in found.values()])
        objects = clicked_objects(dict(zip(found, masks, strict=True)), motions)
        points = [clicks_to_pixel_json(gathered, size, label) for label in (INCLUDE, EXCLUDE)]
        texts = (*points, ", ".join(each.motion_prompt for each in objects if each.motion_prompt))
        return io.NodeOutput(
            masks, clicks_to_json(gathered, size, motions), objects, *texts, ui=temporary_frame(picture)
        )


def clicked_objects(masks: dict[int, Tensor], motions: dict[int, ObjectMotion]) -> tuple[ClickedObject, ...]:
    """The objects by ascending number, each with its mask and with what the editor says of its motion."""
    silent = ObjectMotion()
    said = {number: motions.get(number, silent) for number in masks}
    return tuple(
        ClickedObject(number, mask[None], said[number].motion_prompt, said[number].motion_magnitude)
        for number, mask in masks.items()
    )


def clicked_masks(picture: Image, segmenter: HostedSegmenter, clicks: str) -> list:
    """A mask for each object that the clicks, in any of their forms, select."""
    gathered = gather_clicks(clicks, (picture.shape[1], picture.shape[0]))
    return [selection.mask for selection in select(segmenter, picture, gathered).values()]
