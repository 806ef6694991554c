"""Where the time of a UNet call goes: the device's kernels by stage of the network and by kind of operation.

Every module of a known kind opens a named range, whichever pack it comes from; a kernel belongs to the innermost range
around the operator that launched it, and to the outermost operator inside that range. A kernel that no operator
launched, as Triton's, belongs to the range in which it was launched. What a compiler has fused has no modules any more
and is listed by the names of its kernels.
"""

import bisect
import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

from .variants import Shape, Variant
from .work import BETWEEN, FEED_FORWARD, LINEARS, MOTION, RESBLOCK, SPATIAL, Work

OTHER = "other"
STAGES = {
    "ResBlock": RESBLOCK,
    "ResnetBlock2D": RESBLOCK,
    "SpatialTransformer": SPATIAL,
    "Transformer2DModel": SPATIAL,
    "MotionModule": MOTION,
    "VanillaTemporalModule": MOTION,
    "AnimateDiffTransformer3D": MOTION,
    "TransformerTemporalModel": MOTION,
    "Upsample": BETWEEN,
    "Downsample": BETWEEN,
    "Upsample2D": BETWEEN,
    "Downsample2D": BETWEEN,
}
FEED_FORWARD_MODULES = {"FeedForward"}
BOTH_LINEARS = "linears and feed-forward"
# Of operators and, where there is none, of kernels, those of this pack among them; the first that fits counts.
PARTS = (
    ("attention", r"attention|softmax|bmm|flash|fmha|sdpa|^_(forward|backward)$"),
    ("convolutions", r"conv|implicit|fprop"),
    ("norms", r"norm|^_(plane_statistics|channel_moments|join_moments)$"),
    (LINEARS, r"linear|addmm|::mm|matmul|einsum|gemm|cutlass|nvjet|xmma"),
    ("activations", r"silu|gelu|sigmoid|geglu|::mul|^_gate$"),
    ("layout and copies", r"copy|memcpy|memset|clone|contiguous|reshape|::to|cat|repeat|permute|stack|transpose"),
    ("additions", r"add|^_sum_biases$"),
    ("fused by a compiler", r"^triton_"),
)
_PREFIX = "stage: "
_LAUNCH = re.compile(r"^cu(da)?Launch")


@dataclass
class Group:
    """Seconds and number of the kernels of one part of one stage, and which took most."""

    seconds: float = 0.0
    calls: int = 0
    kernels: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    def add(self, kernel: str, microseconds: float) -> None:
        self.seconds += microseconds / 1e6
        self.calls += 1
        self.kernels[kernel] += microseconds / 1e6

    def join(self, other: "Group") -> None:
        self.seconds += other.seconds
        self.calls += other.calls
        for kernel, seconds in other.kernels.items():
            self.kernels[kernel] += seconds

    def top(self, count: int) -> list[tuple[str, float]]:
        return sorted(self.kernels.items(), key=lambda item: -item[1])[:count]


def profile_call(variant: Variant, shape: Shape, device: torch.device) -> dict[tuple[str, str], Group]:
    """Kernels of one sampling step, by (stage, part); of operators' own time on a CPU.

    The step lies between the second note and the third, for some things are computed once for all steps.
    """
    cuda = device.type == "cuda"
    profiler = profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])], acc_events=True)
    notes = itertools.count(1)

    def note() -> None:
        number = next(notes)
        if cuda and number in (2, 3):
            torch.cuda.synchronize()
        if number == 2:
            profiler.start()
        elif number == 3:
            profiler.stop()

    with _ranges():
        variant.sample(shape, 3, note)
    return _grouped(profiler.events(), cuda)


def join_feed_forward(variants: dict[str, dict[tuple[str, str], Group]], work: dict[tuple[str, str], Work]) -> None:
    """Where some variant computes feed-forwards without a module of their own, count them with the linear layers.

    Args:
        variants: Groups of each variant, changed in place.
        work: What must be done, by stage and part; changed in place likewise.
    """
    for stage in {stage for groups in variants.values() for stage, _ in groups} - {OTHER}:
        having = [groups for groups in variants.values() if any(place[0] == stage for place in groups)]
        if (stage, FEED_FORWARD) not in work or all((stage, FEED_FORWARD) in groups for groups in having):
            continue
        for groups in having:
            both = Group()
            for part in (LINEARS, FEED_FORWARD):
                both.join(groups.pop((stage, part), Group()))
            groups[stage, BOTH_LINEARS] = both
        parts = [work.pop((stage, part), Work()) for part in (LINEARS, FEED_FORWARD)]
        work[stage, BOTH_LINEARS] = parts[0] + parts[1]


