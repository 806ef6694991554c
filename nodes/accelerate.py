"""Nodes that make sampling faster: one that keeps the clip as it is, one that gives some of it up."""

from comfy_api.latest import io

from ..followclick_core.acceleration.compiled import MODES, CompileParams
from ..followclick_core.acceleration.crop import MAX_CONTEXT
from ..followclick_core.acceleration.feature_reuse import ReuseParams
from .host_acceleration import Acceleration, accelerate
from .host_approximation import approximate

OFF = "off"
MODEL_TOOLTIP = "Any Stable Diffusion MODEL, before or after Apply Motion Model."


class AccelerateExactly(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FollowClick_AccelerateExactly",
            display_name="Accelerate Sampling (exact)",
            category="FollowClick/animate",
            description=(
                "Samples the same clip in less time, but for rounding. Every switch is off at first: try them one by "
                "one, for what helps depends on the GPU and the size."
            ),
            inputs=[
                io.Model.Input("model", tooltip=MODEL_TOOLTIP),
                io.Combo.Input(
                    "compile_blocks",
                    options=[OFF, *MODES],
                    default=OFF,
                    tooltip="Compile the UNet's and motion model's blocks: the first run takes a minute longer.",
                ),
                io.Boolean.Input(
                    "any_size",
                    default=True,
                    tooltip="Compile once for all sizes and lengths; off: for each anew, which runs a little faster.",
                ),
                io.Boolean.Input(
                    "channels_last",
                    default=False,
                    tooltip="Lay out convolutions as tensor cores want them. Alone it is slower: compile as well.",
                ),
                io.Boolean.Input(
                    "cuda_graphs",
                    default=False,
                    tooltip="Record a step and replay it. Good for small clips, whose kernels wait for Python.",
                ),
                io.Boolean.Input(
                    "text_keys",
                    default=False,
                    tooltip="Project the text once per sampling instead of at every step.",
                ),
                io.Float.Input(
                    "guidance_start",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Changes the clip: no guidance before this share of the sampling, so half the work there.",
                ),
                io.Float.Input(
                    "guidance_end",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Changes the clip: no guidance after this share of the sampling, so half the work there.",
                ),
                io.Boolean.Input(
                    "fused_feed_forward",
                    default=False,
                    optional=True,  # graphs in API form may be older than it
                    tooltip="Compute the UNet's feed-forwards in pieces: less memory, and less time on NVIDIA GPUs.",
                ),
            ],
            outputs=[io.Model.Output(display_name="model")],
        )

    @classmethod
    def execute(
        cls,
        model: io.Model.Type,
        compile_blocks: str = OFF,
        any_size: bool = True,
        channels_last: bool = False,
        cuda_graphs: bool = False,
        text_keys: bool = False,
        guidance_start: float = 0.0,
        guidance_end: float = 1.0,
        fused_feed_forward: bool = False,
    ) -> io.NodeOutput:
        compiled = None if compile_blocks == OFF else CompileParams(compile_blocks, any_size)
        guidance = None if (guidance_start, guidance_end) == (0.0, 1.0) else (guidance_start, guidance_end)
        how = Acceleration(compiled, channels_last, cuda_graphs, text_keys, guidance, fused_feed_forward)
        return io.NodeOutput(accelerate(model, how))


class AccelerateApproximately(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FollowClick_AccelerateApproximately",
            display_name="Accelerate Sampling (approximate)",
            category="FollowClick/animate",
            description=(
                "Samples nearly the same clip in much less time: what the UNet computes at low resolution serves "
                "several steps, and if you like only the part around the object is sampled. The help says how far off."
            ),
            inputs=[
                io.Model.Input("model", tooltip=MODEL_TOOLTIP),
                io.Int.Input(
                    "cache_interval",
                    default=3,
                    min=1,
                    max=50,
                    tooltip="Every so many steps the whole UNet runs, between them its outer blocks; 1: always all.",
                ),
                io.Int.Input(
                    "cache_depth",
                    default=0,
                    min=0,
                    max=10,
                    tooltip="How many further outer blocks run at every step: slower, closer to the exact clip.",
                ),
                io.Boolean.Input(
                    "only_region",
                    default=False,
                    tooltip="Sample only the part around the object; the rest stays your photo, perfectly still.",
                ),
                io.Float.Input(
                    "context",
                    default=2.5,
                    min=1.0,
                    max=MAX_CONTEXT,
                    step=0.1,
                    tooltip="With only_region: side of the part, in sides of the object. What flies off needs room.",
                ),
            ],
            outputs=[io.Model.Output(display_name="model")],
        )

    @classmethod
    def execute(
        cls,
        model: io.Model.Type,
        cache_interval: int = 3,
        cache_depth: int = 0,
        only_region: bool = False,
        context: float = 2.5,
    ) -> io.NodeOutput:
        reuse = ReuseParams(cache_interval, cache_depth)
        return io.NodeOutput(approximate(model, reuse, context if only_region else None))
