"""Discrete noise schedule for v-prediction, with zero terminal SNR.

The forward process is x_t = alpha_t x_0 + sigma_t noise, where alpha_t^2 = alphas_cumprod[t] and
sigma_t^2 = 1 - alpha_t^2. Stable Diffusion's schedule stops with a trace of the clean video in its last step, which
pure noise at inference does not have. Shifting and scaling alpha_t to end at zero removes the trace (Lin et al. 2024,
arXiv:2305.08891, Algorithm 1). With alpha_T = 0 the noise says nothing about x_0, so the model predicts
v = alpha_t noise - sigma_t x_0 instead (Salimans & Ho 2022, arXiv:2202.00512; paper section 4.1).
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..shapes import PerTimestep, Timesteps, Video

BETA_SCHEDULES = ("sqrt_linear", "linear")
PREDICTION_TYPES = ("v_prediction", "epsilon")


@dataclass(frozen=True)
class ScheduleParams:
    """A training schedule, in the host's names.

    Args:
        beta_schedule: "sqrt_linear" spaces beta evenly (AnimateDiff, PIA, this method; diffusers calls it "linear");
            "linear" spaces sqrt(beta) evenly (Stable Diffusion; diffusers calls it "scaled_linear").
        prediction_type: What the model gives: "v_prediction", or "epsilon", the noise, as Stable Diffusion 1.5 does.
    """

    num_train_timesteps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: str = "sqrt_linear"
    zero_terminal_snr: bool = True
    prediction_type: str = "v_prediction"

    def __post_init__(self) -> None:
        if self.beta_schedule not in BETA_SCHEDULES:
            raise ValueError(
                f"There is no beta schedule {self.beta_schedule!r}; choose one of {', '.join(BETA_SCHEDULES)}."
            )
        if self.prediction_type not in PREDICTION_TYPES:
            raise ValueError(
                f"There is no prediction type {self.prediction_type!r}; choose one of {', '.join(PREDICTION_TYPES)}."
            )
        if self.prediction_type == "epsilon" and self.zero_terminal_snr:
            raise ValueError(
                "At zero terminal SNR x_t is the noise itself, so predicting it teaches nothing; "
                "choose v_prediction, or a schedule without zero terminal SNR."
            )


class NoiseSchedule(nn.Module):
    """Mixes clean latents with noise, and takes the model's prediction apart again."""

    alphas_cumprod: Tensor

    def __init__(self, params: ScheduleParams):
        super().__init__()
        self.params = params
        alphas_cumprod = training_alphas_cumprod(params)
        if params.zero_terminal_snr:
            alphas_cumprod = rescale_zero_terminal_snr(alphas_cumprod)
        # Not persistent: a checkpoint holds learned weights only.
        self.register_buffer("alphas_cumprod", alphas_cumprod.float(), persistent=False)

    def add_noise(self, x_0: Video, noise: Video, t: Timesteps) -> Video:
        alpha_t, sigma_t = self._coefficients(t)
        return alpha_t * x_0 + sigma_t * noise

    def target(self, x_0: Video, noise: Video, t: Timesteps) -> Video:
        """What the model is trained to give."""
        return noise if self.params.prediction_type == "epsilon" else self.velocity(x_0, noise, t)

    def as_velocity(self, prediction: Video, x_t: Video, t: Timesteps) -> Video:
        """A model's prediction as v, which the samplers take."""
        if self.params.prediction_type == "v_prediction":
            return prediction
        alpha_t, sigma_t = self._coefficients(t)
        return (prediction - sigma_t * x_t) / alpha_t

    def velocity(self, x_0: Video, noise: Video, t: Timesteps) -> Video:
        alpha_t, sigma_t = self._coefficients(t)
        return alpha_t * noise - sigma_t * x_0

    def predict_x_0(self, x_t: Video, v: Video, t: Timesteps) -> Video:
        alpha_t, sigma_t = self._coefficients(t)
        return alpha_t * x_t - sigma_t * v

    def predict_noise(self, x_t: Video, v: Video, t: Timesteps) -> Video:
        alpha_t, sigma_t = self._coefficients(t)
        return sigma_t * x_t + alpha_t * v

    def _coefficients(self, t: Timesteps) -> tuple[Tensor, Tensor]:
        alpha_bar_t = self.alphas_cumprod[t].view(-1, 1, 1, 1, 1)
        return alpha_bar_t.sqrt(), (1 - alpha_bar_t).sqrt()


def training_alphas_cumprod(params: ScheduleParams) -> PerTimestep:
    """Products of 1 - beta; in float64, as the product is long."""
    if params.beta_schedule == "sqrt_linear":
        betas = torch.linspace(params.beta_start, params.beta_end, params.num_train_timesteps, dtype=torch.float64)
    else:
        roots = params.beta_start**0.5, params.beta_end**0.5
        betas = torch.linspace(*roots, params.num_train_timesteps, dtype=torch.float64) ** 2
    return (1 - betas).cumprod(dim=0)


def rescale_zero_terminal_snr(alphas_cumprod: PerTimestep) -> PerTimestep:
    """Move alpha_T to zero and leave alpha_0 where it is."""
    alpha = alphas_cumprod.sqrt()
    return ((alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])) ** 2


def leading_timesteps(num_inference_steps: int, num_train_timesteps: int = 1000) -> list[int]:
    """Descending timesteps that end at 1 and stop short of the last: how the authors' release and AnimateDiff sample.

    Raises:
        ValueError: fewer than one step, or more steps than the schedule has.
    """
    _check_steps(num_inference_steps, num_train_timesteps)
    stride = num_train_timesteps // num_inference_steps
    return [min(index * stride + 1, num_train_timesteps - 1) for index in reversed(range(num_inference_steps))]


def trailing_timesteps(num_inference_steps: int, num_train_timesteps: int = 1000) -> list[int]:
    """Descending timesteps that begin at the last, T - 1, as zero terminal SNR needs (Lin et al. 2024, section 3.3).

    Raises:
        ValueError: fewer than one step, or more steps than the schedule has.
    """
    _check_steps(num_inference_steps, num_train_timesteps)
    stride = num_train_timesteps / num_inference_steps
    return [round(num_train_timesteps - index * stride) - 1 for index in range(num_inference_steps)]


# By name: what Motion Schedule offers.
SPACINGS = {"trailing": trailing_timesteps, "leading": leading_timesteps}


def _check_steps(num_inference_steps: int, num_train_timesteps: int) -> None:
    if not 1 <= num_inference_steps <= num_train_timesteps:
        raise ValueError(f"Steps must be from 1 to {num_train_timesteps}, got {num_inference_steps}.")
