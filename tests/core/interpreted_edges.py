"""A program: what a motion module's kernels refuse, promise the compiler and keep in memory; prints what it found.

In Triton's interpreter on the CPU, and a process of its own for the reasons that `interpreted_motion.py` gives.
"""

import functools
import importlib
import json
import weakref
from collections.abc import Callable
from types import SimpleNamespace

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from followclick_core.models import (
    frames_kernel,
    layout_kernels,
    motion_ops,
    row_kernels,
    temporal_attention,
)
from followclick_core.models.motion_module import MotionModule

OPERATORS = torch.ops.followclick


def main() -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        found = {
            "refused": refused(),
            "gate": gate_of_infinity(),
            "strides": strides(),
            "outlived": outlived(),
            "asked": asked(),
            "unregistered": unregistered(),
        }
    print(json.dumps(found))


def randomised() -> MotionModule:
    module = MotionModule(32, 2, None).eval()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return module


def refused() -> dict[str, str]:
    fused, channels = randomised().temporal_transformer.forward_fused, torch.ones(32)
    nine, pixels, square = torch.randn(9, 32, 2, 2), torch.randn(8, 4, 32), torch.randn(32, 32)
    calls: dict[str, Callable[[], Tensor]] = {
        "module, frames": lambda: fused(nine, 4),
        "module, channels": lambda: fused(torch.randn(8, 64, 2, 2), 4),
        "module, no frames": lambda: fused(nine, 0),
        "norm": lambda: layout_kernels.normed_pixels(nine, channels, channels, 4, 32, 1e-6),
        "sum": lambda: layout_kernels.add_to_frames(pixels, channels, nine),
        "linear layer and sum": lambda: frames_kernel.add_linear_to_frames(pixels, square, channels, nine),
    }
    return {name: message(call) for name, call in calls.items()}


def message(call: Callable[[], Tensor]) -> str:
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def gate_of_infinity() -> list[str]:
    infinity = float("inf")
    value, gate = torch.tensor([[2.0, -2.0, 2.0, 2.0]]), torch.tensor([[infinity, infinity, -infinity, float("nan")]])
    return [str(float(number)) for number in row_kernels.gate_product(torch.cat([value, gate], dim=1))[0]]


def strides() -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
    """What the operators' shapes for the compiler say, and what they give."""
    pixels, weight, bias = torch.randn(6, 4, 32), torch.randn(32, 32), torch.randn(32)
    planes = torch.randn(8, 32, 2, 3)
    layouts = {
        "planes": planes,
        "channels last": planes.to(memory_format=torch.channels_last),
        "neither": torch.randn(8, 3, 32, 2).permute(0, 2, 3, 1),
    }
    calls = {
        "normed_pixels": lambda x: OPERATORS.normed_pixels(x, on(x, bias), on(x, bias), 4, 32, 1e-6),
        "add_to_frames": lambda x: OPERATORS.add_to_frames(on(x, pixels), on(x, bias), x),
        "add_projected": lambda x: OPERATORS.add_projected(on(x, pixels), on(x, weight), on(x, bias), x),
    }

    def on(x: Tensor, tensor: Tensor) -> Tensor:
        return x.fake_mode.from_tensor(tensor) if hasattr(x, "fake_mode") else tensor

    found = {}
    for layout, x in layouts.items():
        for name, call in calls.items():
            with FakeTensorMode() as mode:
                told = call(mode.from_tensor(x)).stride()
            found[f"{name}, {layout}"] = (told, call(x).stride())
    return found


def outlived() -> list[bool]:
    """For each norm of a row, whether the module's normed input is still there."""
    normed: list[weakref.ref] = []
    results = []
    whole, row = motion_ops.normed_pixels, motion_ops.norm_rows

    def keep(*arguments: object) -> Tensor:
        result = whole(*arguments)
        normed.append(weakref.ref(result))
        return result

    def look(*arguments: object) -> Tensor:
        results.append(normed[0]() is not None)
        return row(*arguments)

    motion_ops.normed_pixels, motion_ops.norm_rows = keep, look
    randomised().temporal_transformer.forward_fused(torch.randn(4, 32, 1, 1), 4)
    motion_ops.normed_pixels, motion_ops.norm_rows = whole, row
    return results


def asked() -> dict[str, object]:
    """How often each comparison is made when a function that asks for both is compiled twice; 1 if both work."""
    counts = {"fused": 0, "attention": 0}

    def counted(name: str, comparisons: Callable) -> Callable:
        def compare(_device: torch.device, *sizes: object) -> list[tuple[str, Tensor, Tensor]]:
            counts[name] += 1
            return comparisons(torch.device("cpu"), *sizes)

        return compare

    motion_ops.comparisons = counted("fused", functools.partial(motion_ops.comparisons, frames=2, size=2, clips=1))
    temporal_attention.comparisons = counted("attention", temporal_attention.comparisons)
    torch.cuda.get_device_capability = lambda *_: (9, 0)

    def question(x: Tensor) -> Tensor:
        fused = motion_ops.operators_work(0, torch.float32, 32)
        return x + 1 if fused and temporal_attention.kernel_works(0, torch.float32, 16, True) else x - 1

    def answer() -> float | str:
        torch._dynamo.reset()
        try:
            return float(torch.compile(question, fullgraph=True, backend="eager")(torch.zeros(())))
        except Exception as error:
            return str(error)

    return {"answers": [answer(), answer()], **counts}


def unregistered() -> dict[str, float | list[bool]]:
    """What the fused module computes, and whether it is chosen, where operators cannot be registered."""

    def refuse(*_arguments: object, **_options: object) -> None:
        raise ValueError("infer_schema(func): Parameter biases has unsupported type")

    torch.library.custom_op = refuse
    importlib.reload(motion_ops)
    transformer, x = randomised().temporal_transformer, torch.randn(4, 32, 2, 2)
    theirs = transformer(x, 4)
    error = float((transformer.forward_fused(x, 4) - theirs).norm() / (theirs - x).norm())
    motion_ops.operators_work = lambda *_: True
    on_gpu = SimpleNamespace(is_cuda=True, dtype=torch.float32, device=torch.device("cuda", 0))
    chosen = []
    for compiling in (False, True):
        torch.compiler.is_compiling = lambda answer=compiling: answer
        chosen.append(motion_ops.run_fused(on_gpu, [transformer.proj_in.weight], 2))
    return {"error": error, "fused when eager, when compiled": chosen}


if __name__ == "__main__":
    main()
