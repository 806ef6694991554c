"""`train --dry-run`: what one step trains, holds in memory and takes, on random weights of the true shapes.

On a GPU it is run and measured. Elsewhere it is computed: the step's operations are gone through without data, their
memory and their arithmetic counted. The report says which of the two its numbers are.
"""

import time
import weakref
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import (
    FlopCounterMode,
    flop_registry,
    register_flop_formula,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)

from ..generate import LATENT_SCALE
from ..models.autoencoder import Autoencoder
from ..models.motion_model import MotionModel
from ..models.sd_autoencoder import SDAutoencoder
from ..models.text_encoder import MAX_TOKENS, VOCABULARY, TextEncoder
from ..models.unet import UNet
from ..presets import Preset, get_preset
from .clip_model import ClipModel, checkpoint_activations, clip_loss
from .clip_params import ClipTrainParams
from .ema import EMA
from .engine import MODEL_INPUTS, AccelerateStep, make_accelerator
from .trainable import choose_trainable, trainable_parameters

GIB, TERA = 2**30, 1e12
MATMUL_SIDE = 4096
TIMED_STEPS = 3


@dataclass(frozen=True)
class DryRun:
    """Figures of one micro-batch on one device, and of the step it is part of.

    Attributes:
        measured: Whether memory and time were measured; else they are computed.
        trained, total: Numbers of parameters.
        memory: Bytes, by what they are for.
        peak: Bytes at most; what the allocator and the convolutions need beyond tensors is in it only if measured.
        flops: Floating-point operations of a micro-batch, forward and backward, with what checkpointing does twice.
        model_flops: The same without it: what the model asks for, however it is computed.
        seconds: Of a micro-batch. Computed: `flops` at the speed of `matmul`, which no real step reaches.
        matmul: Operations per second of a large matrix product on this device, measured.
    """

    preset: str
    trainable: str
    device: str
    measured: bool
    trained: int
    total: int
    memory: dict[str, int]
    peak: int
    flops: float
    model_flops: float
    seconds: float
    matmul: float
    params: ClipTrainParams

    @property
    def utilisation(self) -> float:
        """Model-FLOPs utilisation: share of the matrix products' speed that goes into what the model asks for."""
        return self.model_flops / self.seconds / self.matmul

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "utilisation": self.utilisation}

    def to_text(self) -> str:
        params, how = self.params, "measured" if self.measured else "computed"
        micro_batches = params.batch_size // params.micro_batch
        lines = [
            f"{self.preset}, set {self.trainable}: {self.trained:,} of {self.total:,} parameters are trained",
            f"micro-batch of {params.micro_batch}: {params.num_frames} frames of {params.size}x{params.size}, "
            f"precision {params.precision}, gradient checkpointing {'on' if params.gradient_checkpointing else 'off'}",
            f"on {self.device}; peak memory and time are {how}",
            "",
            *(f"{size / GIB:8.2f} GiB  {name} (computed)" for name, size in self.memory.items()),
            f"{self.peak / GIB:8.2f} GiB  at most ({how})",
            "",
            f"{self.flops / TERA:8.2f} TFLOP per micro-batch, {self.model_flops / TERA:.2f} without recomputation",
            f"{self.matmul / TERA:8.2f} TFLOP/s for matrix products on this device (measured)",
        ]
        if self.measured:
            lines += [
                f"{self.seconds:8.3f} s per micro-batch, {params.micro_batch / self.seconds:.2f} clips/s (measured)",
                f"{self.utilisation:8.1%} of the matrix products' speed, recomputation not counted",
            ]
        else:
            lines += [f"{self.seconds:8.1f} s per micro-batch at that speed, which is the least it can take (computed)"]
        lines += [f"{self.seconds * micro_batches:8.1f} s per step of {params.batch_size} clips on one device ({how})"]
        return "\n".join(lines)


def dry_run(preset_name: str, params: ClipTrainParams, device: str | None = None) -> DryRun:
    """The figures of a step; measured on a GPU, computed elsewhere."""
    preset = get_preset(preset_name)
    on = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return _measure(preset, params, on) if on.type == "cuda" else _compute(preset, params, on)


def _compute(preset: Preset, params: ClipTrainParams, device: torch.device) -> DryRun:
    _count_attention()
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = _model(preset, params)
        autoencoder = sum(value.numel() for value in _autoencoder(preset).parameters())
        optimizer = torch.optim.AdamW([value for _, value in trainable_parameters(model)], foreach=False)
        batch = _batch(preset, params, torch.device("cpu"))

        def step() -> None:
            with torch.autocast("cpu", torch.bfloat16, enabled=params.precision == "bf16"):
                prediction = model(**{key: batch[key] for key in MODEL_INPUTS})
            clip_loss(prediction, batch["target"], batch["swept"], params.region_weight)[0].backward()

        def arithmetic() -> float:
            model.zero_grad()
            with FlopCounterMode(display=False) as counter:
                step()
            return float(counter.get_total_flops())

        model_flops = arithmetic()
        model.zero_grad()
        if params.gradient_checkpointing:
            checkpoint_activations(model)
        # One after the other: the counter of operations keeps tensors alive.
        with _LivingTensors() as living:
            step()
        flops = arithmetic() if params.gradient_checkpointing else model_flops
        optimizer.step()
    memory = _persistent(model, params) | {"autoencoder, float32": 4 * autoencoder}
    memory |= {"activations and gradients at their height": living.peak}
    matmul, peak = _matmul_speed(device), sum(memory.values())
    return _report(preset, params, str(device), False, model, memory, peak, flops, model_flops, flops / matmul, matmul)


