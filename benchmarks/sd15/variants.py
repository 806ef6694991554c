"""What is compared: each variant samples the same clip with the same calls, and notes every step.

An adapter file is a Python file with one function, `variants(host, argument) -> {name: Clip}`: it loads its pack and
patches `host.plain`. A chain is one of the others with more nodes on its MODEL, such as this pack's accelerations:
`compiled=followclick|FollowClick_AccelerateExactly(compile_blocks='default', text_keys=True)|...`.
"""

import ast
import importlib.util
import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from .host import TEXT, TOKENS, Clip, Host

Note = Callable[[], None]
EXACT = "FollowClick_AccelerateExactly"  # does the work of what it accelerates, unlike other nodes


@dataclass(frozen=True)
class Shape:
    """What is sampled: clips of `frames` frames, `size` pixels square; with cfg above 1 two clips at once."""

    size: int
    frames: int
    cfg: float

    @property
    def clips(self) -> int:
        return 1 if self.cfg == 1 else 2

    @property
    def side(self) -> int:
        return self.size // 8

    def __str__(self) -> str:
        return f"{self.frames} frames of {self.size} px, cfg {self.cfg:g}"


class Variant(Protocol):
    """One way to sample a clip.

    Attributes:
        kind: Whose arithmetic it does, as in `work.py`: "plain", "animatediff", "followclick"; None if unknown, as
            after nodes that leave out or repeat some of it.
    """

    name: str
    kind: str | None

    def sample(self, shape: Shape, steps: int, note: Note) -> Tensor: ...

    def unload(self) -> None:
        """Take the weights off the device, as far as that is the variant's own business."""


@dataclass(frozen=True)
class HostVariant:
    """A MODEL sampled by the host."""

    name: str
    kind: str | None
    host: Host
    clip: Clip

    def sample(self, shape: Shape, steps: int, note: Note) -> Tensor:
        return self.host.sample(self.clip, noise_of(shape), steps, shape.cfg, note)

    def unload(self) -> None:
        self.host.unload()


class DiffusersVariant:
    """diffusers' UNetMotionModel with its own attention, in a plain Euler loop."""

    name, kind = "diffusers", "animatediff"

    def __init__(self, device: torch.device, dtype: torch.dtype, width: int):
        from diffusers import UNetMotionModel

        widths = (width, 2 * width, 4 * width, 4 * width)
        with device:
            unet = UNetMotionModel(block_out_channels=widths, cross_attention_dim=TEXT, num_attention_heads=8)
        self._unet, self._device, self._dtype = unet.to(dtype).eval(), device, dtype

    def sample(self, shape: Shape, steps: int, note: Note) -> Tensor:
        self._unet.to(self._device)
        x = noise_of(shape).to(self._device).movedim(0, 1)[None]
        text = torch.randn(shape.clips * shape.frames, TOKENS, TEXT, device=self._device, dtype=self._dtype)
        sigmas = torch.linspace(14.6, 0, steps + 1).tolist()
        timesteps = torch.linspace(999, 0, steps + 1, device=self._device)  # made here: a step waits for no copy
        with torch.inference_mode():
            for timestep, (sigma, after) in zip(timesteps, itertools.pairwise(sigmas), strict=False):
                both = (x / (1 + sigma**2) ** 0.5).repeat(shape.clips, 1, 1, 1, 1).to(self._dtype)
                predicted = self._unet(both, timestep, text).sample.float()
                if shape.clips == 2:
                    guided, unguided = predicted.chunk(2)
                    predicted = unguided + shape.cfg * (guided - unguided)
                note()
                x = x + predicted * (after - sigma)
        return x[0].movedim(1, 0).cpu()

    def unload(self) -> None:
        self._unet.to("cpu")


