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

from ..followclick_core.families import START_NOISE, Family
from ..followclick_core.families.start import late_sigmas, moving_mask, start_latents, start_strength, strongest
from ..followclick_core.models.lora import LoraPairs
from .host_models import model_sampling, sampling_settings
from .sockets import HostedMotionModel

START_KEY = "followclick_start"
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
    if family.distilled_timesteps is None:
        return model_sampling(schedule)
    kind = type("DistilledSampling", (ModelSamplingDiscreteDistilled, LCM), {})
    kind.original_timesteps = family.distilled_timesteps
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

    An empty latent is no picture to start from, and is sampled from pure noise as without us.
    """
    guider = executor.class_obj
    conds = [cond.get("model_conds", {}) for cond in guider.conds.get("positive", ())]
    magnitude = strongest([cond["motion_magnitude"].cond for cond in conds if "motion_magnitude" in cond])
    if magnitude is not None and torch.count_nonzero(latent):
        levels = guider.model_patcher.get_model_object("model_sampling").sigmas
        sigmas = late_sigmas(sigmas, levels, start_strength(magnitude))
    return executor(noise, latent, sampler, sigmas, *args, **more)


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
        "samples": start_latents(comfy.latent_formats.SD15().process_out(latents), length),
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
    return torch.cat([text, motion_text.to(text)], dim=1)


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


def hand_patches_on(source: ModelPatcher, target: ModelPatcher) -> ModelPatcher:
    """`target` with the weight patches of `source`, whose module has the same names."""
    target.patches = {key: list(patches) for key, patches in source.patches.items()}
    target.patches_uuid = source.patches_uuid
    return target
