"""Several processes that train one model on generated scenes, each on a GPU of its own; torchrun starts them.

Every process has its own clips and noise; what they share are the gradients, the clock and the decision to stop, so
their weights stay the same to the bit. The exchange is one more operation of the step that a GPU replays as one graph.
"""

import os
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Ranks:
    """Which of how many processes this one is."""

    rank: int = 0
    count: int = 1

    @property
    def is_main(self) -> bool:
        """Whether it writes files and shows progress."""
        return self.rank == 0

    def own(self, index: int) -> int:
        """This process's number of those that share step or seed `index`; no two of all steps' are the same."""
        return index * self.count + self.rank

    @torch.no_grad()
    def average(self, gradients: list[Tensor]) -> None:
        """The mean over all processes, in place, in one exchange."""
        if self.count == 1:
            return
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        flat /= self.count
        parts = flat.split([gradient.numel() for gradient in gradients])
        torch._foreach_copy_(gradients, [part.view_as(g) for part, g in zip(parts, gradients, strict=True)])

    def agree(self, value: float) -> float:
        """The first process's number, in all of them; a GPU's work goes on meanwhile."""
        if self.count == 1:
            return value
        told = torch.tensor(value, dtype=torch.float64)
        dist.broadcast(told, src=0)
        return float(told)

    def union(self, flags: Tensor) -> Tensor:
        """What any process has set."""
        if self.count == 1:
            return flags
        told = flags.to(torch.uint8)
        dist.all_reduce(told, dist.ReduceOp.MAX)
        return told.bool()

    def leave(self) -> None:
        """The end of working together."""
        if self.count > 1 and dist.is_initialized():
            dist.destroy_process_group()

    def wait(self) -> None:
        """Until all processes are here."""
        if self.count > 1:
            dist.barrier()


def join_ranks(device: torch.device) -> tuple[Ranks, torch.device]:
    """This process's place among those that torchrun started with it, and its device: GPU number LOCAL_RANK of "cuda".

    Without torchrun it is alone.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        return Ranks(), device
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        # Clock and decisions travel by gloo: asked over NCCL, they would make the GPU wait at every step.
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    return Ranks(dist.get_rank(), count), device
