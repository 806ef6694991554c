"""A program: feed-forwards by the motion modules' kernels against PyTorch, in Triton's interpreter on the CPU.

A process of its own for the reasons that `interpreted_motion.py` gives; prints errors, sizes and what is compiled.
"""

import json
from collections.abc import Callable

import torch
from torch import Tensor
from torch._dynamo.utils import counters
from torch.utils._python_dispatch import TorchDispatchMode

from followclick_core.acceleration.feed_forward import gated_feed_forward
from followclick_core.models import motion_ops
from followclick_core.models.blocks import FeedForward
from followclick_core.models.gated_linear_kernel import gated_linear

C, ROWS = 48, 37
WAYS = {"product and gate": motion_ops.gated, "one kernel": gated_linear}
PIECE = 8 * C * 4 * 10  # ten rows


class Largest(TorchDispatchMode):
    """The most bytes of what is made of some of the rows: no result of all, and nothing of the weights."""

    size = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **kwargs or {})
        if isinstance(made, Tensor) and made.ndim == 2 and len(made) < ROWS:
            self.size = max(self.size, made.nbytes)
        return made


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    motion_ops.run_fused = lambda *_, **_named: True
    layer, x = FeedForward(C).eval(), torch.randn(1, ROWS, C)
    errors, largest = {}, {}
    with torch.no_grad():
        for name, way in WAYS.items():
            motion_ops.gated = way
            for rows in (1, 10, ROWS, 1000):
                errors[f"{name}, {rows} rows"] = error(lambda x, rows=rows: run(layer, x, 8 * C * 4 * rows), layer, x)
            with Largest() as found:
                run(layer, x, PIECE)
            largest[name] = found.size
        print(json.dumps({"errors": errors, "largest": largest, "compiled": compiled(layer)}))


def run(layer: FeedForward, x: Tensor, max_bytes: int) -> Tensor:
    wide, last = layer.net[0].proj, layer.net[2]
    return gated_feed_forward(x, wide.weight, wide.bias, last.weight, last.bias, max_bytes)


def error(function: Callable[[Tensor], Tensor], layer: FeedForward, x: Tensor) -> float:
    ours, theirs = function(x), layer(x)
    assert ours.shape == theirs.shape and ours.stride() == theirs.stride()
    return float((ours - theirs).norm() / theirs.norm())


def compiled(layer: FeedForward) -> dict[str, float]:
    """One graph for clips of any length: four pieces and nine."""
    function = torch.compile(lambda x: run(layer, x, PIECE), backend="aot_eager", dynamic=True, fullgraph=True)
    worst = max(error(function, layer, torch.randn(2, rows, C)) for rows in (20, 45))
    return {"error": worst, "graphs": counters["stats"]["unique_graphs"], "breaks": len(counters["graph_break"])}


if __name__ == "__main__":
    main()
