"""The temporal transformer after each spatial block: AnimateDiff's, with the paper's motion-augmented cross-attention.

Sub-modules carry AnimateDiff's names (Guo et al. 2023, arXiv:2307.04725), so its checkpoints load without a key map.
"""

import functools
import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from ..shapes import Frames, Tokens
from . import motion_ops
from .blocks import FeedForward, zero_
from .region_hooks import blended_attention
from .temporal_attention import attend_over_time
from .text_attention import attend_to_text

FrameTokens = Float[Tensor, "bhw f c"]  # one row per pixel, a token per frame
Rows = Float[Tensor, "rows c"]  # the same with pixels and frames in one
KeyValue = tuple[Tensor, Tensor]


class RegionKeyValue(NamedTuple):
    """Keys and values of several regions' motion texts, (b r) heads n d, and each one's share of a pixel, b r hw."""

    key: Tensor
    value: Tensor
    shares: Tensor


MotionText = KeyValue | RegionKeyValue


def texts_of_clips(text: MotionText) -> list[MotionText]:
    """Each clip's own part of what attention reads."""
    if not isinstance(text, RegionKeyValue):
        return list(zip(text[0].split(1), text[1].split(1), strict=True))
    regions = text.shares.shape[1]
    parts = (text.key.split(regions), text.value.split(regions), text.shares.split(1))
    return [RegionKeyValue(*part) for part in zip(*parts, strict=True)]


# Above this many bytes the hidden state of the feed-forward (8 times as wide as its input) is made in pieces.
MAX_FEED_FORWARD_BYTES = 256 * 2**20
# Above this many bytes the packed queries, keys and values of the frames are made in pieces, without gradients, and the
# text is read clip by clip, which takes as much. The 240 MiB of 16 guided frames at 512 pixels would be a step's peak
# once the UNet's transformers take less.
MAX_PACKED_BYTES = 160 * 2**20


class TemporalAttention(nn.Module):
    """Attention over frames, or from frames to the motion text.

    The positional encoding is computed where it is used: AnimateDiff stores it as a buffer, which the host's low-memory
    mode would leave on the wrong device.
    """

    def __init__(self, channels: int, num_heads: int, context_dim: int | None = None):
        super().__init__()
        self.num_heads = num_heads
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(context_dim or channels, channels, bias=False)
        self.to_v = nn.Linear(context_dim or channels, channels, bias=False)
        self.to_out = nn.Sequential(nn.Linear(channels, channels))

    def attend_frames(self, x: FrameTokens) -> FrameTokens:
        """Self-attention: each pixel looks along time."""
        return self.to_out(self.mix_frames(x, self.packed_weight()))

    def attend_text(self, x: FrameTokens, text: MotionText) -> FrameTokens:
        """Cross-attention of all frames and pixels of a clip to that clip's motion text, or to its regions' texts."""
        return self.to_out(self.read_text(x, text))

    def packed_weight(self) -> Float[Tensor, "three_c c"]:
        """One product instead of three reads the activations once."""
        return torch.cat([self.to_q.weight, self.to_k.weight, self.to_v.weight])

    def mix_frames(self, x: FrameTokens, weight: Float[Tensor, "three_c c"]) -> FrameTokens:
        """`attend_frames` before the last linear layer."""
        return attend_over_time(F.linear(x, weight), self.num_heads)

    def read_text(self, x: FrameTokens, text: MotionText) -> FrameTokens:
        """`attend_text` before the last linear layer."""
        if isinstance(text, RegionKeyValue):
            return self._read_region_texts(x, text)
        return attend_to_text(self.to_q(x), *text)

    def _read_region_texts(self, x: FrameTokens, text: RegionKeyValue) -> FrameTokens:
        (clips, regions), frames = text.shares.shape[:2], x.shape[1]
        q = rearrange(self.to_q(x), "(b hw) f (heads d) -> b heads (hw f) d", b=clips, heads=self.num_heads)
        k, v = (rearrange(t, "(b r) heads n d -> b r heads n d", r=regions) for t in (text.key, text.value))
        h = blended_attention(q, k, v, text.shares.repeat_interleave(frames, dim=2))
        return rearrange(h, "b heads (hw f) d -> (b hw) f (heads d)", f=frames)

    def project_text(self, context: Tokens) -> KeyValue:
        """Keys and values of the motion text; all pixels, frames and steps share them."""
        k, v = (
            rearrange(t, "b n (heads d) -> b heads n d", heads=self.num_heads)
            for t in (self.to_k(context), self.to_v(context))
        )
        return k, v


