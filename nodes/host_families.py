"""What the families of motion models ask of the host: noise schedule, the UNet's own weights, a start from the picture.

`followclick_core/families` says what each family needs; here it is said to the host.
"""

from collections.abc import Callable
from dataclasses import replace

import comfy.latent_formats
import comfy.model_sampling
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from comfy.weight_adapter import LoRAAdapter
from comfy_extras.nodes_model_advanced import LCM, ModelSamplingDiscreteDistilled
from torch import Tensor

from ..followclick_core.checkpoint import load_strict
from ..followclick_core.families import START_NOISE, Family
from ..followclick_core.families.start import late_sigmas, moving_mask, start_latents, start_strength, strongest
from ..followclick_core.models.lora import LoraPairs
from ..followclick_core.models.motion_model import MotionModel
from .host import hosted
from .host_conds import MAGNITUDE
from .host_models import model_sampling, sampling_settings
from .sockets import HostedMotionModel

START_KEY = "followclick_start"
PICTURE = "followclick_picture"  # in the options of a CONDITIONING entry
_LATENTS = comfy.latent_formats.SD15()
_UNET = "diffusion_model."
_OURS = "0."  # the patcher's module is a list (`host.hosted`), whose first is the motion model


def apply_family(patched: ModelPatcher, motion: HostedMotionModel) -> None:
    """Give a MODEL what the family needs besides the hooks: its noise schedule, its spatial weights, its start.

    Raises:
        ValueError: the family's spatial weights are for another UNet.
    """
    family = motion.model.family
    wanted, current = _sampling(motion, patched), patched.get_model_object("model_sampling")
    if not _same_sampling(wanted, current):
        patched.add_object_patch("model_sampling", wanted)
    if motion.spatial:
        _replace_weights(patched, motion)
    if not family.takes_first_frame:
        patched.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, START_KEY, _start_from_picture)


def _sampling(motion: HostedMotionModel, model: ModelPatcher) -> comfy.model_sampling.ModelSamplingDiscrete:
    """The noise schedule that the motion model was trained with, and the prediction of the spatial weights."""
    family, schedule = motion.model.family, motion.model.schedule
    current = model.get_model_object("model_sampling")
    if family.follows_prediction and isinstance(current, comfy.model_sampling.V_PREDICTION):
        ends = bool(getattr(current, "zsnr", False))
        schedule = replace(schedule, prediction_type="v_prediction", zero_terminal_snr=ends)
    distilled = family.distilled_timesteps
    if distilled is None and schedule.prediction_type == "epsilon" and isinstance(current, LCM):
        # Chosen by the user, for a LoRA that makes the checkpoint a latent consistency model.
        distilled = getattr(current, "original_timesteps", ModelSamplingDiscreteDistilled.original_timesteps)
    if distilled is None:
        return model_sampling(schedule)
    kind = type("DistilledSampling", (ModelSamplingDiscreteDistilled, LCM), {})
    kind.original_timesteps = distilled
    return kind(type("SamplingConfig", (), {"sampling_settings": sampling_settings(schedule)})())


def _same_sampling(wanted: torch.nn.Module, current: torch.nn.Module) -> bool:
    kinds = comfy.model_sampling.V_PREDICTION, comfy.model_sampling.ModelSamplingDiscrete, LCM
    return all(isinstance(wanted, kind) == isinstance(current, kind) for kind in kinds) and (
        wanted.sigmas.shape == current.sigmas.shape and torch.allclose(wanted.sigmas, current.sigmas.to(wanted.sigmas))
    )


def _replace_weights(patched: ModelPatcher, motion: HostedMotionModel) -> None:
    """The family's own UNet in place of the checkpoint's, as weight patches, before any that are there.

    A LoRA adds to the weights, so it must come after, wherever in the graph it is.
    """
    own = {f"{_UNET}{key}": tuple(weight.shape) for key, weight in patched.model.diffusion_model.state_dict().items()}
    new = {f"{_UNET}{key}": weight for key, weight in motion.spatial.items()}
    if own != {key: tuple(weight.shape) for key, weight in new.items()}:
        raise ValueError(
            f"{motion.model.family.title} brings a whole Stable Diffusion 1.5 UNet, which does not fit this MODEL; "
            "connect a Stable Diffusion 1.5 checkpoint with four input channels."
        )
    patched.add_patches({key: ("set", (weight,)) for key, weight in new.items()})
    for key in new:
        *before, ours = patched.patches[key]
        patched.patches[key] = [ours, *before]


