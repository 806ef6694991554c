"""The one training loop: every stage gives it modules and a loss, it gives back averaged weights.

Rerunning the same command resumes from the newest checkpoint; all randomness is derived from the step, so a resumed run sees the
data that an uninterrupted one would have seen.
"""

import time
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from tqdm import tqdm

from .ema import EMA
from .run_dir import RunDir


@dataclass(frozen=True)
class LoopParams:
    """How a stage is optimised.

    Args:
        steps: Steps of the whole stage, over all commands that continue it.
        warmup: Steps of linear rise of the learning rate.
        decay_from: Share of the steps after which the rate falls linearly to zero.
    """

    steps: int
    learning_rate: float
    warmup: int = 200
    decay_from: float = 0.6
    weight_decay: float = 0.01
    ema_decay: float = 0.999
    clip_norm: float = 1.0
    log_every: int = 50
    checkpoint_seconds: float = 120.0


class Stage(Protocol):
    """One part of the training: what is learned, and from what."""

    name: str
    module: nn.Module  # holds every parameter that is trained

    def prepare(self, step: int) -> None:
        """Called once, before the first step of this command."""
        ...

    def loss(self, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of one step, and figures to log."""
        ...


def run_stage(
    stage: Stage, params: LoopParams, run: RunDir, device: torch.device, max_seconds: float | None = None
) -> bool:
    """Train a stage to its last step, or until `max_seconds` have passed; then `stage.module` holds the averaged weights.

    Returns:
        Whether the stage is finished.
    """
    module = stage.module.train()
    optimizer = torch.optim.AdamW(
        [p for p in module.parameters() if p.requires_grad],
        lr=params.learning_rate,
        betas=(0.9, 0.99),
        weight_decay=params.weight_decay,
        fused=device.type == "cuda",
    )
    ema = EMA(module, params.ema_decay)
    step = _resume(run, stage, optimizer, ema, device)
    started = saved = time.monotonic()
    if step < params.steps:
        stage.prepare(step)
    sums: dict[str, Tensor] = {}
    with tqdm(total=params.steps, initial=step, desc=stage.name, mininterval=5.0) as bar:
        while step < params.steps:
            logs = _step(stage, params, optimizer, ema, step, device)
            step += 1
            bar.update()
            for key, value in logs.items():
                sums[key] = sums.get(key, 0) + value.detach()
            if step % params.log_every == 0:
                record = {key: round((value / params.log_every).item(), 5) for key, value in sums.items()}
                sums = {}
                run.log(stage.name, {"step": step, "seconds": round(time.monotonic() - started, 1), **record})
                bar.set_postfix(record, refresh=False)
            now = time.monotonic()
            if max_seconds is not None and now - started > max_seconds:
                break
            if now - saved > params.checkpoint_seconds:
                _save(run, stage, optimizer, ema, step)
                saved = now
    _save(run, stage, optimizer, ema, step)
    ema.copy_to(module)
    module.eval()
    return step >= params.steps


def learning_rate(params: LoopParams, step: int) -> float:
    """Linear warm-up, then constant, then a linear fall to zero."""
    decay_start = params.decay_from * params.steps
    fall = (params.steps - step) / max(1.0, params.steps - decay_start)
    return params.learning_rate * min(1.0, (step + 1) / params.warmup, fall)


def step_generator(device: torch.device, step: int, salt: int = 0) -> torch.Generator:
    """Random numbers that depend on the step alone, so that resuming changes nothing."""
    return torch.Generator(device).manual_seed(step * 1009 + salt)


def _step(
    stage: Stage, params: LoopParams, optimizer: torch.optim.Optimizer, ema: EMA, step: int, device: torch.device
) -> dict[str, Tensor]:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(params, step)
    with torch.autocast(device.type, torch.bfloat16):
        loss, logs = stage.loss(step)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    norm = nn.utils.clip_grad_norm_(stage.module.parameters(), params.clip_norm)
    optimizer.step()
    ema.update(stage.module, step)
    return {"loss": loss.detach(), "grad_norm": norm, **logs}


def _save(run: RunDir, stage: Stage, optimizer: torch.optim.Optimizer, ema: EMA, step: int) -> None:
    state = {
        "step": step,
        "module": stage.module.state_dict(),
        "optimizer": optimizer.state_dict(),
        "ema": ema.state_dict(),
    }
    run.save_checkpoint(stage.name, state)


def _resume(run: RunDir, stage: Stage, optimizer: torch.optim.Optimizer, ema: EMA, device: torch.device) -> int:
    state = run.load_checkpoint(stage.name, device)
    if state is None:
        return 0
    stage.module.load_state_dict(state["module"])
    optimizer.load_state_dict(state["optimizer"])
    ema.load_state_dict(state["ema"])
    return state["step"]
