"""The optimisation step across processes, under accelerate: DDP, FSDP, bf16, micro-batches.

The file that a run resumes from is the same whatever it ran on: whole tensors of what is trained, gathered by the first
process. So a run may go on with another number of processes.
"""

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from ..models.blocks import BasicTransformerBlock, FeedForward, ResBlock
from .clip_model import ClipModel, checkpoint_activations, clip_loss
from .clip_params import ClipTrainParams
from .ema import EMA
from .train_step import check_same_parts
from .trainable import trainable_parameters

if TYPE_CHECKING:
    from accelerate import Accelerator

MODEL_INPUTS = ("x_t", "t", "tokens", "magnitude", "first_frame")


def make_accelerator(precision: str, device: str | None) -> "Accelerator":
    """accelerate's view of this process among the others; `accelerate launch` or torchrun starts several.

    Raises:
        ValueError: accelerate, TensorBoard or matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401
        import tensorboard  # noqa: F401
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState
    except ImportError as error:
        raise ValueError(
            f"Training on shards needs {error.name}, which is not installed; run: pip install 'followclick[train]'."
        ) from error
    # What an earlier training in this process asked for must not hold for this one.
    AcceleratorState._reset_state()
    return Accelerator(mixed_precision=precision, cpu=device == "cpu")


def leave_ranks() -> None:
    """The end of working together: a process that ends while its exchange still runs is aborted now and then."""
    from accelerate import PartialState

    PartialState().destroy_process_group()


class AccelerateStep:
    """Call it with this rank's micro-batches; it moves the model's trained weights and returns the figures to log."""

    def __init__(self, model: ClipModel, params: ClipTrainParams, accelerator: "Accelerator"):
        self.accelerator = accelerator
        self.is_main: bool = accelerator.is_main_process
        # A state read onto the GPU would lie there twice.
        self.state_device = torch.device("cpu")
        self._params, self._module = params, model
        self._accumulation = params.accumulation(accelerator.num_processes)
        if params.gradient_checkpointing:
            checkpoint_activations(model)
        # Frozen weights take part in bfloat16 only; FSDP wants one type for all that it shards together.
        sharded = is_sharded(accelerator)
        if params.precision == "bf16" and accelerator.device.type == "cuda" and not sharded:
            halve_frozen(model)
        # FSDP shards contiguous weights only.
        layout = torch.contiguous_format if sharded else torch.channels_last
        model.to(accelerator.device, memory_format=layout)  # type: ignore[call-overload]
        loop = params.loop

        def make_optimizer() -> torch.optim.AdamW:
            return torch.optim.AdamW(
                [value for _, value in trainable_parameters(model)],
                lr=loop.learning_rate,
                betas=(0.9, loop.beta_2),
                weight_decay=loop.weight_decay,
                # One kernel, and no copies of all weights beside them.
                fused=accelerator.device.type == "cuda",
            )

        self.model, self.optimizer = distribute(model, make_optimizer, accelerator)

    def set_learning_rate(self, rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def __call__(self, batch: Iterator[dict[str, Tensor]]) -> dict[str, Tensor]:
        sums: dict[str, Tensor] = {}
        self.optimizer.zero_grad(set_to_none=True)
        for index, micro_batch in enumerate(batch):
            last = index == self._accumulation - 1
            # Gradients travel between processes once per step.
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.model):
                loss, figures = clip_loss(
                    self.predict(micro_batch), micro_batch["target"], micro_batch["swept"], self._params.region_weight
                )
                self.accelerator.backward(loss / self._accumulation)
            for key, value in {"loss": loss.detach(), **figures}.items():
                sums[key] = sums.get(key, 0) + value / self._accumulation
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self._params.loop.clip_norm)
        self.optimizer.step()
        figures = {key: cast(Tensor, self.accelerator.reduce(value, "mean")) for key, value in sums.items()}
        return {**figures, "grad_norm": whole(torch.as_tensor(norm)).detach()}

    def predict(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The model's prediction, through what wraps it."""
        with self.accelerator.autocast():
            prediction = self.model(**{key: batch[key] for key in MODEL_INPUTS})
        if not torch.is_grad_enabled():
            # FSDP keeps some weights gathered until a backward, which does not come; they may be exchanged before it.
            for module in self.model.modules():
                if isinstance(module, FSDPModule):
                    module.reshard()
        return prediction

    def agree(self, value: float) -> float:
        if self.accelerator.num_processes == 1:
            return value
        told = torch.tensor(value if self.is_main else 0.0, device=self.accelerator.device)
        return float(cast(Tensor, self.accelerator.reduce(told, "sum")))

    def own(self, step: int) -> int:
        return step  # its batches are dealt out by clip

    def state(self, ema: EMA) -> dict[str, Any]:
        parameters = dict(trainable_parameters(self._module))
        optimizer = self.optimizer.state_dict()
        moments = {
            index: {key: whole(value) for key, value in entry.items()} for index, entry in optimizer["state"].items()
        }
        seen = self._module.seen.to(torch.int32)
        return {
            "module": {name: whole(value.detach()) for name, value in parameters.items()},
            "optimizer": {**optimizer, "state": moments},
            "ema": self.averages(ema),
            "seen": cast(Tensor, self.accelerator.reduce(seen, "sum")) > 0,
        }

    def averages(self, ema: EMA) -> dict[str, Tensor]:
        """The averaged weights, whole."""
        parameters = dict(trainable_parameters(self._module))
        return {name: whole(_sharded_like(parameters[name], value)) for name, value in ema.averages.items()}

    @torch.no_grad()
    def load_state(self, state: dict[str, Any], ema: EMA) -> None:
        parameters = dict(trainable_parameters(self._module))
        check_same_parts(state["module"], parameters)
        for name, value in parameters.items():
            value.copy_(_shard(state["module"][name], value))
        values = list(parameters.values())
        moments = {
            index: {key: _shard(moment, values[index]) for key, moment in entry.items()}
            for index, entry in state["optimizer"]["state"].items()
        }
        self.optimizer.load_state_dict({**state["optimizer"], "state": moments})
        local_parts = {name: _shard(value, parameters[name]) for name, value in state["ema"].items()}
        ema.load_state_dict({k: v.to_local() if isinstance(v, DTensor) else v for k, v in local_parts.items()})
        self._module.seen.copy_(state["seen"])


