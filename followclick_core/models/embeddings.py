"""Numbers as vectors: the timestep, and how strongly the region is to move."""

import math

import torch
from jaxtyping import Float, Num
from torch import Tensor, nn

from .blocks import zero_

Numbers = Num[Tensor, "b"]
Embeddings = Float[Tensor, "b c"]


def sinusoidal_embedding(values: Numbers, width: int, max_period: float = 10000.0) -> Embeddings:
    """cos, then sin, of the values at width / 2 frequencies from 1 to 1 / max_period (Vaswani et al. 2017), float32."""
    half = width // 2
    exponents = torch.arange(half, dtype=torch.float32, device=values.device) / half
    angles = values.float()[:, None] * torch.exp(-math.log(max_period) * exponents)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class ScalarEmbedding(nn.Module):
    """One number per clip as an addition to the time embedding: sinusoid of the timestep's width, then a two-layer MLP.

    The paper feeds the mean flow magnitude of the moving region this way ("flow-based motion magnitude control",
    section 4.4). The last layer starts at zero, so an untrained embedding changes nothing.
    """

    def __init__(self, width: int, time_channels: int):
        super().__init__()
        self.width = width
        self.linear_1 = nn.Linear(width, time_channels)
        self.linear_2 = zero_(nn.Linear(time_channels, time_channels))

    def forward(self, values: Numbers) -> Embeddings:
        h = sinusoidal_embedding(values, self.width).to(self.linear_1.weight.dtype)
        return self.linear_2(torch.nn.functional.silu(self.linear_1(h)))
