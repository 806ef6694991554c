"""Approximate accelerations inside the host's sampling: features reused between steps, and a part sampled alone."""

import copy
from collections.abc import Callable
from typing import Any

import comfy.latent_formats
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import apply_control, forward_timestep_embed
from comfy.ldm.modules.diffusionmodules.util import timestep_embedding
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP, add_wrapper_with_key
from comfy.sampler_helpers import prepare_mask
from comfy.samplers import CFGGuider
from torch import Tensor, nn

from ..followclick_core.acceleration.crop import LatentBox, box_share, latent_box
from ..followclick_core.acceleration.feature_reuse import FeatureCache, ReuseParams, check_depth, watched_feature
from .host_acceleration import REUSE, add_unet_wrapper, check_compiled_whole, check_unet
from .host_conds import FIRST_FRAME

CROP = "followclick_crop"
_LATENTS = comfy.latent_formats.SD15()


def approximate(model: ModelPatcher, reuse: ReuseParams, crop_context: float | None) -> ModelPatcher:
    """A copy of MODEL that samples approximately; what an earlier node of this kind switched on is replaced.

    Args:
        crop_context: Sample only so many sides of the region's bounding box; None: the whole picture.

    Raises:
        ValueError: MODEL is no Stable Diffusion UNet, or one of fewer blocks than the depth wants.
    """
    check_unet(model)
    check_depth(model.model.diffusion_model, reuse)
    patched = model.clone()
    patched.remove_wrappers_with_key(WrappersMP.SAMPLER_SAMPLE, REUSE)
    patched.remove_wrappers_with_key(WrappersMP.OUTER_SAMPLE, CROP)
    if reuse.interval > 1:
        patched.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, REUSE, _reusing(reuse))
    if crop_context is not None:
        patched.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, CROP, _sampling_part(crop_context))
    return patched


def _reusing(params: ReuseParams) -> Callable:
    """A SAMPLER_SAMPLE wrapper; what it keeps belongs to one sampling, and goes with it."""

    def sampler_sample(executor: Callable, guider: CFGGuider, sigmas: Tensor, extra_args: dict, *args, **kwargs):
        check_compiled_whole(extra_args["model_options"])
        cache = FeatureCache(params, len(sigmas) - 1)

        def predict_noise(ask: Callable, *inputs: Any, **named: Any) -> Tensor:
            cache.next_evaluation()
            return ask(*inputs, **named)

        # Both options are this run's own: the guider's, and the copy of them that it hands to the model.
        add_wrapper_with_key(WrappersMP.PREDICT_NOISE, REUSE, predict_noise, guider.model_options, True)
        add_unet_wrapper(extra_args["model_options"], REUSE, _unet_call(cache))
        return executor(guider, sigmas, extra_args, *args, **kwargs)

    return sampler_sample


def _unet_call(cache: FeatureCache) -> Callable:
    """A DIFFUSION_MODEL wrapper, the innermost: whole at key steps, otherwise the outermost blocks alone."""

    def diffusion_model(
        executor: Callable, x: Tensor, timesteps: Tensor, context: Any, y: Any, control: Any, options: dict, **more: Any
    ) -> Tensor:
        unet, window = executor.class_obj, options.get("context_window")
        frames = () if window is None else tuple(window.index_list)
        name = (tuple(x.shape), tuple(options["cond_or_uncond"]), tuple(options["uuids"]), frames)
        feature = cache.recall(name)
        if feature is not None:
            return _shallow_call(unet, x, timesteps, context, y, control, options, feature, cache.params.depth)
        with watched_feature(unet, cache.params.depth) as fetch:
            predicted = executor(x, timesteps, context, y, control, options, **more)
            cache.keep(name, fetch())
        return predicted

    return diffusion_model


def _shallow_call(
    unet: nn.Module,
    x: Tensor,
    timesteps: Tensor,
    context: Any,
    y: Tensor | None,
    control: dict | None,
    options: dict,
    feature: Tensor,
    depth: int,
) -> Tensor:
    """The host's UNet, with `feature` in place of all but the outermost blocks; patches and controls as it has them."""
    patches = options.get("patches", {})
    options |= {"original_shape": list(x.shape), "transformer_index": 0}
    emb = unet.time_embed(timestep_embedding(timesteps, unet.model_channels, repeat_only=False).to(x.dtype))
    for patch in patches.get("emb_patch", ()):
        emb = patch(emb, unet.model_channels, options)
    if unet.num_classes is not None:
        emb = emb + unet.label_emb(y)
    skips: list[Tensor] = []
    h = x
    for index, block in enumerate(unet.input_blocks[: depth + 1]):
        options["block"] = ("input", index)
        h = apply_control(forward_timestep_embed(block, h, emb, context, options), control, "input")
        for patch in patches.get("input_block_patch", ()):
            h = patch(h, options)
        skips.append(h)
        for patch in patches.get("input_block_patch_after_skip", ()):
            h = patch(h, options)
    first = len(unet.output_blocks) - 1 - depth
    _pass_over(unet, control, options, depth, first)
    h = feature
    for index in range(first, len(unet.output_blocks)):
        options["block"] = ("output", index)
        skip = apply_control(skips.pop(), control, "output")
        for patch in patches.get("output_block_patch", ()):
            h, skip = patch(h, skip, options)
        size = skips[-1].shape if skips else None
        h = forward_timestep_embed(unet.output_blocks[index], torch.cat([h, skip], dim=1), emb, context, options, size)
    return unet.out(h.type(x.dtype))


