"""Exact accelerations inside the host's sampling: they are set up when it starts and undone when it ends.

The host's own way to compile (`set_torch_compile_wrapper`) serves whole models and single modules, but what it compiles
reads `transformer_options`, whose uuids, noise levels and wrappers differ from run to run, and finds no hooks that come
later. So blocks are compiled here by the core, and see tensors only.
"""

import logging
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP, add_wrapper_with_key, get_wrappers_with_key
from comfy.samplers import CFGGuider
from torch import Tensor, nn

from ..followclick_core.acceleration.compiled import BlockKind, CompileParams, compiled_blocks
from ..followclick_core.acceleration.early_release import early_release
from ..followclick_core.acceleration.memory_format import channels_last
from ..followclick_core.acceleration.recorded import RecordedCalls, record_cuda_graph
from ..followclick_core.acceleration.text_keys import TextKeys
from ..followclick_core.models.motion_module import MotionModule, RegionKeyValue
from .host_conds import REGION_SHARES
from .host_feed_forward import fused_feed_forwards
from .host_motion import KEY as MOTION

logger = logging.getLogger("followclick")

KEY = "followclick_accelerate"
TEXT_KEYS, GRAPHS, REUSE = "followclick_text_keys", "followclick_graphs", "followclick_reuse"
# Graphs hold the whole call, and so do text keys around them; otherwise keys want the text that is read in the end,
# and what skips most of the call comes last.
_ORDER = {GRAPHS: -1, TEXT_KEYS: 1, REUSE: 2}
_OWN = {MOTION, GRAPHS, TEXT_KEYS}


@dataclass(frozen=True)
class Acceleration:
    """What Accelerate Sampling switches on.

    Args:
        guidance: The share of the sampling, (start, end) from 0 to 1, in which the unconditional pass counts; None:
            all of it.
    """

    compiled: CompileParams | None = None
    channels_last: bool = False
    cuda_graphs: bool = False
    text_keys: bool = False
    guidance: tuple[float, float] | None = None
    fused_feed_forward: bool = False

    def __post_init__(self) -> None:
        start, end = self.guidance or (0.0, 1.0)
        if not 0 <= start <= end <= 1:
            raise ValueError(
                f"Guidance cannot count from {start:g} to {end:g} of the sampling; give shares from 0 to 1, the "
                "smaller one first."
            )


def accelerate(model: ModelPatcher, how: Acceleration) -> ModelPatcher:
    """A copy of MODEL that samples faster; what an earlier Accelerate Sampling switched on is replaced.

    Raises:
        ValueError: MODEL is no Stable Diffusion UNet.
    """
    check_unet(model)
    patched = model.clone()
    for kind in (WrappersMP.SAMPLER_SAMPLE, WrappersMP.PREDICT_NOISE):
        patched.remove_wrappers_with_key(kind, KEY)
    if how.compiled or how.channels_last or how.cuda_graphs or how.text_keys or how.fused_feed_forward:
        patched.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, KEY, _sampling(how))
    if how.guidance is not None:
        patched.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, KEY, _guidance_within(*how.guidance))
    return patched


def check_unet(model: ModelPatcher) -> None:
    if not hasattr(model.model.diffusion_model, "input_blocks"):
        kind = type(model.model.diffusion_model).__name__
        raise ValueError(
            f"Only a Stable Diffusion UNet can be accelerated here, but this MODEL is a {kind}; the host's "
            "TorchCompileModel takes any."
        )


def check_compiled_whole(model_options: dict) -> None:
    """Raises:
    ValueError: the host's node compiles the model, which cannot be asked again from step to step what to do.
    """
    if get_wrappers_with_key(WrappersMP.APPLY_MODEL, "torch.compile", model_options, is_model_options=True):
        raise ValueError(
            "TorchCompileModel compiles the whole MODEL, which leaves no place for Accelerate Sampling; remove it, and "
            "switch compile_blocks on instead."
        )