class TemporalTransformerBlock(nn.Module):
    """Two temporal self-attentions, the motion-augmented cross-attention (paper section 4.2), the feed-forward."""

    def __init__(self, channels: int, num_heads: int, context_dim: int | None):
        super().__init__()
        self.attention_blocks = nn.ModuleList(TemporalAttention(channels, num_heads) for _ in range(2))
        if context_dim is not None:
            augmented = TemporalAttention(channels, num_heads, context_dim)
            zero_(augmented.to_out)  # an AnimateDiff checkpoint then behaves as before
            self.attention_blocks.append(augmented)
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in self.attention_blocks)
        self.ff = FeedForward(channels)
        self.ff_norm = nn.LayerNorm(channels)

    @property
    def motion_attention(self) -> TemporalAttention | None:
        return self.attention_blocks[2] if len(self.attention_blocks) > 2 else None  # type: ignore[return-value]

    def forward(self, x: FrameTokens, positions: Tensor, text: MotionText | None) -> FrameTokens:
        for attention, norm in zip(self.attention_blocks[:2], self.norms[:2], strict=True):
            x = x + attention.attend_frames(norm(x) + positions)  # type: ignore[operator]
        if self.motion_attention is not None and text is not None:
            x = x + self.motion_attention.attend_text(self.norms[2](x) + positions, text)
        return x + self._feed_forward(self.ff_norm(x))

    def branches(self, text: MotionText | None) -> list[TemporalAttention]:
        """The attentions that run: the motion-augmented one only with a text."""
        return list(self.attention_blocks)[: 2 if text is None else 3]  # type: ignore[return-value]

    def add_in_place(
        self, stream: Rows, behind: Float[Tensor, "branches c"], positions: Tensor, text: MotionText | None
    ) -> None:
        """What `forward` adds, on top of `stream` where it lies, without gradients.

        cuBLAS adds a product to what is there for nothing, but not a bias besides. So no bias is ever in the stream:
        each norm adds those that belong to its input.

        Args:
            behind: For each attention and for the feed-forward the sum of the biases before it.
        """
        pixels = stream.view(-1, len(positions), stream.shape[1])
        for attention, norm, missing in zip(self.branches(text), self.norms, behind, strict=False):
            pieces = _pieces(stream, 3, MAX_PACKED_BYTES)
            if text is not None and attention is self.motion_attention:
                texts = [text] if pieces == 1 else texts_of_clips(text)
                mixes = [functools.partial(attention.read_text, text=part) for part in texts]
            else:
                mixes = [functools.partial(attention.mix_frames, weight=attention.packed_weight())] * pieces
            last: nn.Linear = attention.to_out[0]  # type: ignore[assignment]
            # Fewer pixels than pieces make fewer parts.
            for part, mix in zip(pixels.chunk(len(mixes)), mixes, strict=False):
                rows = part.flatten(0, 1)
                normed = motion_ops.norm_rows(rows, norm.weight, norm.bias, norm.eps, missing, positions)
                rows.addmm_(mix(normed.view(part.shape)).reshape(rows.shape), last.weight.t())
        self._add_feed_forward(stream, behind[-1])

    def _add_feed_forward(self, stream: Rows, missing: Float[Tensor, "c"]) -> None:
        wide: nn.Linear = self.ff.net[0].proj  # type: ignore[assignment]
        last: nn.Linear = self.ff.net[2]  # type: ignore[assignment]
        normed = motion_ops.norm_rows(stream, self.ff_norm.weight, self.ff_norm.bias, self.ff_norm.eps, missing, None)
        pieces = _pieces(stream, 8, MAX_FEED_FORWARD_BYTES)
        for rows, part in zip(normed.chunk(pieces), stream.chunk(pieces), strict=True):
            part.addmm_(motion_ops.gated(rows, wide.weight, wide.bias), last.weight.t())

    def _feed_forward(self, x: FrameTokens) -> FrameTokens:
        pieces = _pieces(x, 8, MAX_FEED_FORWARD_BYTES)
        if pieces <= 1 or torch.is_grad_enabled():
            return self.ff(x)
        return torch.cat([self.ff(part) for part in x.chunk(pieces)])


