"""Several regions in one UNet call, each with its own motion prompt and magnitude, at about one region's price.

What says how it moves enters a UNet at three kinds of places, and at each it is blended by the regions' shares s_r of
that place (they sum to one everywhere, so where one region has all, the result is that region's own):

- Motion-augmented and spatial cross-attention: the blend of the regions' attentions, sum_r s_r A(q, k_r, v_r). Queries
  are computed once; so is the output projection, which is affine and therefore commutes with the blend.
- Magnitude: it has no extent, being added to the time embedding. But a ResBlock uses that embedding once, as a vector
  E(e) added to every pixel of its feature map. With E(t + m_r) for each region that vector becomes the map
  sum_r s_r(x, y) E(t + m_r): exactly what the block would add at a place if the whole picture had its region's
  magnitude, and no approximation of E, whose non-linearity comes before the blend.

The regional prompter blends whole predictions instead (one UNet call per region). Within this blend the regions share
one self-attention and one set of convolutions, as the parts of one picture do.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

Size = tuple[int, int]


@dataclass(frozen=True)
class RegionBlend:
    """Which region counts where, and how each moves.

    Args:
        shares: 0..1 at the latents' size, summing to one in each pixel.
        contexts: The regions' motion prompts for the motion-augmented attention; None leaves it out.
        magnitudes: Pixels per frame at 512 pixels of width; None where one number serves all regions.
        spatial_contexts: The same prompts for the spatial cross-attention of a model that reads the motion prompt
            there, for each clip or (a prompt schedule) for each frame, (b f) r n d; None leaves that to the UNet
            call's own context.
    """

    shares: Float[Tensor, "b r h w"]
    contexts: Float[Tensor, "b r n d"] | None = None
    magnitudes: Float[Tensor, "b r"] | None = None
    spatial_contexts: Float[Tensor, "b_or_bf r n d"] | None = None
    _by_size: dict[tuple, Tensor] = field(default_factory=dict, repr=False)

    def shares_at(self, size: Size, like: Tensor) -> Float[Tensor, "b r hw"]:
        """The shares at a feature map's size, folded, on the device and in the number format of `like`."""
        key = (*size, like.device, like.dtype)
        if key not in self._by_size:
            small = F.adaptive_avg_pool2d(self.shares.float(), size)
            self._by_size[key] = small.flatten(2).to(like.device, like.dtype)
        return self._by_size[key]


def blended_attention(
    query: Float[Tensor, "b heads p d"],
    key: Float[Tensor, "b r heads n d"],
    value: Float[Tensor, "b r heads n d"],
    shares: Float[Tensor, "b r p"],
) -> Float[Tensor, "b heads p d"]:
    """sum_r s_r A(q, k_r, v_r): one region after another, since the attention's scores are what takes memory."""
    parts = (
        shares[:, region, None, :, None] * F.scaled_dot_product_attention(query, key[:, region], value[:, region])
        for region in range(shares.shape[1])
    )
    return sum(parts, start=torch.zeros_like(query))