def add_unet_wrapper(model_options: dict, key: str, wrapper: Callable) -> None:
    """Put a wrapper around the UNet's calls of one sampling, at its place among all others."""
    add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, key, wrapper, model_options, is_model_options=True)
    wrappers = model_options["transformer_options"]["wrappers"]
    known = wrappers[WrappersMP.DIFFUSION_MODEL]
    order = _ORDER | ({TEXT_KEYS: -2} if GRAPHS in known else {})
    wrappers[WrappersMP.DIFFUSION_MODEL] = dict(sorted(known.items(), key=lambda item: order.get(item[0], 0)))


def _sampling(how: Acceleration) -> Callable:
    """A SAMPLER_SAMPLE wrapper: by then weights are loaded, and motion models attached."""

    def sampler_sample(executor: Callable, guider: CFGGuider, sigmas: Tensor, extra_args: dict, *args, **kwargs):
        options = extra_args["model_options"]
        check_compiled_whole(options)
        models = [guider.model_patcher, *guider.model_patcher.get_additional_models_with_key(MOTION)]
        offloaded = any(each.model.model_lowvram for each in models)
        if offloaded and (how.compiled or how.channels_last or how.cuda_graphs):
            logger.info("The MODEL does not fit into the GPU's memory whole: it is not compiled, laid out or recorded.")
        unet = guider.model_patcher.model.diffusion_model
        with ExitStack() as stack:
            if how.channels_last and not offloaded:
                stack.enter_context(channels_last(unet))
            if how.fused_feed_forward:
                stack.enter_context(fused_feed_forwards(unet))
                stack.enter_context(early_release(unet))
            # Each block of blended regions has hooks of its own.
            if how.compiled is not None and not offloaded and not _has(guider, REGION_SHARES):
                blocks = [block for each in models for block in _blocks(each.model)]
                stack.enter_context(compiled_blocks(blocks, how.compiled))
            if how.cuda_graphs and not offloaded and _may_record(guider, options):
                calls = RecordedCalls(record_cuda_graph)
                stack.callback(calls.clear)
                add_unet_wrapper(options, GRAPHS, _recorded(calls))
            # Hooks change weights from step to step; blended regions have the layers project several texts.
            if how.text_keys and not _has(guider, "hooks") and not _has(guider, REGION_SHARES):
                keys = TextKeys.of(unet)
                stack.enter_context(keys.exchanged())
                add_unet_wrapper(options, TEXT_KEYS, _with_text_keys(keys))
            return executor(guider, sigmas, extra_args, *args, **kwargs)

    return sampler_sample


def _has(guider: CFGGuider, name: str) -> bool:
    """Whether any entry of the conditionings has something of this name."""
    entries = [entry for each in guider.conds.values() for entry in each]
    return any(entry.get(name) is not None or name in entry.get("model_conds", {}) for entry in entries)


def _may_record(guider: CFGGuider, options: dict) -> bool:
    wrappers = options["transformer_options"].get("wrappers", {})
    reasons = {
        "there is no CUDA device": guider.model_patcher.load_device.type != "cuda",
        "several regions are blended": _has(guider, REGION_SHARES),
        "LoRA hooks change weights while it runs": _has(guider, "hooks"),
        "features are reused": REUSE in wrappers.get(WrappersMP.SAMPLER_SAMPLE, {}),
        "another node wraps the model": bool(set(wrappers.get(WrappersMP.DIFFUSION_MODEL, {})) - _OWN),
    }
    for reason, is_so in reasons.items():
        if is_so:
            logger.info("Sampling runs without CUDA graphs: %s.", reason)
            return False
    return True


def _recorded(calls: RecordedCalls) -> Callable:
    """A DIFFUSION_MODEL wrapper that records calls of tensors alone."""

    def diffusion_model(
        executor: Callable, x: Tensor, timesteps: Tensor, context: Any, y: Any, control: Any, options: dict, **more: Any
    ) -> Tensor:
        patched = control is not None or options.get("patches") or options.get("patches_replace")
        if patched or not all(each is None or isinstance(each, Tensor) for each in more.values()):
            return executor(x, timesteps, context, y, control, options, **more)
        names = tuple(more)

        def function(tensors: Any) -> Tensor:
            return executor(*tensors[:4], None, options, **dict(zip(names, tensors[4:], strict=True)))

        key = (names, options.get(TEXT_KEYS), *options["cond_or_uncond"], *options["uuids"])
        return calls(key, function, [x, timesteps, context, y, *more.values()])

    return diffusion_model


