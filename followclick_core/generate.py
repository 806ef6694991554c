"""From a first frame, a mask, a motion prompt and a magnitude to a clip: the method's inference (paper section 4)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .acceleration.crop import box_share, latent_box
from .acceleration.feature_reuse import FeatureCache, ReuseParams, check_depth
from .conditioning import first_frame_condition, resize_mask
from .defaults import GUIDANCE_INTERVAL, GUIDANCE_SCALE, WHOLE_SAMPLING
from .denoiser import ClipDenoiser, Entry, guided_within
from .diffusion.noise import without_temporal_mean
from .diffusion.samplers import Callback, sample_ddim
from .diffusion.schedule import NoiseSchedule, trailing_timesteps
from .models.attach import MotionConditioning, attach
from .models.bundle import ModelBundle
from .models.region_hooks import RegionBlend
from .regions import check_region_mode, latent_shares
from .shapes import Frames, OtherVideo, RegionMasks, Video, fold_frames, unfold_frames
from .windows import context_windows, window_weights

# Latent pixels have this many image pixels on a side.
LATENT_SCALE = 8
DECODED_AT_ONCE = 4


@dataclass(frozen=True)
class SamplingParams:
    """How to sample; the defaults are the paper's (section 5.1), but for trailing timesteps and the noise.

    Args:
        guidance_interval: Guide only in this share of the sampling, 0 to 1, first to last step; outside it the
            unconditional half is not computed (Kynkäänniemi et al. 2024, arXiv:2404.07724). So few steps that none
            lies in it are all guided.
        region_mode: How several regions of a picture are computed, one of regions.REGION_MODES.
        context_length: Clips of more frames are sampled in overlapping windows of so many; None: what the model was
            trained on.
        context_overlap: Frames that neighbouring windows share at least, from 1 on, for each continues from one of
            them; None: a quarter of the window.
        loop: Whether the last frame runs into the first.
        autocast: Compute the UNet's products in this dtype (float16 on a GPU); None: in that of the weights.
        reuse: Reuse deep features between steps, an approximation; None: compute every step whole.
        mean_free_noise: Start from noise without its mean over time (diffusion/noise.py), which steadies what stands
            still; else from independent noise, as the paper does.
        crop_context: Sample only the part around the regions, an approximation: so many sides of their bounding box;
            the rest stays the first frame. None: sample the whole picture.
    """

    num_frames: int = 16
    steps: int = 25
    guidance_scale: float = 7.5
    guidance_rescale: float = 0.0
    guidance_interval: tuple[float, float] = WHOLE_SAMPLING
    region_mode: str = "blended"
    context_length: int | None = None
    context_overlap: int | None = None
    loop: bool = False
    autocast: torch.dtype | None = None
    reuse: ReuseParams | None = None
    mean_free_noise: bool = True
    crop_context: float | None = None

    def __post_init__(self) -> None:
        check_region_mode(self.region_mode)
        start, end = self.guidance_interval
        if not 0 <= start < end <= 1:
            raise ValueError(
                f"The interval of guidance goes from 0 to 1 and has a length; {start:g} to {end:g} has not."
            )
        if self.reuse is not None and self.guidance_interval != WHOLE_SAMPLING:
            raise ValueError("Features cannot be reused where guidance comes and goes; choose one of the two.")


DEMO_SAMPLING = SamplingParams(guidance_scale=GUIDANCE_SCALE, guidance_interval=GUIDANCE_INTERVAL)


def fastest_dtype(device: torch.device) -> torch.dtype | None:
    """For SamplingParams.autocast: bfloat16 on a CPU that multiplies it faster than float32, else None."""
    features = getattr(torch.cpu, "get_capabilities", dict)() if device.type == "cpu" else {}
    return torch.bfloat16 if features.get("avx512_bf16") or features.get("amx_bf16") else None


@torch.inference_mode()
def generate_latents(
    bundle: ModelBundle,
    first_frames: Frames,
    masks: RegionMasks,
    prompts: Sequence[str] | Sequence[Sequence[str]],
    magnitudes: Sequence[float] | Sequence[Sequence[float]],
    seeds: Sequence[int],
    params: SamplingParams,
    callback: Callback | None = None,
) -> OtherVideo:
    """Sample clips' latents, b 4 f h/8 w/8.

    Args:
        first_frames: Pixels 0..1, b 3 h w, sides multiples of the model's.
        masks: 1 = moves, b r h w: one or several regions of each picture.
        prompts: Short motion prompts: one per clip, or with several regions a list per clip, one for each region.
        magnitudes: Pixels per frame at 512 pixels of width, as many as prompts.
        seeds: The same seed gives the same noise on every device.
    """
    device = bundle.device
    z_0 = bundle.autoencoder.encode(first_frames.to(device).contiguous(memory_format=torch.channels_last))
    x_t = initial_noise((4, params.num_frames, *z_0.shape[-2:]), seeds)
    if params.mean_free_noise:
        x_t = without_temporal_mean(x_t, params.context_length or bundle.motion.params.trained_frames)
    x_t = x_t.to(device)
    width_ratio = first_frames.shape[-1] / bundle.preset.size
    numbers = torch.tensor(np.array(magnitudes, dtype=float).reshape(masks.shape[:2]) * width_ratio).float().to(device)
    texts = [[each] if isinstance(each, str) else list(each) for each in prompts]
    clips = _Clips(z_0, x_t, masks.to(device), texts, numbers)
    if params.crop_context is None:
        return _sample(bundle, clips, params, callback)
    # One after another, as each has a part of its own.
    return torch.cat([_sample_part(bundle, clips.only(i), params, callback) for i in range(len(z_0))])


@dataclass(frozen=True)
class _Clips:
    """What a batch of clips is made of; magnitudes count pixels of the model's own size."""

    z_0: Tensor  # b 4 h/8 w/8
    x_t: Tensor  # b 4 f h/8 w/8
    masks: Tensor  # b r h w
    texts: list[list[str]]  # b lists of r
    magnitudes: Tensor  # b r

    def only(self, index: int) -> "_Clips":
        one = slice(index, index + 1)
        return _Clips(self.z_0[one], self.x_t[one], self.masks[one], self.texts[one], self.magnitudes[one])

    def cropped(self, rows: slice, columns: slice) -> "_Clips":
        """The part of these latent rows and columns."""
        y, x = (slice(part.start * LATENT_SCALE, part.stop * LATENT_SCALE) for part in (rows, columns))
        return replace(
            self, z_0=self.z_0[..., rows, columns], x_t=self.x_t[..., rows, columns], masks=self.masks[..., y, x]
        )


