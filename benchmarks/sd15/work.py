"""What a UNet call must do: operations, and bytes that must pass through memory, counted from the architecture.

Two times follow for each stage, and no version runs much faster than the larger: operations over the measured rate of a
large matrix product, and bytes over that of a large copy. Bytes are counted twice: `products` where every convolution,
linear layer and attention reads its inputs and writes its outputs and all else is fused into them; `modules` where
even whole modules (a ResBlock, a transformer) keep everything inside, which no real kernel does at these widths.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import ModuleType

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from .host import TEXT, TOKENS
from .variants import Shape, Variant

MULT, BLOCKS, TIME = (1, 2, 4, 4), 2, 4  # SD1.5: widths of the levels, ResBlocks of each, width of the time embedding
RESBLOCK, SPATIAL, MOTION, BETWEEN = "resblock", "spatial transformer", "motion module", "in, out, down, up"
LINEARS, FEED_FORWARD = "linears", "feed-forward"  # parts of stages
KINDS = ("plain", "animatediff", "followclick")


@dataclass
class Work:
    """Of one stage or part: operations (two for a multiply-add) and elements read and written."""

    flops: float = 0.0
    products: float = 0.0
    modules: float = 0.0

    def __add__(self, other: "Work") -> "Work":
        return Work(self.flops + other.flops, self.products + other.products, self.modules + other.modules)


@dataclass
class UNetWork:
    """The work of one call of the UNet, by (stage, part)."""

    parts: dict[tuple[str, str], Work] = field(default_factory=dict)

    @property
    def total(self) -> Work:
        return sum(self.parts.values(), Work())

    def stages(self) -> dict[str, Work]:
        names = dict.fromkeys(stage for stage, _ in self.parts)
        return {name: sum((w for (stage, _), w in self.parts.items() if stage == name), Work()) for name in names}

    def add(self, stage: str, part: str, flops: float, products: float, modules: float = 0.0) -> None:
        key = stage, part
        self.parts[key] = self.parts.get(key, Work()) + Work(flops, products, modules)


class _Counter:
    """Adds up one module's products; `read` and `written` are the module's own input and output."""

    def __init__(self, work: UNetWork, stage: str):
        self._work, self._stage = work, stage

    def module(self, read: float, written: float) -> None:
        self._work.add(self._stage, "", 0.0, 0.0, read + written)

    def conv(self, images: int, side: int, channels: int, out: int, kernel: int = 3, stride: int = 1) -> None:
        pixels, weights = images * (side // stride) ** 2, channels * out * kernel**2
        moved = images * side**2 * channels + pixels * out + weights
        self._work.add(self._stage, "convolutions", 2.0 * pixels * weights, moved, weights)

    def linear(self, rows: float, channels: int, out: int, part: str = LINEARS) -> None:
        weights = channels * out
        self._work.add(self._stage, part, 2.0 * rows * weights, rows * (channels + out) + weights, weights)

    def attention(self, batch: int, queries: int, keys: int, channels: int) -> None:
        moved = batch * channels * (2 * queries + 2 * keys)
        self._work.add(self._stage, "attention", 4.0 * batch * queries * keys * channels, moved)


def unet_work(kind: str, shape: Shape, width: int) -> UNetWork:
    """One call of the UNet for all clips of a batch.

    Args:
        kind: "plain"; "animatediff" with v2's motion modules; "followclick" with motion-augmented attention and the
            first frame's convolution too. Keys and values of the motion text are made once for all steps and left out.
        width: Channels of the first level.
    """
    work, images = UNetWork(), shape.clips * shape.frames
    between = _Counter(work, BETWEEN)
    between.linear(images, width, TIME * width)
    between.linear(images, TIME * width, TIME * width)

    def conv(side: int, channels: int, out: int, stride: int = 1) -> None:
        between.conv(images, side, channels, out, stride=stride)
        between.module(images * side**2 * channels, images * (side // stride) ** 2 * out)

    def blocks(side: int, channels: int, own: int, attends: bool, moves: bool = True) -> None:
        _resblock(_Counter(work, RESBLOCK), images, side, channels, own, TIME * width)
        if attends:
            _spatial_transformer(_Counter(work, SPATIAL), images, side, own)
        if moves and kind != "plain":
            _motion_module(_Counter(work, MOTION), shape, side, own, reads_text=kind == "followclick")

    widths, side = [width * mult for mult in MULT], shape.side
    conv(side, 4, width)
    if kind == "followclick":
        conv(side, 5, width)
    channels, skips = width, [width]
    for level, own in enumerate(widths):
        for _ in range(BLOCKS):
            blocks(side, channels, own, attends=level < 3)
            channels = own
            skips.append(own)
        if level < 3:
            conv(side, own, own, stride=2)
            side //= 2
            skips.append(own)
    blocks(side, channels, channels, attends=True)
    blocks(side, channels, channels, attends=False, moves=False)
    for level, own in reversed(list(enumerate(widths))):
        for _ in range(BLOCKS + 1):
            blocks(side, channels + skips.pop(), own, attends=level < 3)
            channels = own
        if level > 0:
            side *= 2
            conv(side, own, own)
    conv(side, width, 4)
    return work


def _resblock(count: _Counter, images: int, side: int, channels: int, own: int, time: int) -> None:
    count.conv(images, side, channels, own)
    count.linear(images, time, own)
    count.conv(images, side, own, own)
    if channels != own:
        count.conv(images, side, channels, own, kernel=1)
    count.module(images * side**2 * channels, images * side**2 * own)


def _spatial_transformer(count: _Counter, images: int, side: int, own: int) -> None:
    rows = images * side**2
    for _ in range(2):  # in and out
        count.conv(images, side, own, own, kernel=1)
    for _ in range(4):
        count.linear(rows, own, own)
    count.attention(images, side**2, side**2, own)
    for _ in range(2):
        count.linear(rows, own, own)
        count.linear(images * TOKENS, TEXT, own)
    count.attention(images, side**2, TOKENS, own)
    count.linear(rows, own, 8 * own, FEED_FORWARD)
    count.linear(rows, 4 * own, own, FEED_FORWARD)
    count.module(rows * own + images * TOKENS * TEXT, rows * own)


def _motion_module(count: _Counter, shape: Shape, side: int, own: int, reads_text: bool) -> None:
    pixels = shape.clips * side**2
    rows = pixels * shape.frames
    count.linear(rows, own, own)
    for _ in range(2):
        count.linear(rows, own, 3 * own)
        count.attention(pixels, shape.frames, shape.frames, own)
        count.linear(rows, own, own)
    if reads_text:
        count.linear(rows, own, own)
        count.attention(shape.clips, shape.frames * side**2, TOKENS, own)
        count.linear(rows, own, own)
    count.linear(rows, own, 8 * own, FEED_FORWARD)
    count.linear(rows, 4 * own, own, FEED_FORWARD)
    count.linear(rows, own, own)
    count.module(rows * own, rows * own)


@dataclass(frozen=True)
class Counted:
    """What PyTorch's counter saw, and the operators of other libraries that it knows nothing of."""

    flops: float
    unknown: tuple[str, ...]


