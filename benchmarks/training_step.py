"""One optimisation step of the motion stage, as it is run and otherwise: is it finite, is it the same, how fast is it?

    python benchmarks/training_step.py --device cuda
    python benchmarks/training_step.py --device cuda --way eager --way "compiled, recorded"

Random tensors of a preset's shapes; every way takes the same steps from the same weights. The first half of them is
looked at, and a dot or an X says of each whether its loss and gradients are finite; a way that spoils the weights ends
there and names the first parameters that are no numbers. The second half is timed, on the last batch. The loss is that
after the last step.
"""

import argparse
import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from followclick_core.models import temporal_attention
from followclick_core.models.blocks import ResBlock, SpatialTransformer
from followclick_core.models.motion_module import TemporalTransformer
from followclick_core.presets import Preset, get_preset
from followclick_core.training import train_step
from followclick_core.training.params import TRAINING, MotionTrainParams
from followclick_core.training.stages import Generative, MotionStage
from followclick_core.training.train_step import TrainStep

BLOCKS = (ResBlock, SpatialTransformer, TemporalTransformer)
NEVER = 10**9


@dataclass(frozen=True)
class Way:
    """How a step is computed."""

    blocks: tuple[type, ...] = ()  # these are compiled
    backend: str = "inductor"
    recorded: bool = False
    cudnn_attention: bool = True
    kernel: bool = True


WAYS = {
    "eager": Way(),
    "eager, recorded": Way(recorded=True),
    "eager, recorded, no cuDNN": Way(recorded=True, cudnn_attention=False),
    "eager, recorded, no kernel": Way(recorded=True, kernel=False),
    "compiled": Way(BLOCKS),
    "compiled, recorded": Way(BLOCKS, recorded=True),
    "compiled, no cuDNN": Way(BLOCKS, cudnn_attention=False),
    "compiled, no kernel": Way(BLOCKS, kernel=False),
    "compiled, aot_eager": Way(BLOCKS, backend="aot_eager"),
    "compiled, ResBlock": Way((ResBlock,)),
    "compiled, SpatialTransformer": Way((SpatialTransformer,)),
    "compiled, TemporalTransformer": Way((TemporalTransformer,)),
}


class _Device:
    """Stands where a stage has its scenes: of them it asks the device alone."""

    def __init__(self, device: torch.device):
        self.device = device


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--way", action="append", choices=WAYS, help="all but single blocks if not given")
    parser.add_argument("--preset", default="demo")
    parser.add_argument("--batch", type=int, help="clips per step, instead of the preset's")
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--device", default="cuda")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    for name in arguments.way or [name for name, way in WAYS.items() if len(way.blocks) != 1]:
        with _set_up(WAYS[name]):
            result = try_steps(get_preset(arguments.preset), WAYS[name], arguments.batch, arguments.steps, device)
        print(f"{name:<30}{result}", flush=True)


@contextlib.contextmanager
def _set_up(way: Way) -> Iterator[None]:
    runs_as_kernel, before = temporal_attention.runs_as_kernel, train_step.STEPS_BEFORE_RECORDING
    torch._dynamo.reset()
    torch._dynamo.config.cache_size_limit = 64
    torch.backends.cuda.enable_cudnn_sdp(way.cudnn_attention)
    if not way.kernel:
        temporal_attention.runs_as_kernel = lambda *_: False
    train_step.STEPS_BEFORE_RECORDING = before if way.recorded else NEVER
    try:
        yield
    finally:
        temporal_attention.runs_as_kernel, train_step.STEPS_BEFORE_RECORDING = runs_as_kernel, before
        torch.backends.cuda.enable_cudnn_sdp(True)


def try_steps(preset: Preset, way: Way, batch: int | None, steps: int, device: torch.device) -> str:
    torch.manual_seed(0)
    model = Generative(preset).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    for module in model.modules():
        if isinstance(module, way.blocks):
            module.forward = torch.compile(module.forward, dynamic=False, backend=way.backend)  # type: ignore[method-assign]
    params = TRAINING[preset.name].motion
    params = replace(params, batch_size=batch or params.batch_size, image_batch=min(batch or NEVER, params.image_batch))
    stage = MotionStage(model, None, params, preset, _Device(device))  # type: ignore[arg-type]
    step = TrainStep(stage, params.loop.learning_rate, params.loop.weight_decay, params.loop.clip_norm, device)
    marks, loss, batch = "", float("nan"), {}
    for index in range(steps // 2):
        step.set_learning_rate(params.loop.learning_rate * (index + 1) / params.loop.warmup)
        batch = random_batch(preset, params, index, device)
        figures = step(batch)
        loss = float(figures["loss"])
        finite = all(bool(torch.isfinite(figures[name])) for name in ("loss", "grad_norm"))
        marks += "." if finite else "X"
        if bad := [name for name, value in model.named_parameters() if not torch.isfinite(value).all()]:
            return f"{marks}  {len(bad)} parameters are no numbers: {', '.join(bad[:3])}"
    _synchronize(device)
    started = time.perf_counter()
    for _ in range(steps - steps // 2):
        figures = step(batch)
    _synchronize(device)
    seconds = (time.perf_counter() - started) / (steps - steps // 2)
    loss = float(figures["loss"])
    return f"{marks}  loss {loss:.4f}  {1000 * seconds:.0f} ms/step, {params.batch_size / seconds:.0f} clips/s"


def random_batch(preset: Preset, params: MotionTrainParams, seed: int, device: torch.device) -> dict[str, torch.Tensor]:
    """What MotionStage.batch gives, of noise."""
    clips, images, points = params.batch_size, params.image_batch, params.correspondence_points
    generator = torch.Generator(device).manual_seed(seed)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device=device, generator=generator)

    def numbers(low: int, high: int, *shape: int) -> torch.Tensor:
        return torch.randint(low, high, shape, device=device, generator=generator)

    side, frames = preset.size // 8, preset.motion.trained_frames
    return {
        "tokens": numbers(2, 400, clips, 77),
        "magnitude": 6 * noise(clips).abs(),
        "swept": (noise(clips, 1, side, side) > 0).float(),
        "first_frame": noise(clips, 5, frames, side, side),
        "x_t": noise(clips, 4, frames, side, side),
        "v": noise(clips, 4, frames, side, side),
        "t": numbers(0, 1000, clips),
        "place": numbers(0, side * side, clips, frames, points),
        "origin": numbers(0, side * side, clips, frames, points),
        "still_tokens": numbers(2, 400, images, 77),
        "still_x_t": noise(images, 4, 1, side, side),
        "still_v": noise(images, 4, 1, side, side),
        "still_t": numbers(0, 1000, images),
    }


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
