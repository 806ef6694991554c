"""The gated feed-forward of a UNet's transformer blocks in pieces of rows, by the motion modules' kernel where it runs.

Its first layer makes eight numbers of each that comes in, and its gate another eight: of 16 frames at 512 pixels and
their unguided twins 1.3 GB at the highest resolution, more than all else that a step has in memory there.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ..models import motion_ops
from .forwards import computes_by_its_class, has_inner_hooks

Rows = Float[Tensor, "*rows c"]
RowsOfOtherWidth = Float[Tensor, "*rows c_out"]

# What the first layer makes of one piece; its gate's results are half as large. The clips above take four pieces at the
# highest resolution, two at the next and one below, whose products are large enough for a whole GPU.
MAX_BYTES = 160 * 2**20


def gated_feed_forwards(unet: nn.Module) -> list[nn.Module]:
    """Those of a UNet's transformer blocks, but for what somebody else computes or watches."""
    blocks = [layer for layer in unet.modules() if type(layer).__name__ == "BasicTransformerBlock"]
    layers = [layer for block in blocks for layer in block.children() if type(layer).__name__ == "FeedForward"]
    return [
        layer
        for layer in layers
        if type(layer.net[0]).__name__ == "GEGLU"  # type: ignore[index]
        and all(computes_by_its_class(inner) for inner in layer.modules())
        and not has_inner_hooks(layer)
    ]


def computes_plainly() -> bool:
    """Whether results alone are asked for, in the type of the input: gradients need what is between, whole."""
    return not torch.is_grad_enabled() and not torch.is_autocast_enabled()


# One operator for all pieces: compiled code then is the same for any number of them, and holds none of them longer.
@motion_ops.operator(lambda x, _wide, _wide_bias, last, *_: x.new_empty(*x.shape[:-1], len(last)))
def gated_feed_forward(
    x: Tensor, wide: Tensor, wide_bias: Tensor, last: Tensor, last_bias: Tensor, max_bytes: int
) -> Tensor:
    """A second linear layer of value * gelu(gate), where [value, gate] is the first layer's result.

    Args:
        x: [..., c].
        wide: [2 d, c].
        last: [c', d].
        max_bytes: How much the first layer makes at once; one row in any case.
    """
    # Heads play no part in a feed-forward: with as many as channels none is too wide.
    fused = motion_ops.run_fused(x, (last, wide), num_heads=len(last))
    gated = motion_ops.gated if fused else _gated
    return _in_pieces(
        lambda rows, out: torch.addmm(last_bias, gated(rows, wide, wide_bias), last.t(), out=out),
        x,
        len(wide),
        len(last),
        max_bytes,
    )


def layers_in_pieces(layer: nn.Module, x: Rows, max_bytes: int) -> RowsOfOtherWidth:
    """A gated feed-forward by its own layers, whatever they do with their weights."""
    gated: nn.Module = layer.net[0]  # type: ignore[index,assignment]
    last: nn.Linear = layer.net[2]  # type: ignore[index,assignment]
    # Not the weights' shapes, which packed ones have of their own.
    wide: int = gated.proj.out_features  # type: ignore[union-attr,assignment]
    return _in_pieces(lambda rows, out: out.copy_(last(gated(rows))), x, wide, last.out_features, max_bytes)


def _in_pieces(
    compute: Callable[[Tensor, Tensor], object], x: Rows, wide: int, narrow: int, max_bytes: int
) -> RowsOfOtherWidth:
    """What `compute` puts into the second tensor that it gets, [n, narrow], for each piece of x's rows, [n, c].

    Args:
        wide: Numbers that it makes of a row on the way.
    """
    result = x.new_empty(*x.shape[:-1], narrow)
    rows, out = x.flatten(0, -2), result.flatten(0, -2)
    most = max(1, max_bytes // (wide * x.element_size()))
    pieces = max(1, -(-len(rows) // most))
    for part, place in zip(rows.chunk(pieces), out.chunk(pieces), strict=True):
        compute(part, place)
    return result


def _gated(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    value, gate = F.linear(x, weight, bias).chunk(2, dim=-1)
    return value * F.gelu(gate)