def count_step(variant: Variant, shape: Shape, module: Callable[[str], ModuleType]) -> Counted:
    """One sampling step: two less one, as some things are computed once for all steps.

    Args:
        module: By name, the pack's as the variant uses them: `Host.core`.
    """
    with _by_layers(module):
        one, two = (count_flops(lambda steps=steps: variant.sample(shape, steps, lambda: None)) for steps in (1, 2))
    return Counted(two.flops - one.flops, two.unknown)


def count_flops(call: Callable[[], object]) -> Counted:
    """Run `call` once under PyTorch's counter."""
    # The mode that is entered last is asked first: the counter takes composed operators apart for the other one.
    with _ForeignOperators() as seen, FlopCounterMode(display=False, custom_mapping=_more_formulas()) as counter:
        call()
    known = {str(operator) for operator in counter.flop_registry}
    return Counted(float(counter.get_total_flops()), tuple(sorted(seen.names - known)))


@contextlib.contextmanager
def _by_layers(module: Callable[[str], ModuleType]) -> Iterator[None]:
    """Motion modules compute by PyTorch's operators, for kernels that are launched directly pass by every counter."""
    switches = (
        (module("followclick_core.models.motion_ops"), "run_fused"),
        (module("followclick_core.models.temporal_attention"), "runs_as_kernel"),
    )
    kept = [getattr(holder, name) for holder, name in switches]
    for holder, name in switches:
        setattr(holder, name, lambda *_: False)
    try:
        yield
    finally:
        for (holder, name), function in zip(switches, kept, strict=True):
            setattr(holder, name, function)


class _ForeignOperators(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace not in ("aten", "prim", "prims", "profiler"):
            self.names.add(str(func.overloadpacket))
        return func(*args, **(kwargs or {}))


def _more_formulas() -> dict:
    """Attentions that the counter of this PyTorch leaves out, by the formula of those that it knows."""
    return {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops}


def _attention_flops(query: tuple, key: tuple, value: tuple, *_: object, out_shape: object = None, **__: object) -> int:
    batch, heads, queries, width = query
    return 2 * batch * heads * queries * key[2] * (width + value[3])
