"""Keys and values of the text in a UNet's cross-attentions, projected once per text instead of at every step.

They depend on the text and the weights alone, neither of which changes while a clip is sampled. Whether the text is
the same is looked up each time, in its numbers; that costs one comparison per UNet call.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .forwards import computes_by_its_class, exchanged_forwards

_KEPT = "kept_projection"


@dataclass
class _Text:
    """A text as it came, and what the layers make of it."""

    number: int  # no other text of this sampling has it
    context: Tensor
    projected: list[Tensor]
    frames: int  # that read each text; the layers' rows are kept once for all of them


@dataclass
class TextKeys:
    """Replaces `to_k` and `to_v` of all cross-attentions inside `exchanged`; use `reading` around each UNet call.

    Args:
        layers: The projections.
        kept: By what the caller tells texts apart, so that two that alternate are both found.
    """

    layers: list[nn.Module]
    kept: dict[Any, _Text] = field(default_factory=dict)
    _count: int = 0

    @classmethod
    def of(cls, unet: nn.Module) -> "TextKeys":
        """All that a UNet's transformers project of its text."""
        attentions = [
            layer.get_submodule("attn2")
            for layer in unet.modules()
            if type(layer).__name__ == "BasicTransformerBlock" and getattr(layer, "attn2", None) is not None
        ]
        layers = [attention.get_submodule(name) for attention in attentions for name in ("to_k", "to_v")]
        return cls([layer for layer in layers if computes_by_its_class(layer)])

    @contextmanager
    def exchanged(self) -> Iterator[None]:
        """Inside it the layers can give what was kept; afterwards nothing of it is left."""
        with ExitStack() as stack:
            for layer in self.layers:
                setattr(layer, _KEPT, None)
                stack.callback(delattr, layer, _KEPT)
            # One function for all layers, which compiled code shares; a closure of each would be compiled for each.
            stack.enter_context(exchanged_forwards((layer, _kept_or_projected.__get__(layer)) for layer in self.layers))
            stack.callback(self.kept.clear)
            yield

    @contextmanager
    def reading(self, name: Any, context: Tensor, num_frames: int) -> Iterator[int]:
        """A UNet call that gives every one of these layers `context` alone, (b f) n d.

        Args:
            num_frames: Neighbouring rows that mostly have one text.

        Yields:
            A number that tells what is read from all else that was read; equal texts of several names have one.
        """
        text = self.kept.get(name)
        if text is None or not _same(text.context, context):
            alike = (each for each in self.kept.values() if _same(each.context, context))
            text = self.kept[name] = next(alike, None) or self._project(context, num_frames)
        for layer, projected in zip(self.layers, text.projected, strict=True):
            setattr(layer, _KEPT, projected)
        try:
            yield text.number
        finally:
            for layer in self.layers:
                setattr(layer, _KEPT, None)

    def _project(self, context: Tensor, num_frames: int) -> _Text:
        alike = len(context) % num_frames == 0 and torch.equal(
            context, context[::num_frames].repeat_interleave(num_frames, 0)
        )
        frames = num_frames if alike else 1
        # All rows, as the layers would, since fewer could be multiplied in another order.
        projected = [layer(context)[::frames].clone() for layer in self.layers]
        self._count += 1
        return _Text(self._count, context, projected, frames)


def _same(one: Tensor, other: Tensor) -> bool:
    same_kind = one.shape == other.shape and one.dtype == other.dtype and one.device == other.device
    return same_kind and (one is other or torch.equal(one, other))


def _kept_or_projected(layer: nn.Module, x: Tensor) -> Tensor:
    kept = getattr(layer, _KEPT)
    if kept is None:
        return type(layer).forward(layer, x)
    return kept if len(kept) == len(x) else kept.repeat_interleave(len(x) // len(kept), dim=0)
