"""After the clip: what moved is measured, the rest is the photo's own, a crop returns to its photo."""

from comfy_api.latest import io
from torch import Tensor

from ..followclick_core.finish import MAX_CONTEXT, Place, crop_region, lock_background, stitch_region
from ..followclick_core.flow import measure_motion
from ..followclick_core.flow.plot import plot_motion
from .host import (
    fitted_mask,
    fitted_picture,
    frames_to_image,
    image_to_array,
    image_to_frames,
    masks_to_comfy,
    whole_mask,
)
from .sockets import PlaceSocket


def frames_input() -> io.Image.Input:
    return io.Image.Input("frames", tooltip="The clip, as an image per frame.")


class MeasureMotion(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FollowClick_MeasureMotion",
            display_name="Measure Motion",
            category="FollowClick/finish",
            description="How far the selected object moves in a clip, and how far all the rest, by optical flow.",
            inputs=[
                frames_input(),
                io.Mask.Input("mask", tooltip="The object in the first frame; scaled to the clip."),
            ],
            outputs=[
                io.Float.Output(
                    display_name="magnitude", tooltip="Of the object, pixels per frame at 512 pixels of width."
                ),
                io.Float.Output(display_name="leak", tooltip="The same of what should stand still."),
                io.Image.Output(display_name="plot", tooltip="Both, frame by frame."),
            ],
        )

    @classmethod
    def execute(cls, frames: Tensor, mask: Tensor) -> io.NodeOutput:
        clip = image_to_frames(frames)
        report = measure_motion(clip, fitted_mask(mask, clip))
        return io.NodeOutput(report.inside, report.outside, frames_to_image(plot_motion(report)[None]))


class LockBackground(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FollowClick_LockBackground",
            display_name="Lock Background",
            category="FollowClick/finish",
            description=(
                "Puts the photo's own pixels wherever the object never comes, so that the rest stands perfectly still. "
                "The object is followed through the clip; what it sweeps over stays as it was made."
            ),
            inputs=[
                frames_input(),
                io.Image.Input("image", tooltip="The photo that the clip sets out from; scaled to the clip."),
                io.Mask.Input("mask", tooltip="The object in the first frame; scaled to the clip."),
                io.Float.Input(
                    "feather", default=2.0, min=0.0, max=64.0, step=0.5, tooltip="Softness of the seam in pixels."
                ),
            ],
            outputs=[io.Image.Output(display_name="frames")],
        )

    @classmethod
    def execute(cls, frames: Tensor, image: Tensor, mask: Tensor, feather: float) -> io.NodeOutput:
        clip = image_to_frames(frames)
        locked = lock_background(clip, fitted_picture(image, clip), fitted_mask(mask, clip), feather)
        return io.NodeOutput(frames_to_image(locked))


class CropRegion(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FollowClick_CropRegion",
            display_name="Crop Region",
            category="FollowClick/finish",
            description=(
                "Cuts out of a large photo the part around the object, so that the model works at its own size where "
                "it matters. Stitch Region puts the clip back."
            ),
            inputs=[
                io.Image.Input("image", tooltip="The photo. Of a batch, the first image."),
                io.Mask.Input("mask", tooltip="The object, at the photo's size; several masks count as one."),
                io.Float.Input(
                    "context",
                    default=2.5,
                    min=1.0,
                    max=MAX_CONTEXT,
                    step=0.1,
                    tooltip="Side of the part, in sides of the object. What flies off needs room; a smile does not.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="image", tooltip="The part, for First Frame or Animate Region."),
                io.Mask.Output(display_name="mask", tooltip="The object in it, for Motion Region."),
                PlaceSocket.Output(display_name="place", tooltip="Where it was cut, for Stitch Region."),
            ],
        )

    @classmethod
    def execute(cls, image: Tensor, mask: Tensor, context: float) -> io.NodeOutput:
        part, part_mask, place = crop_region(image_to_array(image), whole_mask(mask), context)
        return io.NodeOutput(frames_to_image(part[None]), masks_to_comfy([part_mask]), place)


class StitchRegion(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FollowClick_StitchRegion",
            display_name="Stitch Region",
            category="FollowClick/finish",
            description="Puts the clip of a cropped region back into its photo, at the photo's full size.",
            inputs=[
                frames_input(),
                PlaceSocket.Input("place", tooltip="From Crop Region."),
                io.Float.Input(
                    "feather",
                    default=8.0,
                    min=0.0,
                    max=512.0,
                    step=1.0,
                    tooltip="Pixels of the photo over which the clip fades into it at the crop's sides.",
                ),
                io.Boolean.Input(
                    "even_size",
                    default=True,
                    optional=True,
                    tooltip="Leave out the last row or column of a photo of odd size: Save Video wants even ones.",
                ),
            ],
            outputs=[io.Image.Output(display_name="frames")],
        )

    @classmethod
    def execute(cls, frames: Tensor, place: Place, feather: float, even_size: bool = True) -> io.NodeOutput:
        whole = stitch_region(image_to_frames(frames), place, feather)
        height, width = (size - size % 2 if even_size else size for size in whole.shape[1:3])
        return io.NodeOutput(frames_to_image(whole[:, :height, :width]))