def _count_attention() -> None:
    """Tell torch's counter of the attention that runs on a CPU, of which it has no formula."""

    def forward(query: Any, key: Any, value: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
        return sdpa_flop_count(query, key, value)

    def backward(grad: Any, query: Any, key: Any, value: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
        return sdpa_backward_flop_count(grad, query, key, value)

    formulas: dict[str, Callable[..., int]] = {"": forward, "_backward": backward}
    for name, formula in formulas.items():
        operation = getattr(torch.ops.aten, f"_scaled_dot_product_flash_attention_for_cpu{name}")
        if operation not in flop_registry:
            register_flop_formula(operation)(formula)


def _measure(preset: Preset, params: ClipTrainParams, device: torch.device) -> DryRun:
    computed = _compute(preset, params, device)
    accelerator = make_accelerator(params.precision, None)
    with torch.device(device):
        model = _model(preset, params)
        autoencoder = _autoencoder(preset)
    engine = AccelerateStep(model, replace(params, batch_size=params.micro_batch), accelerator)
    ema = EMA(model, params.loop.ema_decay)
    batch = _batch(preset, params, device)

    def step() -> None:
        engine(iter([batch]))
        ema.update(0)

    seconds = _seconds(step, device)
    peak = torch.cuda.max_memory_allocated(device)
    del autoencoder
    return _report(
        preset,
        params,
        torch.cuda.get_device_name(device),
        True,
        model,
        computed.memory,
        peak,
        computed.flops,
        computed.model_flops,
        seconds,
        computed.matmul,
    )


def _report(
    preset: Preset,
    params: ClipTrainParams,
    device: str,
    measured: bool,
    model: nn.Module,
    memory: dict[str, int],
    peak: int,
    flops: float,
    model_flops: float,
    seconds: float,
    matmul: float,
) -> DryRun:
    trained = sum(value.numel() for _, value in trainable_parameters(model))
    total = sum(value.numel() for value in model.parameters())
    return DryRun(
        preset.name,
        params.trainable,
        device,
        measured,
        trained,
        total,
        memory,
        peak,
        flops,
        model_flops,
        seconds,
        matmul,
        params,
    )


def _model(preset: Preset, params: ClipTrainParams) -> ClipModel:
    seen = torch.ones(VOCABULARY, dtype=torch.bool)
    model = ClipModel(UNet(preset.unet), MotionModel(preset.motion), TextEncoder(preset.text), seen)
    choose_trainable(model, params.trainable, params.lora_rank, trained_before=True)
    return model


def _autoencoder(preset: Preset) -> nn.Module:
    return SDAutoencoder() if preset.name == "sd15" else Autoencoder()


def _batch(preset: Preset, params: ClipTrainParams, device: torch.device) -> dict[str, Tensor]:
    clips, cells = params.micro_batch, params.size // LATENT_SCALE
    video = (clips, 4, params.num_frames, cells, cells)
    return {
        "x_t": torch.randn(video, device=device),
        "target": torch.randn(video, device=device),
        "t": torch.full((clips,), 500, device=device),
        "tokens": torch.full((clips, MAX_TOKENS), 320, device=device),
        "magnitude": torch.full((clips,), 6.0, device=device),
        "first_frame": torch.randn(clips, 5, *video[2:], device=device),
        "swept": torch.ones(clips, 1, cells, cells, device=device),
    }


def _persistent(model: ClipModel, params: ClipTrainParams) -> dict[str, int]:
    """Bytes that stay from step to step, as engine.AccelerateStep lays them out on a GPU."""
    trained = sum(value.numel() for _, value in trainable_parameters(model))
    halved = params.precision == "bf16"
    frozen = 0
    for part in (model.unet, model.text, model.motion):
        counts = [(value.numel(), value.requires_grad) for value in part.parameters()]
        # A part of which nothing is trained is kept in bfloat16; the motion model always in float32.
        width = 2 if halved and part is not model.motion and not any(grad for _, grad in counts) else 4
        frozen += width * sum(count for count, grad in counts if not grad)
    return {
        "frozen weights": frozen,
        "trained weights, float32": 4 * trained,
        "AdamW's two moments": 8 * trained,
        "averaged weights": 4 * trained,
    }


class _LivingTensors(TorchDispatchMode):
    """Counts the bytes of the tensors that operations make, and how many live at once at most."""

    def __init__(self) -> None:
        super().__init__()
        self.living = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        inputs = {_key(leaf) for leaf in tree_leaves((args, kwargs or {})) if isinstance(leaf, Tensor)}
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and (key := _key(leaf)) not in inputs and key not in self._known:
                storage = leaf.untyped_storage()
                self._known.add(key)
                self.living += storage.nbytes()
                weakref.finalize(storage, self._ended, key, storage.nbytes())
        self.peak = max(self.peak, self.living)
        return result

    def _ended(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.living -= size


def _key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _matmul_speed(device: torch.device) -> float:
    """Operations per second of a product of large square matrices: bfloat16 on a GPU, float32 on a CPU."""
    kind = torch.bfloat16 if device.type == "cuda" else torch.float32
    side = 2 * MATMUL_SIDE if device.type == "cuda" else MATMUL_SIDE // 4
    a, b = (torch.randn(side, side, device=device, dtype=kind) for _ in range(2))
    return 2 * side**3 / _seconds(lambda: a @ b, device)


def _seconds(run: Callable[[], Any], device: torch.device) -> float:
    """The least of a few runs, after one that warms up."""
    times = []
    for _ in range(TIMED_STEPS + 1):
        started = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - started)
    return min(times[1:])
