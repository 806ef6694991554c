"""Samplers: functions that take the model as a function and know nothing else about it."""

from collections.abc import Callable, Sequence

import torch

from ..shapes import Timesteps, Video
from .schedule import NoiseSchedule

Denoiser = Callable[[Video, Timesteps], Video]  # (x_t, t) -> v
Callback = Callable[[int, int], None]  # (steps done, steps in all)


def sample_ddim(
    predict_v: Denoiser,
    schedule: NoiseSchedule,
    x_t: Video,
    timesteps: Sequence[int],
    callback: Callback | None = None,
) -> Video:
    """Walk x_t down `timesteps` by DDIM without noise (Song et al. 2021, arXiv:2010.02502, equation 12).

    Args:
        predict_v: The guided model, (x_t, t) -> v.
        timesteps: Descending; the first must be the schedule's last timestep if x_t is pure noise.
        callback: Told after each step; what it raises ends the walk.
    """
    for index, step in enumerate(timesteps):
        t = torch.full((len(x_t),), step, device=x_t.device, dtype=torch.long)
        v = predict_v(x_t, t)
        x_0 = schedule.predict_x_0(x_t, v, t)
        if index + 1 < len(timesteps):
            noise = schedule.predict_noise(x_t, v, t)
            x_t = schedule.add_noise(x_0, noise, torch.full_like(t, timesteps[index + 1]))
        else:
            x_t = x_0
        if callback is not None:
            callback(index + 1, len(timesteps))
    return x_t
