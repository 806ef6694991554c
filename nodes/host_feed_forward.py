"""The feed-forwards of the host's transformer blocks in pieces, with weights as the host would take them at each call.

Nothing is kept of a weight: the host may move it, cast it or add a LoRA to it between two calls of one sampling.
"""

from contextlib import AbstractContextManager

import torch
from comfy import model_management
from comfy.ops import cast_bias_weight, disable_weight_init
from torch import Tensor, nn

from ..followclick_core.acceleration import feed_forward
from ..followclick_core.acceleration.forwards import computes_by_its_class, exchanged_forwards, has_inner_hooks


def fused_feed_forwards(unet: nn.Module) -> AbstractContextManager:
    """Inside it, they make no more at once than the core's MAX_BYTES, and a GPU computes them by its own kernel."""
    layers = feed_forward.gated_feed_forwards(unet)
    # Functions of this module for all layers: compiled code looks at which function it is.
    return exchanged_forwards((layer, (_fused if _is_plain(layer) else _by_layers).__get__(layer)) for layer in layers)


def _is_plain(layer: nn.Module) -> bool:
    """Whether both layers are the host's common ones. Others multiply in fp8, or unpack their weights."""
    return all(
        type(each).forward is disable_weight_init.Linear.forward
        and type(each).forward_comfy_cast_weights is disable_weight_init.Linear.forward_comfy_cast_weights
        and each.bias is not None
        for each in _linear_layers(layer)
    )


def _linear_layers(layer: nn.Module) -> tuple[nn.Module, nn.Module]:
    return layer.net[0].proj, layer.net[2]  # type: ignore[index,union-attr]


def _fused(layer: nn.Module, x: Tensor) -> Tensor:
    if not feed_forward.computes_plainly():
        return type(layer).forward(layer, x)
    if _takes_turns(layer) or (not torch.compiler.is_compiling() and _is_watched(layer)):
        return _by_layers(layer, x)
    wide, last = (_weights(each, x) for each in _linear_layers(layer))
    return feed_forward.gated_feed_forward(x, *wide, *last, feed_forward.MAX_BYTES)


def _takes_turns(layer: nn.Module) -> bool:
    """Whether the host copies weights beside the computing: then it wants each used before it is asked for the next."""
    return model_management.NUM_STREAMS > 1 and any(_is_cast(each) for each in _linear_layers(layer))


def _is_watched(layer: nn.Module) -> bool:
    """Whether somebody who came since has hooked a layer within, or computes it."""
    return has_inner_hooks(layer) or not all(computes_by_its_class(each) for each in _linear_layers(layer))


def _by_layers(layer: nn.Module, x: Tensor) -> Tensor:
    if not feed_forward.computes_plainly():
        return type(layer).forward(layer, x)
    return feed_forward.layers_in_pieces(layer, x, feed_forward.MAX_BYTES)


def _weights(layer: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Weight and bias in the input's type and place; asked for as the layer's own forward does."""
    return cast_bias_weight(layer, x) if _is_cast(layer) else (layer.weight, layer.bias)  # type: ignore[return-value]


def _is_cast(layer: nn.Module) -> bool:
    return bool(layer.comfy_cast_weights or layer.weight_function or layer.bias_function)
