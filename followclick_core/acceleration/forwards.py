"""Other forwards for the layers of a model, for as long as a block of code runs."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def exchanged_forwards(exchanges: Iterable[tuple[nn.Module, Callable]]) -> Iterator[None]:
    """Inside it, each layer computes by the function beside it; hooks on the layer itself still run around that.

    State-dict keys and classes stay, so who looks for a layer finds it.
    """
    before: list[tuple[nn.Module, Callable | None]] = []
    try:
        for layer, forward in exchanges:
            before.append((layer, vars(layer).get("forward")))
            layer.forward = forward
        yield
    finally:
        for layer, forward in reversed(before):
            if forward is None:
                del layer.forward
            else:
                layer.forward = forward


def computes_by_its_class(layer: nn.Module) -> bool:
    """Whether nobody else has exchanged a layer's forward."""
    return "forward" not in vars(layer)


def has_inner_hooks(layer: nn.Module) -> bool:
    """Whether anything inside a layer is hooked; hooks on the layer itself do not count."""
    kinds = ("_forward_hooks", "_forward_pre_hooks")
    return any(getattr(inner, kind) for inner in layer.modules() if inner is not layer for kind in kinds)