def _pieces(x: Tensor, times: int, limit: int) -> int:
    """So many that none of them, made `times` as wide, has more than `limit` bytes."""
    # By doubling: what is compiled for one size then serves all that fall into as many pieces.
    size, pieces = times * x.numel() * x.element_size(), 1
    while pieces * limit < size:
        pieces *= 2
    return pieces


class TemporalTransformer(nn.Module):
    """GroupNorm of each frame, one layout change in, attention over time, one layout change out, residual."""

    def __init__(self, channels: int, num_heads: int, context_dim: int | None):
        super().__init__()
        self.channels = channels
        self.num_heads = num_heads
        self.norm = nn.GroupNorm(32, channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, channels)
        self.transformer_blocks = nn.ModuleList([TemporalTransformerBlock(channels, num_heads, context_dim)])
        self.proj_out = zero_(nn.Linear(channels, channels))

    def forward(self, x: Frames, num_frames: int, text: MotionText | None = None) -> Frames:
        if motion_ops.run_fused(x, self._first_weights(), self.num_heads):
            return self.forward_fused(x, num_frames, text)
        height, width = x.shape[-2:]
        h = rearrange(self.norm(x), "(b f) c h w -> (b h w) f c", f=num_frames)
        h = self.proj_in(h)
        positions = frame_positions(num_frames, self.channels, h.device, h.dtype)
        for block in self.transformer_blocks:
            h = block(h, positions, text)
        h = rearrange(self.proj_out(h), "(b h w) f c -> (b f) c h w", h=height, w=width)
        return x + h

    def _first_weights(self) -> tuple[Tensor, Tensor]:
        """Of this module and of its feed-forward, which FSDP keeps in shards by itself."""
        wide: nn.Linear = self.transformer_blocks[0].ff.net[0].proj  # type: ignore[assignment,union-attr]
        return self.proj_in.weight, wide.weight

    def forward_fused(self, x: Frames, num_frames: int, text: MotionText | None = None) -> Frames:
        """`forward` by the operators of `motion_ops`: large matrix products, few passes over memory between.

        Raises:
            ValueError: `x` has other channels, or no whole number of clips.
        """
        norm, (block,), proj_out = self.norm, self.transformer_blocks, self.proj_out
        biases = [attention.to_out[0].bias for attention in block.branches(text)]  # type: ignore[union-attr,operator]
        biases = [self.proj_in.bias, *biases, block.ff.net[2].bias]  # type: ignore[union-attr]
        behind, last = motion_ops.sum_biases(biases, proj_out.weight, proj_out.bias)
        h = motion_ops.normed_pixels(x, norm.weight, norm.bias, num_frames, norm.num_groups, norm.eps)
        shape, stream = h.shape, F.linear(h.flatten(0, 1), self.proj_in.weight)
        del h  # as large as the stream, and not read again
        positions = frame_positions(num_frames, self.channels, x.device, x.dtype)
        block.add_in_place(stream, behind, positions, text)  # type: ignore[operator]
        return motion_ops.add_projected(stream.view(shape), proj_out.weight, last, x)


class MotionModule(nn.Module):
    """A temporal transformer under the name that AnimateDiff's checkpoints give it."""

    def __init__(self, channels: int, num_heads: int, context_dim: int | None):
        super().__init__()
        self.temporal_transformer = TemporalTransformer(channels, num_heads, context_dim)

    def forward(self, x: Frames, num_frames: int, text: MotionText | None = None) -> Frames:
        return self.temporal_transformer(x, num_frames, text)

    def project_text(self, context: Tokens) -> KeyValue | None:
        """Keys and values of the motion text, or None where the module has no motion-augmented attention."""
        attention = self.temporal_transformer.transformer_blocks[0].motion_attention
        return None if attention is None else attention.project_text(context)  # type: ignore[operator]


@functools.lru_cache(maxsize=64)
def frame_positions(num_frames: int, channels: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """AnimateDiff's positional encoding, [frames, channels]: sin on even and cos on odd channels, base 10000."""
    with torch.inference_mode(False):  # cached tensors serve training too
        position = torch.arange(num_frames, dtype=torch.float32, device=device)[:, None]
        even = torch.arange(0, channels, 2, dtype=torch.float32, device=device)
        frequency = torch.exp(even * (-math.log(10000.0) / channels))
        encoding = torch.zeros(num_frames, channels, device=device)
        encoding[:, 0::2] = torch.sin(position * frequency)
        encoding[:, 1::2] = torch.cos(position * frequency)
        return encoding.to(dtype)