def _pass_over(unet: nn.Module, control: dict | None, options: dict, depth: int, first: int) -> None:
    """Leave out of controls and counts what belongs to the blocks that do not run."""
    for part in ("output",) if control else ():
        for _ in range(min(first, len(control.get(part, ())))):  # the host takes them from the end
            control[part].pop()
    skipped = [*unet.input_blocks[depth + 1 :], unet.middle_block, *unet.output_blocks[:first]]
    options["transformer_index"] += sum(
        type(layer).__name__ == "SpatialTransformer" for block in skipped for layer in block
    )


def _sampling_part(context: float) -> Callable:
    """An OUTER_SAMPLE wrapper: the conditionings get an area, and what lies outside it is held as it is."""

    def outer_sample(
        executor: Callable, noise: Tensor, latent: Tensor, sampler: Any, sigmas: Tensor, denoise_mask=None, *args, **kw
    ) -> Tensor:
        guider = executor.class_obj
        photos = [cond["model_conds"][FIRST_FRAME].cond for cond in _entries(guider) if _has_photo(cond)]
        mask = None if denoise_mask is None else prepare_mask(denoise_mask, noise.shape, noise.device)
        moving = [photo[:, :1].amax(0, keepdim=True) for photo in photos]
        if not moving and mask is not None:
            moving = [mask.amax((0, 1), keepdim=True)]
        if not moving:
            raise ValueError(
                "Nothing tells which part of the picture moves; connect the conditioning and latent of First Frame, or "
                "switch only_region off."
            )
        multiple = 2 ** (len(guider.model_patcher.model.diffusion_model.channel_mult) - 1)
        box = latent_box(torch.cat([each.cpu() for each in moving]), context, multiple)
        if box is None:
            return executor(noise, latent, sampler, sigmas, denoise_mask, *args, **kw)
        share = box_share(box, (noise.shape[-2], noise.shape[-1])).to(noise)
        if photos and not torch.count_nonzero(latent):
            # Only outside: within, a latent would be mixed into the noise that the clip starts from.
            photo = _LATENTS.process_out(photos[0][:1, 1:]).to(latent)
            latent = torch.where(share < 1, photo, 0.0).expand_as(latent).contiguous()
        mask = share.expand_as(noise) if mask is None else mask * share
        _cut(_entries(guider), box, (noise.shape[-2], noise.shape[-1]))
        return executor(noise, latent, sampler, sigmas, mask, *args, **kw)

    return outer_sample


def _entries(guider: CFGGuider) -> list[dict]:
    return [entry for entries in guider.conds.values() for entry in entries]


def _has_photo(entry: dict) -> bool:
    return FIRST_FRAME in entry.get("model_conds", {})


def _cut(entries: list[dict], box: LatentBox, size: tuple[int, int]) -> None:
    """Give one run's own entries the area; one that has an area is a part already."""
    controls: dict[int, Any] = {}  # entries of one ControlNet share its copy too, or they could not be one batch
    for entry in entries:
        if "area" in entry:
            continue
        entry["area"] = (box.height, box.width, box.top, box.left)
        control = entry.get("control")
        if control is not None:
            entry["control"] = controls.setdefault(id(control), _control_of(control, box, size))


def _control_of(control: Any, box: LatentBox, size: tuple[int, int]) -> Any:
    """A ControlNet, and those before it, with the part of the hint that the box shows: the host would squeeze it in."""
    own = copy.copy(control)
    hint = control.cond_hint_original
    if isinstance(hint, Tensor):
        down, across = hint.shape[-2] / size[0], hint.shape[-1] / size[1]
        rows = slice(round(box.top * down), round((box.top + box.height) * down))
        columns = slice(round(box.left * across), round((box.left + box.width) * across))
        own.cond_hint_original = hint[..., rows, columns]
    own.cond_hint = None
    if control.previous_controlnet is not None:
        own.previous_controlnet = _control_of(control.previous_controlnet, box, size)
    return own
