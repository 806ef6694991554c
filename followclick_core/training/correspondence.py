"""Teaching attention where to look: of a moved point, the place in the first frame that it comes from.

With the first frame laid before every frame (`repeat`), an object keeps its look only if the spatial attention finds,
for a place in frame f, the place in frame 0 whose content belongs there. Learned from the diffusion loss alone that
takes very long. Generated scenes know the answer for every pixel, so one head of each attention named below is told
it: cross-entropy of its weights against the true place. Only training does this; the model stays what it is. The idea
of supervising attention by known alignments is of Liu et al. 2016 (arXiv:1609.04186).
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..models.blocks import SpatialTransformer
from ..models.unet import UNet

Cells = Int[Tensor, "b f k"]  # numbers of latent cells, row by row; NOWHERE where there is none
NOWHERE = -1


class CorrespondenceLoss:
    """Watches self-attentions of the UNet's output blocks at its finest levels, and says how far off one head looks.

    Args:
        levels: How many levels, from full resolution down.

    Raises:
        ValueError: The UNet has no attention there.
    """

    def __init__(self, unet: UNet, levels: int = 2):
        self._watched = [(_self_attention(module), 2**level) for module, level in _output_attentions(unet, levels)]
        if not self._watched:
            raise ValueError(
                f"A UNet without attention at its {levels} finest levels cannot learn where points come from; "
                "set correspondence_weight to 0."
            )
        self._inputs: dict[nn.Module, Tensor] = {}
        self.recording = False
        for attention, _ in self._watched:
            attention.register_forward_pre_hook(self._note)

    def __call__(self, place: Cells, origin: Cells, width: int) -> Tensor:
        """Mean cross-entropy, in nats, over the watched attentions and the given places.

        Args:
            place: Cells of the frames' latents.
            origin: The cell of frame 0 whose content is seen there; NOWHERE: the place does not count.
            width: Cells in a row of the latents.
        """
        known = origin.flatten(0, 1) >= 0
        total = place.new_zeros((), dtype=torch.float32)
        for attention, scale in self._watched:
            x = self._inputs.pop(attention)
            at, to = (_coarser(cells.flatten(0, 1).clamp(min=0), width, scale) for cells in (place, origin))
            scores = _scores_of_one_head(attention, x, at)
            entropy = F.cross_entropy(scores.flatten(0, 1).float(), to.flatten(), reduction="none")
            total = total + (entropy * known.flatten()).sum() / known.sum().clamp(min=1)
        return total / len(self._watched)

    def _note(self, attention: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        if self.recording:
            self._inputs[attention] = arguments[0]


def draw_places(
    origins: Float[Tensor, "b 2 f h w"], stride: int, points: int, generator: torch.Generator
) -> tuple[Cells, Cells]:
    """Cells of each frame in which the object is seen, at random, and where in frame 0 their content comes from.

    Args:
        origins: data.scenes.SceneBatch.origins: pixels of frame 0, below 0 where the object is not seen.
        stride: Pixels of a cell's side.
    """
    height, width = origins.shape[-2:]
    x, y = (origins / stride).floor().long().unbind(1)
    cell = torch.where((x >= 0) & (y >= 0) & (x < width) & (y < height), y * width + x, NOWHERE).flatten(2)
    # Random numbers where the object is seen and less elsewhere: the largest are a draw without replacement.
    order = torch.rand(cell.shape, device=cell.device, generator=generator) + (cell >= 0)
    place = order.topk(min(points, cell.shape[-1]), dim=-1).indices
    return place, cell.gather(-1, place)


def _scores_of_one_head(attention: nn.Module, x: Tensor, places: Int[Tensor, "n k"]) -> Float[Tensor, "n k hw"]:
    """Scaled products of the first head's queries at some places with its keys at all."""
    to_q, to_k = attention.to_q, attention.to_k
    depth = to_q.weight.shape[0] // attention.num_heads  # type: ignore[union-attr, operator]
    wanted = x.gather(1, places[..., None].expand(-1, -1, x.shape[-1]))
    q = F.linear(wanted, to_q.weight[:depth])  # type: ignore[index, union-attr]
    k = F.linear(x, to_k.weight[:depth])  # type: ignore[index, union-attr]
    return q @ k.transpose(1, 2) / math.sqrt(depth)


def _coarser(cells: Int[Tensor, "n k"], width: int, scale: int) -> Int[Tensor, "n k"]:
    """The same places on a grid `scale` times as coarse."""
    row, column = cells // width, cells % width
    return row // scale * math.ceil(width / scale) + column // scale


def _output_attentions(unet: UNet, levels: int) -> list[tuple[SpatialTransformer, int]]:
    per_level = unet.params.num_res_blocks + 1
    coarsest = len(unet.params.channel_mult) - 1
    return [
        (layer, level)
        for index, block in enumerate(unet.output_blocks)
        if (level := coarsest - index // per_level) < levels
        for layer in block  # type: ignore[union-attr]
        if isinstance(layer, SpatialTransformer)
    ]


def _self_attention(module: SpatialTransformer) -> nn.Module:
    # Compiled code neither calls hooks that come later nor could hand out what they see.
    vars(module).pop("forward", None)
    return module.transformer_blocks[0].attn1  # type: ignore[return-value]
