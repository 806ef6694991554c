"""What a trained variant does on held-out clips, a number per clip, by torch alone.

The scenes' motion is known, and verb and magnitude determine it, so a sampled clip can be held against the true one.
Errors are mean squares of 8-bit values, as the paper's I1-MSE; speeds are in pixels per frame at 512 pixels of width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..conditioning import first_frame_condition
from ..diffusion.schedule import NoiseSchedule
from ..generate import SamplingParams, decode_clip, generate_latents, initial_noise
from ..models.attach import MotionConditioning, attach
from ..models.bundle import ModelBundle
from ..shapes import Masks, PerSample, Video, fold_frames, unfold_frames
from .clips import HeldOutClips
from .scenes import SWEEP_MAGNITUDES
from .tracking import Velocities, track, velocities
from .variants import Variant

Rows = dict[str, list[Any]]

# Of the speed asked: what is slower does not count as moving that way.
LEAST_SPEED = 0.25


@dataclass(frozen=True)
class ScoringParams:
    """How variants are asked.

    Args:
        timesteps: At which the denoising loss is taken.
        sweep: Magnitudes that the sweep asks for.
        batch: Clips sampled at once.
    """

    timesteps: tuple[int, ...] = (200, 400, 600, 800, 999)
    steps: int = 12
    guidance_scale: float = 3.0
    sweep: tuple[float, ...] = SWEEP_MAGNITUDES
    batch: int = 96


@torch.inference_mode()
def score(
    bundle: ModelBundle,
    held_out: HeldOutClips,
    sweep: HeldOutClips,
    variant: Variant,
    expected: Mapping[float, float],
    params: ScoringParams,
) -> Rows:
    """Figures by name, a list with an entry per clip; the sweep's with an entry per clip and number asked.

    Args:
        expected: What the sweep asks for (magnitudes, or frame rates) -> the speed that this promises.
    """
    numbers = held_out[variant.condition]
    frames = _sample(bundle, held_out, numbers, params)
    rows = denoising_losses(bundle, held_out, numbers, params) | _clip_figures(bundle, held_out, frames)
    measured = []
    for number in expected:
        taken = _sample(bundle, sweep, torch.full_like(sweep["magnitude"], number), params)
        measured.append(velocities(track(taken, sweep["silhouette"])).norm(dim=1) * (512 / taken.shape[-1]))
    rows |= {"sweep": torch.stack(measured, dim=1)}
    lists: Rows = {name: _rounded(values) for name, values in rows.items()}
    return {**lists, "sweep_asked": list(expected), "sweep_expected": [round(value, 3) for value in expected.values()]}


def denoising_losses(
    bundle: ModelBundle, clips: HeldOutClips, numbers: PerSample, params: ScoringParams
) -> dict[str, PerSample]:
    """Mean squared error of v over the swept region and outside of it, at fixed timesteps and noise, with the whole
    first frame and the prompt, as at inference."""
    latents = clips["latents"]
    schedule = NoiseSchedule(bundle.motion.schedule).to(latents.device)
    noise = initial_noise(tuple(latents.shape[1:]), range(len(clips))).to(latents.device)
    region = torch.nn.functional.adaptive_max_pool2d(clips["swept"], latents.shape[-2:])
    attachment = attach(bundle.unet, bundle.motion)
    errors = []
    try:
        for rows in torch.arange(len(clips), device=latents.device).split(params.batch):
            part = [_errors_at(bundle, attachment, schedule, clips, rows, noise, numbers, t) for t in params.timesteps]
            errors.append(torch.stack(part).mean(0))
    finally:
        attachment.detach()
    error = torch.cat(errors)
    inside = (error * region).sum((1, 2, 3)) / region.sum((1, 2, 3)).clamp(min=1)
    outside = (error * (1 - region)).sum((1, 2, 3)) / (1 - region).sum((1, 2, 3)).clamp(min=1)
    return {"loss_inside": inside, "loss_outside": outside}


def _errors_at(
    bundle: ModelBundle,
    attachment: Any,
    schedule: NoiseSchedule,
    clips: HeldOutClips,
    rows: Tensor,
    noise: Video,
    numbers: PerSample,
    timestep: int,
) -> Float[Tensor, "b 1 h w"]:
    """Squared error of v, the mean over channels and frames."""
    x_0, mask = clips["latents"][rows], clips["silhouette"][rows]
    frames = x_0.shape[2]
    t = torch.full((len(rows),), timestep, device=x_0.device)
    condition = first_frame_condition(x_0[:, :, 0], mask, frames, bundle.motion.layout)
    x_t = schedule.add_noise(x_0, noise[rows], t)
    with torch.autocast(x_0.device.type, torch.bfloat16, enabled=x_0.device.type == "cuda"):
        context = bundle.text(clips.tensors["tokens"][rows])
        conditioning = MotionConditioning(frames, context, numbers[rows], condition)
        timesteps = t.repeat_interleave(frames)
        with attachment.conditioned(conditioning, timesteps):
            v = bundle.unet(fold_frames(x_t), timesteps, context.repeat_interleave(frames, dim=0))
    error = unfold_frames(v.float(), len(rows)) - schedule.velocity(x_0, noise[rows], t)
    return error.square().mean((1, 2))[:, None]


def _sample(bundle: ModelBundle, clips: HeldOutClips, numbers: PerSample, params: ScoringParams) -> Video:
    """A clip per scene, pixels 0..1; scene i starts from the noise of seed i, whatever the number."""
    first, masks = clips["frames"][:, :, 0], clips["silhouette"]
    sampling = SamplingParams(
        clips.tensors["frames"].shape[2],
        params.steps,
        params.guidance_scale,
        mean_free_noise=False,  # as the paper's, and as in the runs of before
    )
    made = []
    for start in range(0, len(clips), params.batch):
        rows = slice(start, start + params.batch)
        prompts: Sequence[str] = clips.prompts[rows]
        seeds = range(start, start + len(prompts))
        with torch.autocast(first.device.type, torch.bfloat16, enabled=first.device.type == "cuda"):
            latents = generate_latents(
                bundle, first[rows], masks[rows], prompts, numbers[rows].tolist(), seeds, sampling
            )
        made.append(decode_clip(bundle, latents.float()))
    return torch.cat(made)


def _clip_figures(bundle: ModelBundle, clips: HeldOutClips, frames: Video) -> dict[str, PerSample]:
    truth, swept = clips["frames"], clips["swept"]
    photo, first = truth[:, :, 0], frames[:, :, 0]
    round_trip = decode_clip(bundle, bundle.autoencoder.encode(photo)[:, :, None])[:, :, 0]
    velocity = velocities(track(frames, clips["silhouette"])) * (512 / frames.shape[-1])
    asked = clips["magnitude"]
    return {
        "clip_error": _mean_inside((frames - truth).square(), swept) * 255**2,
        "still_error": _mean_inside((photo[:, :, None] - truth).square(), swept) * 255**2,
        "first_frame_mse": (first - photo).square().mean((1, 2, 3)) * 255**2,
        "round_trip_mse": (round_trip - photo).square().mean((1, 2, 3)) * 255**2,
        "leak": _mean_inside((frames - first[:, :, None]).abs(), 1 - swept) * 255,
        "speed": velocity.norm(dim=1),
        "magnitude": asked,
        "along": (velocity * clips["direction"]).sum(1) / asked,
        "obeys": obedience(velocity, clips["direction"], asked),
    }


def obedience(velocity: Velocities, directions: Velocities, asked: PerSample) -> PerSample:
    """1 where an object moves within 45° of the way asked, at LEAST_SPEED of the speed asked or faster, else 0."""
    speed = velocity.norm(dim=1)
    right_way = (velocity * directions).sum(1) >= speed * 0.5**0.5
    return (right_way & (speed >= LEAST_SPEED * asked)).float()


def _mean_inside(values: Video, region: Masks) -> PerSample:
    """The mean over a region's pixels, all frames and channels."""
    values = values.mean((1, 2))[:, None]
    return (values * region).sum((1, 2, 3)) / region.sum((1, 2, 3)).clamp(min=1)


def _rounded(values: Tensor) -> list[Any]:
    return [[round(x, 5) for x in row] if isinstance(row, list) else round(row, 5) for row in values.cpu().tolist()]