def is_sharded(accelerator: "Accelerator") -> bool:
    """Whether each process holds a part of every weight (FSDP)."""
    return _fsdp_by_environment() or str(accelerator.distributed_type).endswith("FSDP")


def distribute(
    model: ClipModel, make_optimizer: Callable[[], torch.optim.Optimizer], accelerator: "Accelerator"
) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Model and optimizer as accelerate wraps them.

    accelerate leaves FSDP out on a CPU, where it is of no use but for tests; there the same torch call is made here.
    """
    if accelerator.device.type == "cpu" and _fsdp_by_environment():
        for module in reversed(list(model.modules())):
            if isinstance(module, SHARDED_TOGETHER):
                fully_shard(module)
        fully_shard(model)
        return model, make_optimizer()
    if is_sharded(accelerator):
        plugin = accelerator.state.fsdp_plugin
        assert plugin is not None
        if plugin.fsdp_version != 2:
            raise ValueError("FSDP of version 1 cannot shard partly frozen models; launch with --fsdp_version 2.")
        plugin.transformer_cls_names_to_wrap = [kind.__name__ for kind in SHARDED_TOGETHER]
    # Weights of a set all take part in every step, and no buffer changes in a forward.
    wrapped, optimizer = accelerator.prepare(model, make_optimizer())
    if isinstance(wrapped, nn.parallel.DistributedDataParallel):
        wrapped.broadcast_buffers = False
    return wrapped, optimizer


# Modules that are only ever used by calling them; keys and values of the motion text are projected outside of theirs.
SHARDED_TOGETHER = (ResBlock, FeedForward, BasicTransformerBlock)


def halve_frozen(model: ClipModel) -> None:
    """Keep parts of which nothing is trained in bfloat16: half the memory, and under autocast the same result."""
    for part in (model.unet, model.text):
        if not any(parameter.requires_grad for parameter in part.parameters()):
            part.bfloat16()


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, in every process."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _shard(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, laid out as `like` is; what has another shape (a step count) stays whole."""
    if not isinstance(like, DTensor) or tensor.shape != like.shape:
        return tensor
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)


def _sharded_like(like: Tensor, part: Tensor) -> Tensor:
    if not isinstance(like, DTensor):
        return part
    return DTensor.from_local(part, like.device_mesh, like.placements, shape=like.shape, stride=like.stride())


def _fsdp_by_environment() -> bool:
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() in ("1", "true")
