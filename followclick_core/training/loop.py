"""The one training loop: every stage gives it modules, batches and a loss, it gives back averaged weights.

Rerunning the same command resumes from the newest checkpoint; all randomness is derived from the step, so a resumed run
sees the data that an uninterrupted one would have seen.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from tqdm import tqdm

from .ema import EMA
from .ranks import Ranks
from .run_dir import RunDir
from .train_step import TrainStep


@dataclass(frozen=True)
class LoopParams:
    """How a stage is optimised.

    Args:
        steps: Steps of the whole stage, over all commands that continue it.
        warmup: Steps of linear rise of the learning rate at most; a tenth of the stage is enough.
        decay_from: Share of the stage after which the rate falls linearly to zero; 1 keeps it constant.
        beta_2: AdamW's memory of squared gradients.
        checkpoint_seconds, checkpoint_every: Seconds, or steps, from one resumable state to the next; steps where
            several processes must agree on the moment.
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
    checkpoint_every: int | None = None
    beta_2: float = 0.99


@runtime_checkable
class Stage(Protocol):
    """One part of the training: what is learned, and from what."""

    name: str
    # Whether `loss` is a fixed sequence of kernels on tensors of fixed shapes, which a GPU can replay as one graph.
    replayable: bool
    # Whether a GPU may compute all of it in bfloat16, norms and inputs included; otherwise autocast decides.
    all_bfloat16: bool

    @property
    def module(self) -> nn.Module:
        """Holds every parameter that is trained."""
        ...

    def prepare(self, step: int) -> None:
        """Called once, before the first step of this command."""
        ...

    def batch(self, step: int) -> Any:
        """What `loss` needs, all randomness included; a dictionary of tensors if the stage is replayable."""
        ...

    def prefetch(self, step: int) -> None:
        """Begin work for the batch of a coming step; called while the GPU is busy with the one before."""
        ...

    def loss(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch, and figures to log."""
        ...


@runtime_checkable
class Stepper(Protocol):
    """Moves a stage's parameters; one for a single device (train_step.py), one for many processes (engine.py)."""

    # Writes files and shows progress; of several processes the first.
    is_main: bool
    # Where a state is read to, before `load_state`.
    state_device: torch.device

    def set_learning_rate(self, rate: float) -> None: ...

    def __call__(self, batch: Any) -> dict[str, Tensor]:
        """One optimisation step; figures to log."""
        ...

    def agree(self, value: float) -> float:
        """The first process's number, in all of them."""
        ...

    def own(self, step: int) -> int:
        """The number by which this process's part of a step's batch is drawn."""
        ...

    def state(self, ema: EMA) -> dict[str, Any]:
        """All that a resumed run needs; every process takes part, the first one's is whole."""
        ...

    def load_state(self, state: dict[str, Any], ema: EMA) -> None: ...


Observer = Callable[[int, EMA], None]  # (steps done, averages), in every process, after every step


@dataclass(frozen=True)
class Limits:
    """When to stop.

    Args:
        max_seconds: End this command then; the next one goes on.
        time_budget: Seconds for the whole stage over all commands. The learning rate then falls with the time used, so
            that a machine of unknown speed still ends on a finished schedule.
    """

    max_seconds: float = math.inf
    time_budget: float = math.inf


def run_stage(
    stage: Stage,
    params: LoopParams,
    run: RunDir,
    device: torch.device,
    limits: Limits,
    trainer: Stepper | None = None,
    observe: Observer | None = None,
    ranks: Ranks = Ranks(),  # noqa: B008  # frozen
) -> bool:
    """Train a stage to its end or to a limit; then `stage.module` holds the averaged weights.

    Args:
        trainer: Moves the parameters; without one a TrainStep of `ranks`.

    Returns:
        Whether the stage is finished.

    Raises:
        FloatingPointError: Loss or gradients are no numbers any more; no such state is saved.
    """
    stage.module.train()
    trainer = trainer or TrainStep(stage, params.learning_rate, params.weight_decay, params.clip_norm, device, ranks)
    ema = EMA(stage.module, params.ema_decay)
    step, elapsed_before = _resume(run, stage, trainer, ema)
    elapsed, started, saved = elapsed_before, time.monotonic(), 0.0
    # Processes that went by clocks of their own would have other rates, and soon other weights.
    by_the_clock = params.checkpoint_every is None or min(limits.max_seconds, limits.time_budget) < math.inf
    figures: dict[str, Tensor] = {}
    if step < params.steps and elapsed < limits.time_budget:
        stage.prepare(step)
    log = _Log(run, stage.name, params.log_every, started) if trainer.is_main else None
    with tqdm(total=params.steps, initial=step, desc=stage.name, mininterval=5.0, disable=log is None) as bar:
        while (progress := max(step / params.steps, elapsed / limits.time_budget)) < 1:
            trainer.set_learning_rate(learning_rate(params, step, progress))
            figures = trainer(stage.batch(trainer.own(step)))
            ema.update(step)
            step += 1
            stage.prefetch(step)
            bar.update()
            if step % params.log_every == 0:
                _check_finite(stage, step, figures)
            if log is not None:
                log.add(step, figures, bar)
            if observe is not None:
                observe(step, ema)
            now = time.monotonic() - started
            now = trainer.agree(now) if by_the_clock else now
            elapsed = elapsed_before + now
            if now > limits.max_seconds:
                break
            if _is_due(params, step, now - saved):
                _check_finite(stage, step, figures)
                _save(run, stage, trainer, ema, step, elapsed)
                saved = now
    _check_finite(stage, step, figures)
    _save(run, stage, trainer, ema, step, elapsed)
    ema.copy_to(stage.module)
    stage.module.eval()
    return step >= params.steps or elapsed >= limits.time_budget


def learning_rate(params: LoopParams, step: int, progress: float) -> float:
    """Linear rise over the first steps, then constant, from `decay_from` of the progress on a linear fall to zero.

    The rise takes `warmup` steps, or a tenth of the stage (of its time budget, if that ends it) where that is sooner;
    the tenth is no fewer than 20 steps.
    """
    rise = max((step + 1) / params.warmup, min(progress / 0.1, (step + 1) / 20))
    fall = (1 - progress) / (1 - params.decay_from) if params.decay_from < 1 else 1.0
    return params.learning_rate * max(0.0, min(1.0, rise, fall))


def step_generator(device: torch.device, step: int, salt: int = 0) -> torch.Generator:
    """Random numbers that depend on the step alone, so that resuming changes nothing."""
    return torch.Generator(device).manual_seed(step * 1009 + salt)


class _Log:
    """Means of the figures over each interval, into the run's log and the progress bar."""

    def __init__(self, run: RunDir, stage: str, every: int, started: float):
        self._run, self._stage, self._every, self._started = run, stage, every, started
        self._sums: dict[str, Tensor] = {}
        self._count = 0

    def add(self, step: int, figures: dict[str, Tensor], bar: tqdm) -> None:
        for key, value in figures.items():
            self._sums[key] = self._sums.get(key, 0) + value.detach()
        self._count += 1
        if step % self._every == 0:
            # A resumed run may begin within an interval.
            record = {key: round((value / self._count).item(), 5) for key, value in self._sums.items()}
            self._sums, self._count = {}, 0
            seconds = round(time.monotonic() - self._started, 1)
            self._run.log(self._stage, {"step": step, "seconds": seconds, **record})
            bar.set_postfix(record, refresh=False)


def _check_finite(stage: Stage, step: int, figures: dict[str, Tensor]) -> None:
    """Refuse to go on, and above all to save, once the weights are spoilt.

    The norm of the gradients is looked at as well: of several processes it is the same in all.
    """
    for name in ("loss", "grad_norm"):
        if name in figures and not math.isfinite(value := float(figures[name])):
            raise FloatingPointError(
                f"Stage {stage.name} has a {name} of {value} at step {step}; the newest checkpoint is from before. "
                "Try a smaller learning rate, or go without --compile."
            )


def _is_due(params: LoopParams, step: int, seconds: float) -> bool:
    if params.checkpoint_every is not None:
        return step % params.checkpoint_every == 0
    return seconds > params.checkpoint_seconds


def _save(run: RunDir, stage: Stage, trainer: Stepper, ema: EMA, step: int, elapsed: float) -> None:
    state = {"step": step, "elapsed": elapsed, **trainer.state(ema)}
    if trainer.is_main:
        run.save_checkpoint(stage.name, state)


def _resume(run: RunDir, stage: Stage, trainer: Stepper, ema: EMA) -> tuple[int, float]:
    """Steps and seconds done so far."""
    state = run.load_checkpoint(stage.name, trainer.state_device)
    step, elapsed = (0, 0.0) if state is None else (state["step"], state["elapsed"])
    if state is not None:
        trainer.load_state(state, ema)
    if trainer.is_main:
        run.forget_after(stage.name, step)
    return step, elapsed
