"""Deep features of a UNet, reused between neighbouring steps (DeepCache, Ma et al. 2023, arXiv:2312.00858).

What a UNet computes at low resolution changes slowly from step to step. So only every `interval`-th step, a key step,
runs it whole. The steps between run its outermost blocks alone, and take for all that lies between them what the last
two key steps had there, continued in a straight line (the first order of TaylorSeer, Liu et al. 2025,
arXiv:2503.06923): on the demo model that halves the error of taking over the last. The first two evaluations are key
steps, and so is the last, whose error nothing makes good.

    input  0 . 1 .. d | d+1 ...           blocks 0 to `depth` of the input half,
    output ... n-d | n-d+1 .. n           and their counterparts, the last depth + 1 of the output half.

Hooks on blocks that run, such as motion modules, run as ever.
"""

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..models.embeddings import sinusoidal_embedding
from ..models.unet import UNet
from ..shapes import Frames, FramesOfOtherWidth, Tokens

DeepFeature = Float[Tensor, "bf c_deep h_deep w_deep"]


@dataclass(frozen=True)
class ReuseParams:
    """When to reuse, and how much.

    Args:
        interval: Evaluations of the model from one key step to the next; 1 reuses nothing.
        depth: How many of the input half's blocks run at every step besides the first convolution, and as many of
            the output half besides the last block. In Stable Diffusion 1.5, 2 is the whole highest resolution.
    """

    interval: int = 3
    depth: int = 0

    def __post_init__(self) -> None:
        if self.interval < 1 or self.depth < 0:
            raise ValueError(
                f"An interval of {self.interval} steps at depth {self.depth} makes no sense; give an interval from 1 "
                "(every step is computed whole) and a depth from 0."
            )


@dataclass
class FeatureCache:
    """The deep features of one sampling, and which evaluation of the model is at hand.

    Args:
        evaluations: How many there will be, by which the last is known; samplers of second order ask more often, and
            have their key steps at the same distance.
    """

    params: ReuseParams
    evaluations: int
    _index: int = -1
    _key_steps: tuple[int, int] = (-1, -1)  # the last but one, and the last
    _ambiguous: bool = False
    _features: dict[Hashable, list[tuple[int, Tensor]]] = field(default_factory=dict, repr=False)

    def next_evaluation(self) -> None:
        """To be called before the model is asked about the latents of another step."""
        self._index += 1
        if self._index < 2 or (self.evaluations - 1 - self._index) % self.params.interval == 0:
            self._key_steps = (self._key_steps[1], self._index)

    def recall(self, name: Hashable) -> Tensor | None:
        """The deep feature of the call of this name, from the last key steps; None: it must be computed whole.

        Args:
            name: What tells the calls of one evaluation apart: texts, windows, sizes.
        """
        kept = [] if self._ambiguous else self._features.get(name, [])
        before, last = self._key_steps
        if self._index == last or not kept or kept[-1][0] != last:
            return None
        if len(kept) == 1 or kept[0][0] != before:
            return kept[-1][1]
        return torch.lerp(kept[0][1], kept[1][1], (self._index - before) / (last - before))

    def keep(self, name: Hashable, feature: Tensor) -> None:
        """Keep what a whole call computed. Two calls of one name in one evaluation (tiles that somebody else cuts)
        could not be told apart later, so nothing is reused from then on."""
        kept = self._features.get(name, [])
        if kept and kept[-1][0] == self._index:
            self._ambiguous = True
        if self._ambiguous:
            self._features.clear()
        elif self._index == self._key_steps[1]:
            self._features[name] = [*kept[-1:], (self._index, feature)]


def check_depth(unet: nn.Module, params: ReuseParams) -> None:
    """Raises:
    ValueError: the UNet has not so many blocks that something would be left to reuse.
    """
    blocks = len(unet.output_blocks)  # type: ignore[arg-type]
    if params.depth >= blocks - 1:
        raise ValueError(
            f"At depth {params.depth} nothing is left to reuse of a UNet with {blocks} output blocks; give at most "
            f"{blocks - 2}."
        )


@contextmanager
def watched_feature(unet: nn.Module, depth: int) -> Iterator[Callable[[], Tensor]]:
    """Inside it, a whole call leaves its deep feature behind; the function that is yielded fetches it."""
    seen: list[Tensor] = []
    # The last layer of the last block that is skipped, after whatever else hooks into it.
    layer = unet.output_blocks[-2 - depth][-1]  # type: ignore[index]
    handle = layer.register_forward_hook(lambda _layer, _inputs, output: seen.append(output))  # type: ignore[union-attr]
    try:
        yield seen.pop
    finally:
        handle.remove()


def reusing_call(
    cache: FeatureCache, unet: UNet, name: Hashable, x: Frames, timesteps: Tensor, context: Tokens
) -> FramesOfOtherWidth:
    """`unet(x, timesteps, context)`, whole or from the deep features of the last key steps."""
    feature = cache.recall(name)
    if feature is not None:
        return shallow_call(unet, x, timesteps, context, feature, cache.params.depth)
    with watched_feature(unet, cache.params.depth) as fetch:
        predicted = unet(x, timesteps, context)
        cache.keep(name, fetch())
    return predicted


def shallow_call(
    unet: UNet, x: Frames, timesteps: Tensor, context: Tokens, feature: DeepFeature, depth: int
) -> FramesOfOtherWidth:
    """The outermost blocks of a UNet, with `feature` for what lies between them."""
    emb = unet.time_embed(sinusoidal_embedding(timesteps, unet.params.model_channels).to(x.dtype))
    skips: list[Tensor] = []
    h: Tensor = x
    for block in unet.input_blocks[: depth + 1]:
        h = block(h, emb, context)
        skips.append(h)
    h = feature
    for block in unet.output_blocks[-1 - depth :]:
        h = torch.cat([h, skips.pop()], dim=1)
        size = (skips[-1].shape[-2], skips[-1].shape[-1]) if skips else None
        h = block(h, emb, context, size)
    return unet.out(h)
