"""One optimisation step: loss, gradients, clipping, AdamW; on a GPU recorded once and then replayed as one graph.

A small model on a large GPU spends its time waiting for Python to launch thousands of tiny kernels. A recorded graph
launches them all at once.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .ema import EMA
from .ranks import Ranks

if TYPE_CHECKING:
    from .loop import Stage

# PyTorch wants a few ordinary steps before it records (allocations, autotuning, the optimizer's state).
STEPS_BEFORE_RECORDING = 3


class TrainStep:
    """Call it with a batch; it moves the stage's parameters and returns the figures to log."""

    def __init__(
        self,
        stage: "Stage",
        learning_rate: float,
        weight_decay: float,
        clip_norm: float,
        device: torch.device,
        ranks: Ranks = Ranks(),  # noqa: B008  # frozen
    ):
        self._stage, self._clip_norm, self._device, self._ranks = stage, clip_norm, device, ranks
        self.state_device = device
        self.is_main = ranks.is_main
        self._trained = [p for p in stage.module.parameters() if p.requires_grad]
        self._cuda = device.type == "cuda"
        self._replays = self._cuda and stage.replayable
        self.optimizer = torch.optim.AdamW(
            self._trained,
            # A graph reads the rate from the GPU; a number would be baked into it.
            lr=torch.tensor(learning_rate, device=device) if self._replays else learning_rate,
            betas=(0.9, 0.99),
            weight_decay=weight_decay,
            fused=self._cuda,
            capturable=self._replays,
        )
        self._stage_module = _StageModule(stage)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: dict[str, Tensor] = {}
        self._figures: dict[str, Tensor] = {}
        self._ordinary_steps = 0

    def set_learning_rate(self, rate: float) -> None:
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    def agree(self, value: float) -> float:
        return self._ranks.agree(value)

    def own(self, step: int) -> int:
        return self._ranks.own(step)

    def state(self, ema: EMA) -> dict[str, Any]:
        for flags in self._stage.module.buffers():
            if flags.dtype == torch.bool:  # the words that each process has met
                flags.copy_(self._ranks.union(flags))
        return {
            "module": self._stage.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": ema.state_dict(),
        }

    def load_state(self, state: dict[str, Any], ema: EMA) -> None:
        check_same_parts(state["module"], self._stage.module.state_dict())
        self._stage.module.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])
        ema.load_state_dict(state["ema"])

    def __call__(self, batch: Any) -> dict[str, Tensor]:
        if not self._replays:
            return self._step(batch)
        if self._graph is None and self._ordinary_steps < STEPS_BEFORE_RECORDING:
            self._ordinary_steps += 1
            return self._on_side_stream(batch)
        if self._graph is None:
            self._record(batch)
        torch._foreach_copy_(list(self._inputs.values()), [batch[key] for key in self._inputs])
        assert self._graph is not None
        self._graph.replay()
        return self._figures

    def _step(self, batch: Any) -> dict[str, Tensor]:
        loss, figures = self._loss(batch)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self._ranks.average([p.grad for p in self._trained if p.grad is not None])
        norm = nn.utils.clip_grad_norm_(self._trained, self._clip_norm)
        self.optimizer.step()
        return {"loss": loss.detach(), "grad_norm": norm.detach(), **figures}

    def _loss(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        if not (self._cuda and self._stage.all_bfloat16):
            # Without its cache, autocast leaves no cast weights behind that a recorded graph would keep reusing.
            with torch.autocast(self._device.type, torch.bfloat16, cache_enabled=not self._replays):
                return self._stage.loss(batch)
        # All activations in bfloat16 on a bfloat16 copy of the weights: autocast would keep norms and residuals in
        # float32, and a small model's time goes into moving just those. The optimizer's own weights stay float32.
        weights = {f"module.{name}": p.bfloat16() for name, p in self._stage.module.named_parameters()}
        batch = {key: value.bfloat16() if value.is_floating_point() else value for key, value in batch.items()}
        return torch.func.functional_call(self._stage_module, weights, (batch,))

    def _on_side_stream(self, batch: Any) -> dict[str, Tensor]:
        side = torch.cuda.Stream(self._device)
        side.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(side):
            figures = self._step(batch)
        torch.cuda.current_stream(self._device).wait_stream(side)
        return figures

    def _record(self, batch: dict[str, Tensor]) -> None:
        self._inputs = {key: value.clone() for key, value in batch.items()}
        self.optimizer.zero_grad(set_to_none=True)
        torch.cuda.synchronize(self._device)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self._figures = self._step(self._inputs)


def check_same_parts(saved: Iterable[str], own: Iterable[str]) -> None:
    """ValueError if a run was begun with a model of other parts, as by a version with another preset of this name."""
    if changed := sorted(set(saved) ^ set(own)):
        raise ValueError(
            f"This training was begun with a model of other parts ({', '.join(changed[:3])}); begin another "
            "--run folder, with its weights if they are to be trained on."
        )


class _StageModule(nn.Module):
    """A stage as a module, whose weights can be replaced for one call."""

    def __init__(self, stage: "Stage"):
        super().__init__()
        self.module = stage.module
        self.loss = stage.loss

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        return self.loss(batch)
