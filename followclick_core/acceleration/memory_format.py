"""Convolution weights with channels last, which is how GPUs with tensor cores compute."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def channels_last(model: nn.Module) -> Iterator[None]:
    """Inside it, convolution weights lie channels last, and so does what the convolutions give out."""
    _lay_out(model, torch.channels_last)
    try:
        yield
    finally:
        _lay_out(model, torch.contiguous_format)


def _lay_out(model: nn.Module, memory_format: torch.memory_format) -> None:
    # Weight by weight and in place: nothing else holds a second copy, and who refers to a weight still does. Outside of
    # inference mode, for a weight that was laid out in it could never be trained again.
    with torch.inference_mode(False), torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, nn.Conv2d):
                layer.weight.data = layer.weight.data.contiguous(memory_format=memory_format)
