"""Where the picture stands still, the first frame itself: a gate between it and the UNet's prediction.

With a first frame that is known, most of a clip is known too: it stands still. A UNet must compute that all the same,
through its norms and nonlinear layers, and never does so exactly; what is left shimmers. So one more channel, read off
the UNet's last features, says for each cell of each frame how far it shows the first frame unchanged, and there the
prediction is what a clip standing still would have:

    v = (1 - k g) v_unet + k g v_still,    v_still = (alpha_t x_t - c) / sigma_t,

with c the first frame's latents. It knows no region mask; training on scenes tells it besides what stands still
(training/still_loss.py). It is a departure from the paper. Composing a clip from a still background and a moving
foreground by a learned mask is Vondrick et al. 2016 (arXiv:1609.02612). k = min(1, sigma_t / 0.2) shuts it where there
is hardly any noise: v_still would multiply what moved by 1 / sigma_t there.
"""

import functools

import torch
from torch import Tensor, nn

from ..diffusion.schedule import NoiseSchedule, ScheduleParams
from ..shapes import Frames, OtherFrames
from .blocks import zero_

# sigmoid(-4) = 0.018: a new gate is all but shut.
SHUT = -4.0
LEAST_SIGMA = 0.2


class StillGate(nn.Module):
    """The gate of one motion model.

    Args:
        channels: Of the UNet's last features.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.conv = zero_(nn.Conv2d(channels, 1, 3, padding=1))
        nn.init.constant_(self.conv.bias, SHUT)  # type: ignore[arg-type]

    def forward(
        self,
        features: OtherFrames,
        prediction: Frames,
        x_t: Frames,
        first_frame: Frames,
        timesteps: Tensor,
        schedule: ScheduleParams,
    ) -> Frames:
        """The UNet's prediction, replaced where the clip stands still; float32.

        Args:
            features: What the UNet's last convolution reads, (b f) c h w.
            prediction: What it gives. x_t: The noisy latents. first_frame: The latents c, for each frame.
            timesteps: 0 … 999 for each of the (b f) frames; a host's may be fractional.
            schedule: What the UNet predicts, and at which noise levels.
        """
        gate = self.conv(features.to(next(self.conv.parameters()).dtype)).float().sigmoid()
        t = timesteps.round().long().clamp(0, schedule.num_train_timesteps - 1)
        alpha, sigma = _coefficients(schedule, x_t.device)[:, t].view(2, -1, 1, 1, 1)
        x_t, first_frame = x_t.float(), first_frame.float()
        noise = (x_t - alpha * first_frame) / sigma
        velocity = schedule.prediction_type == "v_prediction"
        still = alpha * noise - sigma * first_frame if velocity else noise
        # A cell that is zero in all channels was masked in training: nothing is known of it.
        known = (first_frame != 0).any(dim=1, keepdim=True)
        share = gate * known * (sigma / LEAST_SIGMA).clamp(max=1)
        # Not rounded to half precision, or what stands still would shimmer after all.
        return torch.lerp(prediction.float(), still, share)


# Never thrown away: recorded calls keep its address.
@functools.cache
def _coefficients(params: ScheduleParams, device: torch.device) -> Tensor:
    """alpha_t and sigma_t of every timestep, [2, T]; float32, whatever a host casts the model's weights to."""
    # Hosts sample in inference mode, whose tensors no later training could use.
    with torch.inference_mode(False):
        alphas_cumprod = NoiseSchedule(params).alphas_cumprod
        return torch.stack([alphas_cumprod.sqrt(), (1 - alphas_cumprod).sqrt()]).to(device)