class RegionHooks:
    """The hooks of one UNet for what `attach` alone does not reach: ResBlocks and spatial cross-attention.

    Args:
        current: The blend that counts now, or None.
        embed: Magnitudes [n] to what is added to the time embedding, [n, time channels]; None for families of motion
            models that do not embed them.
    """

    def __init__(self, current: Callable[[], RegionBlend | None], embed: Callable[[Tensor], Tensor] | None):
        self.current = current
        self.embed = embed
        self._size: Size = (0, 0)
        self._embeddings: Tensor | None = None

    def set_on(self, unet: nn.Module) -> Iterator[RemovableHandle]:
        yield unet.time_embed.register_forward_hook(self._embed_magnitudes)  # type: ignore[union-attr]
        for layer in unet.modules():
            # By their parts, as the host has classes of its own.
            if hasattr(layer, "emb_layers") and hasattr(layer, "out_layers"):
                yield from self._on_resblock(layer)
            elif type(layer).__name__ == "SpatialTransformer":
                yield layer.register_forward_pre_hook(self._note_size)
                for block in layer.transformer_blocks:  # type: ignore[union-attr]
                    yield from self._on_text_attention(block.attn2)

    def _embed_magnitudes(self, _layer: nn.Module, _inputs: object, output: Tensor) -> None:
        blend = self.current()
        self._embeddings = None
        if blend is not None and blend.magnitudes is not None and self.embed is not None:
            clips, regions = blend.magnitudes.shape
            embeddings = self.embed(blend.magnitudes.flatten().to(output.device)).to(output.dtype)
            frames = len(output) // clips
            self._embeddings = rearrange(embeddings, "(b r) c -> b r c", r=regions).repeat_interleave(frames, 0)

    def _on_resblock(self, block: nn.Module) -> Iterator[RemovableHandle]:
        differences: list[Tensor] = []

        def embed(layer: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
            differences.clear()
            if self._embeddings is None:
                return output
            regions = inputs[0][:, None] + self._embeddings
            for part in layer:  # type: ignore[union-attr]
                regions = part(regions)
            differences.append(regions[:, 1:] - regions[:, :1])
            return regions[:, 0].to(output.dtype)

        def spread(_layer: nn.Module, inputs: tuple) -> tuple | None:
            blend = self.current()
            if not differences or blend is None:
                return None
            (h,) = inputs
            shares = blend.shares_at((h.shape[-2], h.shape[-1]), h)[:, 1:]
            of_clips = rearrange(differences.pop(), "(b f) r c -> b f r c", b=len(shares)).to(h.dtype)
            added = torch.einsum("bfrc,brp->bfpc", of_clips, shares)
            return (h + rearrange(added, "b f (h w) c -> (b f) c h w", h=h.shape[-2]),)

        # The first region's vector goes its usual way; the others' differences from it follow as a map.
        yield block.emb_layers.register_forward_hook(embed)  # type: ignore[union-attr]
        yield block.out_layers.register_forward_pre_hook(spread)  # type: ignore[union-attr]

    def _note_size(self, _layer: nn.Module, inputs: tuple) -> None:
        self._size = inputs[0].shape[-2], inputs[0].shape[-1]

    def _on_text_attention(self, attention: nn.Module) -> Iterator[RemovableHandle]:
        """Exchange the attention to the call's own text for the blend, before the output projection.

        Only that part is exchanged: what another pack adds to the attention's result (an image prompt) stays in it.
        """
        heads: int = getattr(attention, "heads", None) or attention.num_heads  # type: ignore[assignment]
        seen: dict[str, Tensor] = {}

        def keep(name: str) -> Callable:
            def hook(_layer: nn.Module, _inputs: object, output: Tensor) -> None:
                blend = self.current()
                if blend is not None and blend.spatial_contexts is not None and name not in seen:
                    seen[name] = output

            return hook

        def exchange(_layer: nn.Module, inputs: tuple) -> tuple | None:
            blend = self.current()
            if blend is None or blend.spatial_contexts is None or len(seen) < 3:
                return None
            query, own_key, own_value = (_split_heads(seen.pop(name), heads) for name in ("to_q", "to_k", "to_v"))
            own = F.scaled_dot_product_attention(query, own_key, own_value)
            contexts = blend.spatial_contexts.to(query.device, query.dtype)
            texts, regions = contexts.shape[:2]
            key, value = (
                rearrange(project(contexts.flatten(0, 1)), "(b r) n (heads d) -> b r heads n d", r=regions, heads=heads)
                for project in (attention.get_submodule("to_k"), attention.get_submodule("to_v"))
            )
            seen.clear()  # those calls were seen as well
            # Frames that read one text attend to it together.
            of_texts = rearrange(query, "(b f) heads p d -> b heads (f p) d", b=texts)
            frames, shares = len(query) // texts, blend.shares_at(self._size, query)
            shares = shares.repeat_interleave(texts // len(shares), 0).repeat(1, 1, frames)
            mixed = blended_attention(of_texts, key, value, shares)
            change = rearrange(mixed, "b heads (f p) d -> (b f) heads p d", f=frames) - own
            return (inputs[0] + rearrange(change, "b heads p d -> b p (heads d)").to(inputs[0].dtype),)

        for name in ("to_q", "to_k", "to_v"):
            yield getattr(attention, name).register_forward_hook(keep(name))
        yield attention.to_out.register_forward_pre_hook(exchange)  # type: ignore[union-attr]


def _split_heads(x: Tensor, heads: int) -> Tensor:
    return rearrange(x, "b p (heads d) -> b heads p d", heads=heads)