def _grouped(events, cuda: bool) -> dict[tuple[str, str], Group]:
    groups: dict[tuple[str, str], Group] = defaultdict(Group)
    placed: Counter[tuple[str, float]] = Counter()
    for event in events:
        if event.device_type != torch.autograd.DeviceType.CPU:
            continue
        taken = [(kernel.name, kernel.duration) for kernel in event.kernels if not kernel.name.startswith(_PREFIX)]
        if not cuda and event.self_cpu_time_total > 0 and not event.name.startswith(_PREFIX):
            taken = [(event.name, event.self_cpu_time_total)]
        for name, microseconds in taken:
            groups[_place_of(event, name)].add(name, microseconds)
            placed[name, microseconds] += 1
    launches = _Launches(events)
    for event in _kernels(events) if cuda else ():
        kernel = event.name, event.time_range.elapsed_us()
        if placed[kernel] > 0:
            placed[kernel] -= 1
        else:
            groups[launches.place_of(event)].add(*kernel)
    return dict(groups)


def _kernels(events) -> Iterator:
    for event in events:
        # Named ranges appear among the device's events too.
        on_device = event.device_type != torch.autograd.DeviceType.CPU
        if on_device and not event.is_user_annotation and not event.name.startswith(_PREFIX):
            yield event


class _Launches:
    """Where in the program kernels were launched, for those that the profiler ties to no operator."""

    def __init__(self, events):
        on_host = [event for event in events if event.device_type == torch.autograd.DeviceType.CPU]
        self._times = {event.id: event.time_range.start for event in on_host if _LAUNCH.match(event.name)}
        self._ranges = sorted(
            (event for event in on_host if event.name.startswith(_PREFIX)), key=lambda event: event.time_range.start
        )
        self._starts = [event.time_range.start for event in self._ranges]

    def place_of(self, kernel) -> tuple[str, str]:
        at = self._times.get(kernel.id)
        index = 0 if at is None else bisect.bisect_right(self._starts, at)
        around = self._ranges[index - 1] if index else None
        while around is not None and (around.time_range.end < at or not around.name.startswith(_PREFIX)):
            around = around.cpu_parent
        return (OTHER, _part_of(kernel.name)) if around is None else _place_of(around, kernel.name)


def _place_of(event, kernel: str) -> tuple[str, str]:
    operator, feeds_forward, stage = event.name, False, OTHER
    parent = event
    while parent is not None:
        if parent.name.startswith(_PREFIX):
            name = parent.name.removeprefix(_PREFIX)
            if name not in FEED_FORWARD_MODULES:
                stage = name
                break
            feeds_forward = True
        elif not feeds_forward:
            operator = parent.name if "::" in parent.name else operator
        parent = parent.cpu_parent
    part = _part_of(operator if "::" in operator else kernel)
    return stage, FEED_FORWARD if feeds_forward and part == LINEARS else part


def _part_of(name: str) -> str:
    return next((part for part, pattern in PARTS if re.search(pattern, name.lower())), OTHER)


@contextmanager
def _ranges() -> Iterator[None]:
    """A range around every module of a known kind; hooks for all modules also meet those that packs insert later."""
    opened: dict[int, list[record_function]] = defaultdict(list)

    def enter(module: nn.Module, _inputs: object) -> None:
        if name := _name_of(module):
            opened[id(module)].append(record_function(_PREFIX + name))
            opened[id(module)][-1].__enter__()

    def leave(module: nn.Module, _inputs: object, _output: object) -> None:
        if opened[id(module)]:
            opened[id(module)].pop().__exit__(None, None, None)

    handles = (
        nn.modules.module.register_module_forward_pre_hook(enter),
        nn.modules.module.register_module_forward_hook(leave),
    )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _name_of(module: nn.Module) -> str | None:
    kind = type(module).__name__
    return kind if kind in FEED_FORWARD_MODULES else STAGES.get(kind)