def _with_text_keys(keys: TextKeys) -> Callable:
    """A DIFFUSION_MODEL wrapper that has the text projected once, and tells recorded calls which one they read."""

    def diffusion_model(
        executor: Callable, x: Tensor, timesteps: Tensor, context: Any, y: Any, control: Any, options: dict, **more: Any
    ) -> Tensor:
        # Patches before an attention may give it another text.
        if "attn2_patch" in options.get("patches", {}) or not isinstance(context, Tensor):
            return executor(x, timesteps, context, y, control, options, **more)
        window = options.get("context_window")
        name = (*options["cond_or_uncond"], *options["uuids"], *(window.index_list if window is not None else ()))
        with keys.reading(name, context, len(x) // len(options["cond_or_uncond"])) as number:
            return executor(x, timesteps, context, y, control, {**options, TEXT_KEYS: number}, **more)

    return diffusion_model


def _guidance_within(start: float, end: float) -> Callable:
    """A PREDICT_NOISE wrapper: guidance in an interval alone (Kynkäänniemi et al. 2024, arXiv:2404.07724).

    Outside it the guidance scale is 1, for which the host leaves the unconditional pass out.
    """

    def predict_noise(executor: Callable, x: Tensor, timestep: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        guider = executor.class_obj
        if type(guider).predict_noise is not CFGGuider.predict_noise:
            raise ValueError(
                f"A guidance interval goes with CFG, but {type(guider).__name__} guides in a way of its own; use "
                "KSampler or CFGGuider, or set the interval back to 0 … 1."
            )
        levels = guider.inner_model.model_sampling
        if levels.percent_to_sigma(end) <= float(timestep.max()) <= levels.percent_to_sigma(start):
            return executor(x, timestep, *args, **kwargs)
        scale, guider.cfg = guider.cfg, 1.0
        try:
            return executor(x, timestep, *args, **kwargs)
        finally:
            guider.cfg = scale

    return predict_noise


def _blocks(model: nn.Module) -> list[tuple[nn.Module, BlockKind]]:
    kinds = {"ResBlock": _RESBLOCK, "SpatialTransformer": _TRANSFORMER, MotionModule.__name__: _MOTION}
    return [(layer, kinds[type(layer).__name__]) for layer in model.modules() if type(layer).__name__ in kinds]


def _run_resblock(block: nn.Module, x: Tensor, emb: Tensor) -> Tensor:
    return type(block).forward(block, x, emb)


def _run_transformer(block: nn.Module, x: Tensor, context: Tensor) -> Tensor:
    return type(block).forward(block, x, context, {})


def _run_motion(block: nn.Module, x: Tensor, num_frames: int, text: tuple[Tensor, Tensor] | None) -> Tensor:
    return type(block).forward(block, x, num_frames, text)


def _resblock_arguments(x: Tensor, emb: Tensor) -> tuple:
    return x, emb


def _transformer_arguments(x: Tensor, context: Any = None, transformer_options: dict | None = None) -> tuple | None:
    options = transformer_options or {}
    patched = any(options.get(name) for name in ("patches", "patches_replace", "optimized_attention_override"))
    return None if patched or not isinstance(context, Tensor) else (x, context)


def _motion_arguments(x: Tensor, num_frames: int, text: Any = None) -> tuple | None:
    return None if isinstance(text, RegionKeyValue) else (x, num_frames, text)


_RESBLOCK = BlockKind(_run_resblock, _resblock_arguments)
_TRANSFORMER = BlockKind(_run_transformer, _transformer_arguments)
_MOTION = BlockKind(_run_motion, _motion_arguments)
