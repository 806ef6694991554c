"""The spatial blocks of Stable Diffusion's UNet, under the key names of the original (LDM) checkpoints.

The layers and their order are those of Rombach et al. 2022 (arXiv:2112.10752), so that SD1.5 files load strictly and
the host's UNet, built from the same numbers, computes the same.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..shapes import Frames, FramesOfOtherSize, FramesOfOtherWidth, Positions, Tokens


class ResBlock(nn.Module):
    """Two convolutions with the time embedding added between them."""

    def __init__(self, in_channels: int, time_channels: int, out_channels: int):
        super().__init__()
        self.in_layers = nn.Sequential(
            nn.GroupNorm(32, in_channels), nn.SiLU(), nn.Conv2d(in_channels, out_channels, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(time_channels, out_channels))
        self.out_layers = nn.Sequential(
            nn.GroupNorm(32, out_channels),
            nn.SiLU(),
            nn.Identity(),  # dropout in the original: keeps the convolution at index 3
            zero_(nn.Conv2d(out_channels, out_channels, 3, padding=1)),
        )
        same = in_channels == out_channels
        self.skip_connection = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Frames, emb: Tensor) -> FramesOfOtherWidth:
        h = self.in_layers(x) + self.emb_layers(emb)[:, :, None, None]
        return self.skip_connection(x) + self.out_layers(h)


class Downsample(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Frames) -> FramesOfOtherSize:
        return self.op(x)


class Upsample(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Frames, size: tuple[int, int]) -> FramesOfOtherSize:
        return self.conv(F.interpolate(x, size=size, mode="nearest"))


class Attention(nn.Module):
    """Multi-head attention; self-attention where `context` is the input itself."""

    def __init__(self, channels: int, context_dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(context_dim, channels, bias=False)
        self.to_v = nn.Linear(context_dim, channels, bias=False)
        self.to_out = nn.Sequential(nn.Linear(channels, channels), nn.Identity())

    def forward(self, x: Positions, context: Tokens) -> Positions:
        q, k, v = (
            rearrange(t, "b n (heads d) -> b heads n d", heads=self.num_heads)
            for t in (self.to_q(x), self.to_k(context), self.to_v(context))
        )
        return self.to_out(rearrange(F.scaled_dot_product_attention(q, k, v), "b heads n d -> b n (heads d)"))


class GEGLU(nn.Module):
    """Gated linear unit with GELU (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.proj = nn.Linear(channels, 2 * hidden)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.net = nn.Sequential(GEGLU(channels, 4 * channels), nn.Identity(), nn.Linear(4 * channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class BasicTransformerBlock(nn.Module):
    """Self-attention over the picture, cross-attention to the text, feed-forward."""

    def __init__(self, channels: int, context_dim: int, num_heads: int):
        super().__init__()
        self.attn1 = Attention(channels, channels, num_heads)
        self.ff = FeedForward(channels)
        self.attn2 = Attention(channels, context_dim, num_heads)
        self.norm1 = nn.LayerNorm(channels)
        self.norm2 = nn.LayerNorm(channels)
        self.norm3 = nn.LayerNorm(channels)

    def forward(self, x: Positions, context: Tokens) -> Positions:
        h = self.norm1(x)
        x = x + self.attn1(h, h)
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    """Transformer over the positions of each frame by itself."""

    def __init__(self, channels: int, context_dim: int, num_heads: int, depth: int):
        super().__init__()
        self.norm = nn.GroupNorm(32, channels, eps=1e-6)
        self.proj_in = nn.Conv2d(channels, channels, 1)
        self.transformer_blocks = nn.ModuleList(
            BasicTransformerBlock(channels, context_dim, num_heads) for _ in range(depth)
        )
        self.proj_out = zero_(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Frames, context: Tokens) -> Frames:
        height, width = x.shape[-2:]
        h = rearrange(self.proj_in(self.norm(x)), "b c h w -> b (h w) c").contiguous()
        for block in self.transformer_blocks:
            h = block(h, context)
        h = rearrange(h, "b (h w) c -> b c h w", h=height, w=width)
        return x + self.proj_out(h)


def zero_(layer: nn.Module) -> nn.Module:
    """Zero a layer's parameters, so that the branch it ends contributes nothing at first."""
    for parameter in layer.parameters():
        torch.nn.init.zeros_(parameter)
    return layer