def _sample(bundle: ModelBundle, clips: _Clips, params: SamplingParams, callback: Callback | None) -> Tensor:
    """From noise to clips."""
    schedule = NoiseSchedule(bundle.motion.schedule).to(bundle.device)
    if params.reuse is not None:
        check_depth(bundle.unet, params.reuse)
    attachment = attach(bundle.unet, bundle.motion)

    def denoiser(guidance_scale: float) -> ClipDenoiser:
        return ClipDenoiser(
            bundle.unet,
            attachment,
            schedule,
            bundle.motion.layout,
            _entries(bundle, clips, replace(params, guidance_scale=guidance_scale)),
            *_windows(bundle, params),
            guidance_scale,
            params.guidance_rescale,
            guided=guidance_scale != 1,
            autocast=params.autocast,
            features=None if params.reuse is None else FeatureCache(params.reuse, params.steps),
        )

    try:
        predict, timesteps = denoiser(params.guidance_scale), trailing_timesteps(params.steps)
        if params.guidance_interval != WHOLE_SAMPLING:
            trained = schedule.params.num_train_timesteps
            predict = guided_within(params.guidance_interval, predict, denoiser(1.0), timesteps, trained)
        return sample_ddim(predict, schedule, clips.x_t, timesteps, callback)
    finally:
        attachment.detach()


def _sample_part(bundle: ModelBundle, clip: _Clips, params: SamplingParams, callback: Callback | None) -> Tensor:
    """One clip, of which only the part around its regions is sampled; the rest is the first frame."""
    z_0 = clip.z_0
    size = (z_0.shape[-2], z_0.shape[-1])
    assert params.crop_context is not None
    union = resize_mask(clip.masks.amax(1, keepdim=True), size)
    box = latent_box(union, params.crop_context, bundle.unet.params.size_multiple)
    if box is None:
        return _sample(bundle, clip, params, callback)
    rows, columns = box.window
    part = _sample(bundle, clip.cropped(rows, columns), params, callback)
    whole = z_0[:, :, None].repeat(1, 1, params.num_frames, 1, 1)
    share = box_share(box, size).to(whole)[rows, columns]
    whole[..., rows, columns] += share * (part - whole[..., rows, columns])
    return whole


def _windows(bundle: ModelBundle, params: SamplingParams) -> tuple[list[list[int]], list[list[float]]]:
    """The windows' frames, and what these count."""
    length = params.context_length or bundle.motion.params.trained_frames
    overlap = min(max(1, length // 4), length - 1) if params.context_overlap is None else params.context_overlap
    windows = context_windows(params.num_frames, length, overlap, params.loop)
    return windows, [window_weights(window, params.num_frames, overlap, params.loop) for window in windows]


def _entries(bundle: ModelBundle, of: _Clips, params: SamplingParams) -> list[Entry]:
    """What each UNet call of a step is told."""
    z_0, masks, magnitudes = of.z_0, of.masks, of.magnitudes
    texts = [text for each in of.texts for text in each]  # a prompt for each region of each clip, one after the other
    clips, regions = magnitudes.shape
    copies = 1 if params.guidance_scale == 1 else 2
    encoded = bundle.text.encode([*texts, ""])
    empty = encoded[-1:].expand(len(texts), -1, -1)
    halves = [encoded[:-1], *([empty] if copies == 2 else [])]
    contexts = torch.cat([half.reshape(clips, regions, *half.shape[1:]) for half in halves])  # b r n d

    def entry(mask: Tensor, text: Tensor, share: Tensor | None = None, **motion: Any) -> Entry:
        condition = first_frame_condition(z_0, mask, params.num_frames, bundle.motion.layout)
        whole = MotionConditioning(params.num_frames, first_frame=condition.repeat(copies, 1, 1, 1, 1), **motion)
        return Entry(whole, text, share)

    if regions == 1:
        context = contexts[:, 0]
        return [entry(masks, context, context=context, magnitude=magnitudes[:, 0].repeat(copies))]
    shares = latent_shares(masks, (z_0.shape[-2], z_0.shape[-1]))
    if params.region_mode == "blended":
        blend = RegionBlend(shares.repeat(copies, 1, 1, 1), contexts, magnitudes.repeat(copies, 1), contexts)
        return [entry(masks.amax(1, keepdim=True), contexts[:, 0], regions=blend)]
    return [
        entry(masks[:, [r]], contexts[:, r], shares[:, [r]], context=contexts[:, r], magnitude=numbers.repeat(copies))
        for r, numbers in enumerate(magnitudes.unbind(1))
    ]


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