def build(host: Host, names: Sequence[str], adapters: Sequence[str], chains: Sequence[str]) -> dict[str, Variant]:
    """The variants by name, in the order in which they take turns.

    Args:
        names: Of "plain", "animatediff", "followclick", "diffusers".
        adapters: Paths of adapter files, each with `=argument` after it if it takes one.
        chains: `name=variant|Node(input=value, ...)|...`.

    Raises:
        ValueError: there is no such variant, or a chain that cannot be read.
    """
    makers: dict[str, Callable[[], Variant]] = {
        "plain": lambda: HostVariant("plain", "plain", host, Clip(host.plain, host.text_only)),
        "animatediff": lambda: HostVariant("animatediff", "animatediff", host, host.animatediff()),
        "followclick": lambda: HostVariant("followclick", "followclick", host, host.followclick()),
        "diffusers": lambda: DiffusersVariant(host.device, host.dtype, host.width),
    }
    if unknown := [name for name in names if name not in makers]:
        raise ValueError(f"There is no variant {unknown[0]!r}; choose of {', '.join(makers)}.")
    built = {name: makers[name]() for name in names}
    for adapter in adapters:
        try:
            clips = _adapted(adapter, host)
        except Exception as error:  # of another pack: the others are compared all the same
            print(f"{adapter} is left out: {str(error)[:500]}", file=sys.stderr)
            continue
        built |= {name: HostVariant(name, "animatediff", host, clip) for name, clip in clips.items()}
    for chain in chains:
        name, base, calls = parse_chain(chain)
        built[name] = replace(_host_variant(built, makers, base), name=name)
        for node, inputs in calls:
            built[name] = _through(built[name], node, inputs)  # type: ignore[arg-type]
    return built


def parse_chain(text: str) -> tuple[str, str, list[tuple[str, dict[str, object]]]]:
    """Name, variant to start from, and the nodes with their inputs.

    Raises:
        ValueError: it is written in another way.
    """
    name, _, rest = text.partition("=")
    base, *calls = rest.split("|")
    try:
        return name.strip(), base.strip(), [_parse_call(call) for call in calls]
    except (SyntaxError, ValueError, AttributeError) as error:
        raise ValueError(f"The chain {text!r} is not written as name=variant|Node(input=value)|...: {error}") from error


def noise_of(shape: Shape) -> Tensor:
    """The noise of a clip, f 4 h w."""
    return torch.randn(shape.frames, 4, shape.side, shape.side, generator=torch.Generator().manual_seed(0))


def _parse_call(text: str) -> tuple[str, dict[str, object]]:
    call = ast.parse(text.strip(), mode="eval").body
    if isinstance(call, ast.Name):
        return call.id, {}
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.args:
        raise ValueError(f"{text!r} is no Node(input=value)")
    return call.func.id, {str(each.arg): ast.literal_eval(each.value) for each in call.keywords}


def _host_variant(built: dict[str, Variant], makers: dict[str, Callable[[], Variant]], name: str) -> HostVariant:
    if name not in built and name not in makers:
        raise ValueError(f"A chain starts from {name!r}, but there is no such variant; give one that is compared.")
    variant = built[name] if name in built else makers[name]()
    if not isinstance(variant, HostVariant):
        raise ValueError(f"A chain starts from {name!r}, which is no MODEL of the host; start from another.")
    return variant


def _through(variant: HostVariant, node: str, inputs: dict[str, object]) -> HostVariant:
    model = variant.host.node(node, model=variant.clip.model, **inputs)[0]
    kind = variant.kind if node == EXACT and not any(name.startswith("guidance") for name in inputs) else None
    return replace(variant, kind=kind, clip=replace(variant.clip, model=model))


def _adapted(adapter: str, host: Host) -> dict[str, Clip]:
    file, _, argument = adapter.partition("=")
    path = Path(file).expanduser()
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise ValueError(f"There is no adapter file {path}; those of the repository are in benchmarks/sd15/adapters.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.variants(host, argument)


def by_turns(variants: dict[str, Variant], rounds: int) -> Iterator[tuple[int, Variant]]:
    """Each variant once in every round, so that a slow moment of the machine meets all of them."""
    for index in range(rounds):
        for variant in variants.values():
            yield index, variant
