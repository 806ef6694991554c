"""Exponential moving average of weights: what is shipped is smoother than any one step."""

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


class EMA:
    """Averages of the parameters that a module trains; early steps count more, so the average does not remember the
    initialisation.

    Args:
        decay: Final decay per step; step n uses min(decay, (1 + n) / (10 + n)).
    """

    def __init__(self, module: nn.Module, decay: float):
        self.decay = decay
        # Walking the module tree at every step would take longer than averaging.
        self._followed = {name: value for name, value in module.named_parameters() if value.requires_grad}
        self.averages = {name: local(value).detach().clone().float() for name, value in self._followed.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the module's weights after step number `step`, counted from 0."""
        decay = min(self.decay, (1 + step) / (10 + step))
        current = [local(parameter).detach().float() for parameter in self._followed.values()]
        torch._foreach_lerp_(list(self.averages.values()), current, 1 - decay)

    def state_dict(self) -> dict[str, Tensor]:
        return self.averages

    def load_state_dict(self, averages: Mapping[str, Tensor]) -> None:
        for name, value in self.averages.items():
            value.copy_(averages[name])

    @torch.no_grad()
    def copy_to(self, module: nn.Module) -> None:
        """Put the averages into `module`, which has the same parameters."""
        for name, parameter in module.named_parameters():
            if name in self.averages:
                local(parameter).copy_(self.averages[name])

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """The followed module has the averaged weights inside the block, and its own again, bit by bit, after it."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, parameter in self._followed.items():
            own = local(parameter).detach().clone()
            local(parameter).copy_(self.averages[name])
            self.averages[name].copy_(own)


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process holds: all of it, unless it is sharded (FSDP)."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
