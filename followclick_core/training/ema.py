"""Exponential moving average of weights: what is shipped is smoother than any one step."""

import torch
from torch import Tensor, nn


class EMA:
    """Averages of a module's parameters; early steps count more, so the average does not remember the initialisation.

    Args:
        decay: Final decay per step; step n uses min(decay, (1 + n) / (10 + n)).
    """

    def __init__(self, module: nn.Module, decay: float):
        self.decay = decay
        self.averages = {name: value.detach().clone().float() for name, value in module.named_parameters()}
        # Walking the module tree at every step would take longer than averaging.
        self._followed = list(module.parameters())

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the module's weights after step number `step`, counted from 0."""
        decay = min(self.decay, (1 + step) / (10 + step))
        current = [parameter.detach().float() for parameter in self._followed]
        torch._foreach_lerp_(list(self.averages.values()), current, 1 - decay)

    def state_dict(self) -> dict[str, Tensor]:
        return self.averages

    def load_state_dict(self, averages: dict[str, Tensor]) -> None:
        for name, value in averages.items():
            self.averages[name].copy_(value)

    @torch.no_grad()
    def copy_to(self, module: nn.Module) -> None:
        """Put the averages into `module`, which has the same parameters."""
        for name, parameter in module.named_parameters():
            parameter.copy_(self.averages[name])
