"""From a first frame, a mask, a motion prompt and a magnitude to a clip: the method's inference (paper section 4)."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from .conditioning import first_frame_condition
from .diffusion.guidance import guide
from .diffusion.samplers import Callback, Denoiser, sample_ddim
from .diffusion.schedule import NoiseSchedule, trailing_timesteps
from .models.attach import MotionConditioning, attach
from .models.bundle import ModelBundle
from .shapes import Frames, Masks, OtherVideo, Video, fold_frames, unfold_frames

# Latent pixels have this many image pixels on a side.
LATENT_SCALE = 8
DECODED_AT_ONCE = 4


@dataclass(frozen=True)
class SamplingParams:
    """How to sample; the defaults are the paper's (section 5.1), with trailing timesteps.

    Args:
        autocast: Compute the UNet's products in this dtype (float16 on a GPU); None: in that of the weights.
    """

    num_frames: int = 16
    steps: int = 25
    guidance_scale: float = 7.5
    guidance_rescale: float = 0.0
    autocast: torch.dtype | None = None


@torch.inference_mode()
def generate_latents(
    bundle: ModelBundle,
    first_frames: Frames,
    masks: Masks,
    prompts: Sequence[str],
    magnitudes: Sequence[float],
    seeds: Sequence[int],
    params: SamplingParams,
    callback: Callback | None = None,
) -> OtherVideo:
    """Sample clips' latents, b 4 f h/8 w/8.

    Args:
        first_frames: Pixels 0..1, b 3 h w, sides multiples of the model's.
        masks: 1 = moves, b 1 h w.
        prompts: Short motion prompts, one per clip.
        magnitudes: Pixels per frame at 512 pixels of width.
        seeds: The same seed gives the same noise on every device.
    """
    device = bundle.device
    schedule = NoiseSchedule(bundle.motion.schedule).to(device)
    z_0 = bundle.autoencoder.encode(first_frames.to(device).contiguous(memory_format=torch.channels_last))
    condition = first_frame_condition(z_0, masks.to(device), params.num_frames, bundle.motion.layout)
    x_t = initial_noise((4, params.num_frames, *z_0.shape[-2:]), seeds).to(device)
    width_ratio = first_frames.shape[-1] / bundle.preset.size
    magnitude = torch.tensor([float(value) for value in magnitudes], device=device) * width_ratio
    attachment = attach(bundle.unet, bundle.motion)
    try:
        guided = params.guidance_scale != 1
        texts = [*prompts, *([""] * len(prompts) if guided else [])]
        context = bundle.text.encode(texts)
        copies = 2 if guided else 1
        conditioning = MotionConditioning(
            params.num_frames, context, magnitude.repeat(copies), condition.repeat(copies, 1, 1, 1, 1)
        )
        with attachment.conditioned(conditioning):
            predict_v = _guided_model(bundle, schedule, context, params, copies)
            return sample_ddim(predict_v, schedule, x_t, trailing_timesteps(params.steps), callback)
    finally:
        attachment.detach()


@torch.inference_mode()
def decode_clip(bundle: ModelBundle, latents: Video, callback: Callback | None = None) -> OtherVideo:
    """Latents b 4 f h w to pixels 0..1, b 3 f 8h 8w; a few frames at a time, for the decoder's memory is large."""
    frames = fold_frames(latents).split(DECODED_AT_ONCE)
    decoded = []
    for index, part in enumerate(frames):
        decoded.append(bundle.autoencoder.decode(part).clamp(0, 1))
        if callback is not None:
            callback(index + 1, len(frames))
    return unfold_frames(torch.cat(decoded), len(latents))


def initial_noise(shape: tuple[int, ...], seeds: Sequence[int]) -> Tensor:
    """Unit noise from a CPU generator per clip, float32, so that a seed means the same on every device."""
    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(int(seed))) for seed in seeds])


def _guided_model(
    bundle: ModelBundle, schedule: NoiseSchedule, context: Tensor, params: SamplingParams, copies: int
) -> Denoiser:
    frame_context = context.repeat_interleave(params.num_frames, dim=0)

    def predict_v(x_t: Video, t: Tensor) -> Video:
        timesteps = t.repeat(copies).repeat_interleave(params.num_frames)
        noisy = x_t.repeat(copies, 1, 1, 1, 1)
        with torch.autocast(x_t.device.type, params.autocast) if params.autocast else nullcontext():
            prediction = bundle.unet(fold_frames(noisy), timesteps, frame_context)
        # Guidance multiplies rounding errors, so it is left to float32.
        prediction = unfold_frames(prediction.to(noisy.dtype), len(noisy))
        v = schedule.as_velocity(prediction, noisy, t.repeat(copies))
        if copies == 1:
            return v
        v_cond, v_uncond = v.chunk(2)
        return guide(v_cond, v_uncond, params.guidance_scale, params.guidance_rescale)

    return predict_v
