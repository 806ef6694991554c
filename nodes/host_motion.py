"""A motion model inside the host's sampling: how it gets into a MODEL, and what CONDITIONING carries for it.

While a patched MODEL samples, and only then, the core's hooks are on its UNet: they go on when the sampling starts and
come off when it ends, fails or is cancelled. Injections, the host's own way, would stay on the shared weights until
another MODEL is loaded, and for ever if the patched one is collected first.

Everything a single UNet call needs rides in CONDITIONING as `model_conds`, which the host batches, crops to areas and
hands back to each call, so masks, areas, timestep ranges and Combine keep their meaning.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import comfy.patcher_extension
import torch
from comfy.conds import CONDCrossAttn, CONDNoiseShape, CONDRegular
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from comfy.samplers import CFGGuider
from comfy.sd import VAE
from einops import rearrange
from torch import Tensor

from ..followclick_core.animator import check_request
from ..followclick_core.diffusion.noise import without_temporal_mean
from ..followclick_core.generate import LATENT_SCALE
from ..followclick_core.models.attach import Attachment, MotionConditioning, attach
from ..followclick_core.models.region_hooks import RegionBlend
from ..followclick_core.regions import latent_shares
from .host import fit, fitting_size
from .host_conds import (
    CARRIED,
    CONTEXT,
    FIRST_FRAME,
    MAGNITUDE,
    REGION_PROMPTS,
    REGION_SHARES,
    CurveCond,
    FirstFrameCond,
    on_device,
    uncompiled_blends,
)
from .host_families import apply_family, clip_latent, in_dtype, spoken, with_start
from .host_models import model_latents
from .host_windows import frames_at_once, mend_windows
from .sockets import HostedMotionModel, Region, Regions

KEY = "followclick"

Conditioning = list[list]  # the host's: [text embedding, options] for each entry

# A mask of other proportions belongs to another picture; rounding alone differs by less.
ASPECT_TOLERANCE = 0.02


def with_motion(
    conditioning: Conditioning,
    context: Tensor | None = None,
    magnitude: Sequence[float] | None = None,
    first_frame: Tensor | None = None,
    mask: Tensor | None = None,
) -> Conditioning:
    """A copy of `conditioning` that carries what is given; the rest it keeps.

    Args:
        context: Embedding of the motion prompt, 1 n c.
        magnitude: Mean flow in the region, pixels per frame at 512 pixels of width: a number, or a curve over the clip.
        first_frame: Mask and first-frame latents, f 5 h w.
        mask: Where in the picture this entry counts, 1 h w; multiplied with the mask it has already.
    """
    carried: dict[str, CONDRegular] = {}
    if context is not None:
        carried[CONTEXT] = CONDCrossAttn(context)
    if magnitude is not None:
        points = torch.tensor(list(magnitude), dtype=torch.float32)
        carried[MAGNITUDE] = CONDRegular(points) if len(points) == 1 else CurveCond(points)
    if first_frame is not None:
        carried[FIRST_FRAME] = FirstFrameCond(first_frame)
    return [_entry(text, options, carried, mask) for text, options in conditioning]


def magnitude_points(magnitude: float, curve: str) -> list[float]:
    """The curve's numbers, or else the one magnitude.

    Raises:
        ValueError: something in the curve is no number, or a magnitude that makes no sense.
    """
    try:
        points = [float(part) for part in curve.split(",")] if curve.strip() else [magnitude]
    except ValueError as error:
        raise ValueError(
            f"The curve {curve!r} is no list of numbers; separate them by commas, such as 0, 8, 2."
        ) from error
    for point in points:
        check_request("move", point, num_frames=1, steps=1, guidance_scale=1)
    return points


def first_frame_conditioning(
    positive: Conditioning,
    negative: Conditioning,
    vae: VAE,
    image: Tensor,
    regions: Regions,
    motion: HostedMotionModel,
    length: int,
    region_mode: str = "blended",
) -> tuple[Conditioning, Conditioning, dict[str, Tensor]]:
    """Both conditionings with first frame, regions and motion, and the LATENT of the clip (`clip_latent`).

    A positive text that is empty, or a region's motion prompt, describes no picture; each region's own motion prompt
    takes its place then, as the paper gives it to the spatial cross-attention too.

    Args:
        region_mode: How several regions are sampled: "blended" into one entry, or each as an entry of its own that
            counts where its region is the nearest, so what a region sweeps stays its own.
    """
    params, family = motion.model.params, motion.model.family
    _check_text(regions, params.context_dim)
    size = fitting_size(image, motion.trained_size, LATENT_SCALE * 2 ** (len(params.channel_mult) - 1))
    latents = model_latents(vae, fit(image[:1].movedim(-1, 1), size).movedim(1, -1))
    masks = torch.cat([fit(_mask_of(region, image)[:, None], size) for region in regions], dim=1)
    shares = latent_shares(masks, latents.shape[-2:]) if len(regions) > 1 else None
    conditioned: tuple[Conditioning, Conditioning] = ([], [])
    for conditioning, texts, output in (
        (positive, [region.context for region in regions], conditioned[0]),
        (negative, [region.empty_context for region in regions], conditioned[1]),
    ):
        speaks = conditioning is positive and not family.motion_attention
        if shares is not None and region_mode == "blended":
            condition = motion.model.first_frame(latents, masks.amax(1, keepdim=True), length)
            output.extend(_blended(conditioning, regions, texts, shares, condition, speaks))
            continue
        for index, (region, text) in enumerate(zip(regions, texts, strict=True)):
            condition = motion.model.first_frame(latents, masks[:, [index]], length)
            share = None if shares is None else shares[:, index]
            prompted = [[_prompted(own, text, regions, speaks), options] for own, options in conditioning]
            frames = None if condition is None else rearrange(condition, "1 c f h w -> f c h w")
            output.extend(with_motion(prompted, text, [region.magnitude], frames, share))
    started = with_start(family, conditioned[0], latents)
    return started, conditioned[1], clip_latent(family, latents, masks, length)


def _blended(
    conditioning: Conditioning,
    regions: Regions,
    texts: list[Tensor],
    shares: Tensor,
    condition: Tensor | None,
    speaks: bool,
) -> Conditioning:
    """One entry for all regions instead of each of `conditioning`'s; the core's hooks blend what differs."""
    # As long as each other, and as the other conditioning's: repeated tokens do not change an attention.
    tokens = math.lcm(*(text.shape[1] for region in regions for text in (region.context, region.empty_context)))
    contexts = torch.cat([text.repeat(1, tokens // text.shape[1], 1) for text in texts])[None]
    carried = {
        CONTEXT: CONDRegular(contexts),
        MAGNITUDE: CONDRegular(torch.tensor([[region.magnitude for region in regions]])),
        REGION_SHARES: CONDNoiseShape(shares),
    }
    if condition is not None:
        carried[FIRST_FRAME] = FirstFrameCond(rearrange(condition, "1 c f h w -> f c h w"))
    entries = []
    for own, options in conditioning:
        prompted = [_prompted(own, text[None], regions, speaks) for text in contexts[0]]
        if prompted[0] is own:
            entries.append(_entry(own, options, carried, None))
        else:
            prompts = {REGION_PROMPTS: CONDRegular(torch.stack(prompted, dim=1))}
            # The core's hooks put the prompts in this text's place, but ControlNets read it.
            text = texts[0] if _is_prompt(own, regions) else own
            entries.append(_entry(text, options, carried | prompts, None))
    return entries


def _prompted(own: Tensor, text: Tensor, regions: Regions, speaks: bool) -> Tensor:
    """What the spatial cross-attention reads in a region: its prompt alone, or `own`, with it if that `speaks`."""
    if _is_prompt(own, regions):
        return text
    return spoken(own, text) if speaks else own


def _is_prompt(text: Tensor, regions: Regions) -> bool:
    """Whether a text is empty, or the motion prompt of one of the regions."""
    known = (each for region in regions for each in (region.context, region.empty_context))
    return any(text.shape == each.shape and torch.equal(text, each) for each in known)


def _check_text(regions: Regions, context_dim: int | None) -> None:
    for region in regions:
        width = region.context.shape[-1]
        if context_dim is not None and width != context_dim:
            raise ValueError(
                f"The motion prompt {region.prompt!r} was encoded by a CLIP of width {width}, the motion model reads "
                f"{context_dim}; connect the CLIP of the checkpoint that it was trained for."
            )


def _mask_of(region: Region, image: Tensor) -> Tensor:
    """The region's mask at the image's size, 1 h w.

    Raises:
        ValueError: it was made for a picture of other proportions.
    """
    (height, width), (own_height, own_width) = image.shape[1:3], region.mask.shape[-2:]
    if abs(own_width * height / (own_height * width) - 1) > ASPECT_TOLERANCE:
        raise ValueError(
            f"The mask for {region.prompt!r} is {own_width}x{own_height}, the image {width}x{height}; "
            "make the mask from the image that First Frame gets."
        )
    return fit(region.mask[:, None], (width, height))[:, 0]


def _entry(text: Tensor, options: dict, carried: dict[str, CONDRegular], mask: Tensor | None) -> list:
    options = {**options, "model_conds": {**options.get("model_conds", {}), **carried}}
    if mask is not None:
        if "mask" in options:
            size = options["mask"].shape[-2:]
            mask = options["mask"] * torch.nn.functional.interpolate(mask[:, None], size, mode="bilinear")[:, 0]
        options["mask"] = mask
    return [text, options]


def apply_motion_model(model: ModelPatcher, motion: HostedMotionModel) -> ModelPatcher:
    """A copy of MODEL that samples clips: the motion model's hooks, its noise schedule, its weights in the host's care.

    Raises:
        ValueError: MODEL has another motion model already, or is of another size or family.
    """
    _check_free(model)
    attach(model.model.diffusion_model, motion.model).detach()  # raises if the two do not fit
    motion = _in_dtype_of(model, motion)
    patched = model.clone()
    patched.set_additional_models(KEY, [motion.patcher])
    patched.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, _sampling_with(motion))
    apply_family(patched, motion)
    return patched


def _check_free(model: ModelPatcher) -> None:
    if model.get_additional_models_with_key(KEY):
        raise ValueError("This MODEL has a motion model already; connect the one from before Apply Motion Model.")
    _check_neighbour(model)
    if not hasattr(model.model.diffusion_model, "input_blocks"):
        kind = type(model.model.diffusion_model).__name__
        raise ValueError(f"A motion model needs a Stable Diffusion 1.5 UNet, but this MODEL is a {kind}; load another.")


def _check_neighbour(model: ModelPatcher) -> None:
    if any("ADE" in wrappers for wrappers in model.wrappers.values()):
        raise ValueError(
            "This MODEL has a motion model of AnimateDiff Evolved, and two would fight over the frames; "
            "use either its nodes or Apply Motion Model on a MODEL, not both."
        )


def _in_dtype_of(model: ModelPatcher, motion: HostedMotionModel) -> HostedMotionModel:
    """The motion model in the type that the UNet computes in: a copy if it is another, for the cached one is shared."""
    dtype = model.get_model_object("manual_cast_dtype") or model.model.get_dtype()
    if next(motion.model.parameters()).dtype == dtype:
        return replace(motion, patcher=motion.patcher.clone())
    return in_dtype(motion, dtype)


def _sampling_with(motion: HostedMotionModel) -> Callable:
    """An OUTER_SAMPLE wrapper; a plain function, for the host deep-copies bound methods with their objects."""
    motion_model, family, fps = motion.model, motion.model.family, motion.fps
    trained_width = motion.trained_size if family.magnitude_in_pixels else None

    def outer_sample(executor: Callable, noise: Tensor, *args: object, **kwargs: object) -> Tensor:
        guider = executor.class_obj
        _check_neighbour(guider.model_patcher)  # it may have come after us
        attachment = attach(guider.model_patcher.model.diffusion_model, motion_model)
        # The guider's options are its own for this one run.
        comfy.patcher_extension.add_wrapper_with_key(
            WrappersMP.DIFFUSION_MODEL,
            KEY,
            _unet_call_with(attachment, LATENT_SCALE * noise.shape[-1] / trained_width if trained_width else 1.0, fps),
            guider.model_options,
            is_model_options=True,
        )
        comfy.patcher_extension.add_wrapper_with_key(
            WrappersMP.SAMPLER_SAMPLE, KEY, _sample_on_device, guider.model_options, is_model_options=True
        )
        if family.mean_free_noise:
            clip = rearrange(noise, "f c h w -> 1 c f h w")
            at_once = frames_at_once(guider.model_options) or motion_model.params.trained_frames
            noise = without_temporal_mean(clip, at_once)[0].movedim(1, 0)
        try:
            mend_windows(guider.model_options, motion_model.layout, guider.conds.get("positive", []))
            with uncompiled_blends(guider.conds):
                return executor(noise, *args, **kwargs)
        finally:
            attachment.detach()

    return outer_sample


def _sample_on_device(executor: Callable, guider: CFGGuider, *args: object, **kwargs: object) -> Tensor:
    """A SAMPLER_SAMPLE wrapper: what the steps read besides latents and weights is where they are computed."""
    device = guider.model_patcher.load_device
    guider.conds = on_device(guider.conds, device)
    # The host moves a MODEL's own noise levels together with its weights, so not if another MODEL has loaded these.
    # Every step would look its timestep up on the CPU, and wait for the GPU twice.
    guider.inner_model.model_sampling.to(device)
    return executor(guider, *args, **kwargs)


def _unet_call_with(attachment: Attachment, width_ratio: float, fps: float | None) -> Callable:
    """A DIFFUSION_MODEL wrapper that hands each UNet call's own motion arguments to the hooks.

    Args:
        width_ratio: The clip's width by the trained one: the model counts pixels of its own size.
        fps: For families that are told; None leaves it to them.
    """
    kept: dict[tuple, MotionConditioning] = {}

    def diffusion_model(
        executor: Callable,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor,
        y: object,
        control: object,
        options: dict,
        **more: object,
    ) -> Tensor:
        motion = {key: more.pop(key, None) for key in CARRIED}
        num_frames = len(x) // len(options["cond_or_uncond"])
        if num_frames == 1 and all(value is None for value in motion.values()):
            return executor(x, timesteps, context, y, control, options, **more)  # one picture from text, as without us
        # Entries come in the same batches at every step: their motion text is laid out and projected only once.
        batch = (num_frames, tuple(x.shape), *options["cond_or_uncond"], *options["uuids"])
        if batch not in kept:
            _check_size(motion[FIRST_FRAME], x)
            kept[batch] = _conditioning(num_frames, motion, width_ratio, fps)
        elif "context_window" in options:  # other frames than at the first call, with the same text
            now = _conditioning(num_frames, motion, width_ratio, fps)
            kept[batch] = _of_window(kept[batch], now)
        with attachment.conditioned(kept[batch], timesteps):
            return executor(x, timesteps, context, y, control, options, **more)

    return diffusion_model


def _check_size(first_frame: Tensor | None, x: Tensor) -> None:
    if first_frame is not None and first_frame.shape[-2:] != x.shape[-2:]:
        (height, width), (own_height, own_width) = x.shape[-2:], first_frame.shape[-2:]
        raise ValueError(
            f"First Frame made its conditioning for latents of {own_width}x{own_height}, but {width}x{height} are "
            "sampled; connect the LATENT of the same First Frame node."
        )


def _of_window(kept: MotionConditioning, now: MotionConditioning) -> MotionConditioning:
    """What is kept, with what a window has of its own frames."""
    regions = kept.regions
    if regions is not None and now.regions is not None:
        regions = replace(regions, spatial_contexts=now.regions.spatial_contexts)
    return replace(kept, magnitude=now.magnitude, first_frame=now.first_frame, regions=regions)


def _conditioning(
    num_frames: int, motion: dict[str, Tensor | None], width_ratio: float, fps: float | None
) -> MotionConditioning:
    """From the host's batch, where all frames of all entries follow each other, to a batch of clips."""
    context, magnitude, first_frame, shares = (
        None if motion[key] is None else motion[key] if key == FIRST_FRAME else motion[key][::num_frames]
        for key in (CONTEXT, MAGNITUDE, FIRST_FRAME, REGION_SHARES)
    )
    prompts = motion[REGION_PROMPTS]
    if prompts is not None and torch.equal(prompts, prompts[::num_frames].repeat_interleave(num_frames, 0)):
        prompts = prompts[::num_frames]  # no prompt schedule: one text for all frames
    first_frame = None if first_frame is None else rearrange(first_frame, "(b f) c h w -> b c f h w", f=num_frames)
    # A number for each frame, or for each region: Flow Magnitude replaces the regions' numbers by one, or by a curve.
    of_frames = motion[MAGNITUDE] is not None and motion[MAGNITUDE].ndim == 1
    frames = motion[MAGNITUDE].float().view(-1, num_frames) * width_ratio if of_frames else None
    if shares is None:
        return MotionConditioning(num_frames, context, frames, first_frame, fps=fps)
    of_regions = None if of_frames or magnitude is None else magnitude.float() * width_ratio
    blend = RegionBlend(shares, context, of_regions, prompts)
    return MotionConditioning(num_frames, magnitude=frames, first_frame=first_frame, fps=fps, regions=blend)
