"""Attentions that let go of queries, keys and values before their last layer makes its result.

A forward that ends with its last layer holds them until that returns: three tensors of the input's size, which are most
of what a step has in memory besides features once feed-forwards run in pieces.
"""

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from .forwards import computes_by_its_class, exchanged_forwards


def early_release(unet: nn.Module) -> AbstractContextManager:
    """Inside it, the attentions of a UNet's transformer blocks do so, but for those that somebody else computes."""
    blocks = [layer for layer in unet.modules() if type(layer).__name__ == "BasicTransformerBlock"]
    layers = [layer for block in blocks for layer in block.children() if type(layer).__name__ == "CrossAttention"]
    free = [layer for layer in layers if computes_by_its_class(layer)]
    return exchanged_forwards((layer, _mixed_then_projected.__get__(layer)) for layer in free)


def _mixed_then_projected(layer: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
    last = layer.get_submodule("to_out")
    # Compiled code holds nothing that is not read again.
    if torch.compiler.is_compiling() or not _is_free(last):
        return type(layer).forward(layer, *args, **kwargs)
    seen: list[Tensor] = []
    with exchanged_forwards([(last, _note.__get__(seen))]):
        mixed = type(layer).forward(layer, *args, **kwargs)
    if len(seen) != 1 or mixed is not seen.pop():  # its last layer is not all that comes last
        return type(layer).forward(layer, *args, **kwargs)
    return last(mixed)


def _is_free(layer: nn.Module) -> bool:
    """Whether a layer may be called once more without effect. Hooks would know, and those for regions come late."""
    return computes_by_its_class(layer) and not layer._forward_hooks and not layer._forward_pre_hooks


def _note(seen: list[Tensor], x: Tensor) -> Tensor:
    seen.append(x)
    return x
