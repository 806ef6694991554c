"""A program: a tiny motion stage's loss and gradients, eager and with compiled blocks, and how far they differ.

A process of its own, because Dynamo cannot trace the shape checks that the tests switch on.
"""

import functools
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from followclick_core import presets
from followclick_core.models.autoencoder import Autoencoder
from followclick_core.models.text_encoder import TextEncoderParams
from followclick_core.models.unet import UNetParams
from followclick_core.training.loop import LoopParams
from followclick_core.training.params import MotionTrainParams
from followclick_core.training.run import Trainer
from followclick_core.training.stages import MotionStage
from followclick_core.training.train_step import TrainStep

CPU = torch.device("cpu")
TINY = presets._preset("tiny", 32, UNetParams(32, (1, 2), 1, (0, 1), 1, 2, 16), TextEncoderParams(16, 1, 2))
PARAMS = MotionTrainParams(LoopParams(2, 1e-2), batch_size=2, chunk_size=1, pool_chunks=1, image_batch=1)
FRAMES, SIDE = 4, 4
Pass = tuple[float, dict[str, Tensor]]  # the loss, and every parameter's gradient


def motion_stage(compile_blocks: bool) -> MotionStage:
    trainer = Trainer.__new__(Trainer)  # of which only making the model is asked
    trainer.preset, trainer.device, trainer.compile_blocks = TINY, CPU, compile_blocks
    trainer.run_dir = SimpleNamespace(weights=Path("no such folder"))
    model = trainer._generative()
    for parameter in model.parameters():  # output layers begin with zero, which would hide errors
        nn.init.normal_(parameter, std=0.05) if not parameter.any() else None
    return MotionStage(model, Autoencoder(), PARAMS, TINY, SimpleNamespace(device=CPU))


def batch() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    clip, still = (2, 4, FRAMES, SIDE, SIDE), (1, 4, 1, SIDE, SIDE)
    noise = functools.partial(torch.randn, generator=generator)
    return {
        "tokens": torch.randint(1, 1000, (2, 77), generator=generator),
        "magnitude": torch.tensor([2.0, 9.0]),
        "swept": (noise(2, 1, SIDE, SIDE) > 0).float(),
        "first_frame": noise(2, 5, FRAMES, SIDE, SIDE),
        "x_t": noise(clip),
        "v": noise(clip),
        "t": torch.tensor([20, 900]),
        "still_tokens": torch.randint(1, 1000, (1, 77), generator=generator),
        "still_x_t": noise(still),
        "still_v": noise(still),
        "still_t": torch.tensor([400]),
        "unchanged": (noise(2, 1, FRAMES, SIDE, SIDE) > 0).float(),
    }


def two_passes(stage: MotionStage, bfloat16: bool = True) -> list[Pass]:
    """Loss and gradients, with other weights the second time; with bfloat16 copies of them as on a GPU, or float32."""
    step = TrainStep(stage, learning_rate=0.0, weight_decay=0.0, clip_norm=1.0, device=CPU)
    step._cuda = True
    results = []
    for _ in range(2):
        stage.module.zero_grad()
        loss, _ = step._loss(batch()) if bfloat16 else stage.loss(batch())
        loss.backward()
        results.append((float(loss), {name: p.grad.clone() for name, p in stage.module.named_parameters()}))
        with torch.no_grad():
            torch._foreach_mul_(list(stage.module.parameters()), 0.9)
    return results


def compare(exact: Pass, eager: Pass, compiled: Pass) -> dict[str, Any]:
    """Both losses, and how far the gradients are apart, in units of eager's own error of rounding to bfloat16."""

    def ratio(name: str) -> float:
        truth, plain, other = (gradients[name] for _, gradients in (exact, eager, compiled))
        return float((other - plain).norm() / (plain - truth).norm().clamp(min=1e-12))

    apart = max((ratio(name), name) for name in exact[1])
    return {"eager": eager[0], "compiled": compiled[0], "apart": apart}


def main() -> None:
    exact, eager = two_passes(motion_stage(False), bfloat16=False), two_passes(motion_stage(False))
    torch.compile = functools.partial(torch.compile, backend="aot_eager")
    stage = motion_stage(True)
    compiled = two_passes(stage)
    result = {
        "kinds": sorted({type(module).__name__ for module in stage.module.modules() if "forward" in vars(module)}),
        "graphs": counters["stats"]["unique_graphs"],
        "breaks": len(counters["graph_break"]),
        "passes": [compare(*each) for each in zip(exact, eager, compiled, strict=True)],
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
