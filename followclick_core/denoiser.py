"""The guided model of whole clips, as a sampler takes it: regions, guidance, context windows and loops."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .acceleration.feature_reuse import FeatureCache, reusing_call
from .diffusion.guidance import guide
from .diffusion.samplers import Denoiser
from .diffusion.schedule import NoiseSchedule
from .models.attach import Attachment, MotionConditioning
from .models.unet import UNet
from .shapes import Timesteps, Tokens, Video, fold_frames, unfold_frames
from .windows import blend_windows, continued_condition


@dataclass(frozen=True)
class Entry:
    """One UNet call's conditioning; with guidance its batch holds the prompts' half and then the empty prompts'.

    Args:
        motion: For the whole clip; a window gets its part.
        context: The text for the spatial cross-attention, per clip.
        share: Where in the picture the prediction counts, b 1 h w; None: everywhere.
    """

    motion: MotionConditioning
    context: Tokens
    share: Tensor | None = None


@dataclass(frozen=True)
class ClipDenoiser:
    """(x_t, t) -> v.

    Args:
        windows: Frame numbers of each window (windows.context_windows).
        weights: What each frame of each window counts (windows.window_weights).
        guided: Whether the entries hold an unguided half.
        autocast: Compute the UNet's products in this dtype; None: in that of the weights.
        features: Deep features of this sampling to reuse between steps; None: every step is computed whole.
    """

    unet: UNet
    attachment: Attachment
    schedule: NoiseSchedule
    layout: str
    entries: list[Entry]
    windows: list[list[int]]
    weights: list[list[float]]
    guidance_scale: float
    guidance_rescale: float
    guided: bool
    autocast: torch.dtype | None = None
    features: FeatureCache | None = None

    def __call__(self, x_t: Video, t: Timesteps) -> Video:
        if self.features is not None:
            self.features.next_evaluation()
        parts: list[Tensor] = []
        for index, window in enumerate(self.windows):
            begin = None
            if window[0] != 0:  # where the windows before leave off
                weights = self.weights[:index]
                so_far = blend_windows(parts, self.windows[:index], weights, x_t.shape[2], dim=2)
                so_far = so_far[: len(x_t), :, window[0]]
                begin = self.schedule.predict_x_0(x_t[:, :, window[:1]], so_far[:, :, None], t)[:, :, 0]
            parts.append(self._predict(x_t[:, :, window], t, window, begin))
        v = blend_windows(parts, self.windows, self.weights, x_t.shape[2], dim=2) if len(parts) > 1 else parts[0]
        if not self.guided:
            return v
        v_cond, v_uncond = v.chunk(2)
        return guide(v_cond, v_uncond, self.guidance_scale, self.guidance_rescale)

    def _predict(self, x_t: Video, t: Timesteps, window: list[int], begin: Tensor | None) -> Tensor:
        """v of one window, b c f h w; with guidance of both halves, one after the other in the batch."""
        copies, frames = (2 if self.guided else 1), len(window)
        noisy, steps = x_t.repeat(copies, 1, 1, 1, 1), t.repeat(copies)
        parts = []
        for index, entry in enumerate(self.entries):
            motion = self._of_window(entry.motion, window, begin)
            context = entry.context.repeat_interleave(frames, dim=0)
            autocast = torch.autocast(x_t.device.type, self.autocast) if self.autocast else nullcontext()
            inputs = (fold_frames(noisy), steps.repeat_interleave(frames), context)
            with self.attachment.conditioned(motion, inputs[1]), autocast:
                if self.features is None:
                    predicted = self.unet(*inputs)
                else:
                    predicted = reusing_call(self.features, self.unet, (index, *window), *inputs)
            # Guidance multiplies rounding errors, so it is left to float32.
            v = self.schedule.as_velocity(unfold_frames(predicted.to(noisy.dtype), len(noisy)), noisy, steps)
            parts.append(v if entry.share is None else v * entry.share.repeat(copies, 1, 1, 1)[:, :, None])
        return parts[0] if len(parts) == 1 else torch.stack(parts).sum(0)

    def _of_window(self, motion: MotionConditioning, window: list[int], begin: Tensor | None) -> MotionConditioning:
        condition = motion.first_frame
        if len(self.windows) == 1 or condition is None:
            return motion
        if begin is None:
            condition = condition[:, :, window]
        else:
            begin = begin.repeat(len(condition) // len(begin), 1, 1, 1)
            condition = continued_condition(condition, window, begin, self.layout)
        return replace(motion, num_frames=len(window), first_frame=condition)


def guided_within(
    interval: tuple[float, float],
    guided: Denoiser,
    unguided: Denoiser,
    timesteps: Sequence[int],
    num_train_timesteps: int,
) -> Denoiser:
    """`guided` while the share of the sampling that is done lies in `interval`, `unguided` outside it.

    If none of so few steps lies in it, all are guided: what was asked for must have its effect.
    """
    start, end = interval

    def within(t: int) -> bool:
        return start <= 1 - (t + 1) / num_train_timesteps <= end

    if not any(within(t) for t in timesteps):
        return guided
    return lambda x_t, t: guided(x_t, t) if within(int(t.max())) else unguided(x_t, t)