def _start_from_picture(
    executor: Callable, noise: Tensor, latent: Tensor, sampler: object, sigmas: Tensor, *args, **more
):
    """An OUTER_SAMPLE wrapper: of the noise levels, leave out those above what the regions' magnitude allows.

    An empty latent is no picture to start from, and is sampled from pure noise as without us. A pass without noise goes
    on from a noisy latent, which is taken apart into the picture and its noise: the two are what the noise mask holds
    outside the regions, and what levels that are left out need scaled down.
    """
    guider = executor.class_obj
    entries = guider.conds.get("positive", ())
    conds = [cond.get("model_conds", {}) for cond in entries]
    magnitude = strongest([cond[MAGNITUDE].cond for cond in conds if MAGNITUDE in cond])
    if magnitude is None or not torch.count_nonzero(latent) or not sigmas[0] > sigmas[-1]:
        return executor(noise, latent, sampler, sigmas, *args, **more)
    if not torch.count_nonzero(noise):
        picture = next((cond[PICTURE] for cond in entries if PICTURE in cond), None)
        if picture is None or picture.shape[1:] != latent.shape[1:]:  # nothing tells what of it is noise
            return executor(noise, latent, sampler, sigmas, *args, **more)
        clip = start_latents(picture.to(latent), len(latent))
        noise, latent = _LATENTS.process_in(latent - clip) / float(sigmas[0]), clip
    levels = guider.model_patcher.get_model_object("model_sampling").sigmas
    sigmas = late_sigmas(sigmas, levels, start_strength(magnitude))
    if len(sigmas) == 1:
        return latent + _LATENTS.process_out(noise.to(latent) * float(sigmas[0]))
    return executor(noise, latent, sampler, sigmas, *args, **more)


def with_start(family: Family, conditioning: list[list], latents: Tensor) -> list[list]:
    """The positive CONDITIONING, which for families that start from the picture carries it.

    Args:
        latents: The first frame's, 1 4 h w, at the model's scale.
    """
    if family.takes_first_frame:
        return conditioning
    picture = _LATENTS.process_out(latents)
    return [[text, {**options, PICTURE: picture}] for text, options in conditioning]


def clip_latent(family: Family, latents: Tensor, masks: Tensor, length: int) -> dict[str, Tensor]:
    """The LATENT that a clip is sampled from: empty, or for training-free families the picture and what may change.

    Args:
        latents: The first frame's, 1 4 h w, at the model's scale.
        masks: The regions, 1 n h w.
    """
    if family.magnitude != START_NOISE:
        return {"samples": latents.new_zeros(length, *latents.shape[1:])}
    size = (latents.shape[-2], latents.shape[-1])
    return {
        "samples": start_latents(_LATENTS.process_out(latents), length),
        "noise_mask": moving_mask(masks.movedim(1, 0), length, size),
    }


def spoken(text: Tensor, motion_text: Tensor) -> Tensor:
    """The ordinary prompt's embedding with that of the motion prompt behind it, for families whose modules read none.

    Raises:
        ValueError: the two were encoded by CLIPs of different widths.
    """
    if text.shape[-1] != motion_text.shape[-1]:
        raise ValueError(
            f"The positive prompt was encoded by a CLIP of width {text.shape[-1]}, the motion prompt by one of width "
            f"{motion_text.shape[-1]}; connect the checkpoint's CLIP to both."
        )
    # A prompt schedule has a text for each frame.
    return torch.cat([text, motion_text.to(text).expand(len(text), -1, -1)], dim=1)


def with_lora(motion: HostedMotionModel, pairs: LoraPairs, strength: float) -> HostedMotionModel:
    """The motion model with a motion LoRA as weight patches, which the host adds and takes off with the weights."""
    patcher = motion.patcher.clone()
    patcher.add_patches(
        {
            f"{_OURS}{layer}.weight": LoRAAdapter(set(), (up, down, None, None, None, None))
            for layer, (up, down) in pairs.items()
        },
        strength,
    )
    return replace(motion, patcher=patcher)


def in_dtype(motion: HostedMotionModel, dtype: torch.dtype) -> HostedMotionModel:
    """A copy of the motion model in another number format, with the same weight patches.

    Its weights are the clean ones, for those in the module may have other graphs' patches in them now.
    """
    source = motion.patcher
    with torch.device("meta"):
        model = MotionModel(motion.model.params)
    clean = {key.removeprefix(_OURS): patches[0][0] for key, patches in source.get_key_patches(_OURS).items()}
    load_strict(model, {key: weight.to(source.offload_device, dtype) for key, weight in clean.items()}, "The copy")
    patcher = hosted(model.eval())
    patcher.patches = {key: list(patches) for key, patches in source.patches.items()}
    patcher.patches_uuid = source.patches_uuid
    return replace(motion, model=model, patcher=patcher)
