"""torch.compile of a UNet's repeated blocks: few compilations, which every sampling after the first finds ready.

Blocks rather than the whole model: what is compiled for one block serves all blocks of its shapes (Stable Diffusion
1.5 has 45 of 18 shapes), and what lies between them stays Python, so hooks, ControlNets and patches at the borders of
blocks work as ever. A block that is hooked inside computes as it always does, since compiled code does not look for
hooks again.

Compiled functions are kept for the life of the process, by what a block is and the shapes of its weights, never by
the block itself: another prompt, magnitude or LoRA, or the same model loaded anew, compiles nothing. On disk they are
kept by PyTorch's own caches (TORCHINDUCTOR_CACHE_DIR).
"""

import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from .forwards import computes_by_its_class, exchanged_forwards, has_inner_hooks

MODES = ("default", "max-autotune-no-cudagraphs")


@dataclass(frozen=True)
class CompileParams:
    """How to compile.

    Args:
        mode: One of MODES. The second tries several kernels for each product: slow to compile, sometimes faster.
        any_shape: Compile once for clips of every size and length. Otherwise each size and length is compiled for
            itself, which gives somewhat faster code; PyTorch's limit (8 for a block) bounds how many there are.
        backend: torch.compile's.
    """

    mode: str = "default"
    any_shape: bool = True
    backend: str | Callable = "inductor"

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"There is no compile mode {self.mode!r}; choose one of {', '.join(MODES)}.")


@dataclass(frozen=True)
class BlockKind:
    """What is compiled of a kind of block.

    Args:
        body: (block, *arguments) -> output, without a look at anything else.
        arguments: From a call's own arguments to those of `body`; None where the call must not be compiled.
    """

    body: FunctionType
    arguments: Callable[..., tuple | None]


@contextmanager
def compiled_blocks(blocks: Iterable[tuple[nn.Module, BlockKind]], params: CompileParams) -> Iterator[int]:
    """Inside it, the blocks run compiled, but for those with hooks inside; yields how many do.

    What a block gets is compiled when it is first called.
    """
    free = [(block, kind) for block, kind in blocks if computes_by_its_class(block) and not has_inner_hooks(block)]
    exchanges = [(block, _forward_of(block, kind, params)) for block, kind in free]
    with exchanged_forwards(exchanges), _equally_trainable([block for block, _ in free]), _own_sizes(params):
        yield len(exchanges)


@contextmanager
def _equally_trainable(blocks: list[nn.Module]) -> Iterator[None]:
    """No weight asks for gradients: code compiled for those that do would not serve those that a LoRA has changed."""
    weights = [weight for block in blocks for weight in block.parameters() if weight.requires_grad]
    for weight in weights:
        weight.requires_grad = False
    try:
        yield
    finally:
        for weight in weights:
            weight.requires_grad = True


def _forward_of(block: nn.Module, kind: BlockKind, params: CompileParams) -> Callable:
    shapes = tuple((name, tuple(weight.shape)) for name, weight in block.named_parameters())
    compiled = _compiled(kind.body, type(block), shapes, params)

    def forward(*args: Any, **kwargs: Any) -> Tensor:
        arguments = kind.arguments(*args, **kwargs)
        if arguments is None:
            return type(block).forward(block, *args, **kwargs)
        return compiled(block, *arguments)

    return forward


@functools.lru_cache(maxsize=256)
def _compiled(body: FunctionType, _kind: type, _shapes: tuple, params: CompileParams) -> Callable:
    """A compiled function for blocks of these shapes.

    PyTorch counts compilations by code object, and stops at eight: each kind of shapes gets a code object of its own.
    """
    own = FunctionType(body.__code__.replace(), body.__globals__, body.__name__, body.__defaults__, body.__closure__)
    mode = None if params.mode == "default" else params.mode
    return torch.compile(own, backend=params.backend, mode=mode, dynamic=params.any_shape)


def _own_sizes(params: CompileParams) -> AbstractContextManager:
    """Without it a square clip of 32 frames and 32 cells would be compiled for clips whose three sizes are equal."""
    import torch.fx.experimental._config as shape_config

    return shape_config.patch(use_duck_shape=not params.any_shape)  # type: ignore[attr-defined]
