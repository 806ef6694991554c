"""A program: the Triton kernels of motion modules against PyTorch, in Triton's interpreter on the CPU; prints errors.

A process of its own, because Triton reads TRITON_INTERPRET when it is imported, and Dynamo cannot trace the shape
checks that the tests switch on.
"""

import json

import torch
from torch import Tensor

from followclick_core.models import motion_module, motion_ops, row_kernels, temporal_attention
from followclick_core.models.frames_kernel import WIDE_TILES, add_linear_to_frames
from followclick_core.models.frames_kernel import Tiles as FrameTiles
from followclick_core.models.gated_linear_kernel import Tiles, gated_linear
from followclick_core.models.lora import MOTION_LAYERS, add_lora
from followclick_core.models.motion_module import MotionModule, RegionKeyValue
from followclick_core.models.row_kernels import gate_product, norm_rows

CPU = torch.device("cpu")
# Channels, heads, frames, side of the picture, clips.
OPERATORS = (
    (320, 8, 16, 2, 1),
    (640, 8, 17, 1, 1),
    (1280, 8, 3, 1, 1),
    (96, 2, 24, 2, 1),
    (64, 2, 32, 1, 1),
    (32, 2, 1, 9, 2),
)
MODULES = ((32, 2, 5, 3, 2), (320, 8, 3, 2, 1), (32, 1, 17, 2, 1))
TEXT = 12


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with torch.no_grad():
        operators = {str(sizes): operator_errors(*sizes) for sizes in OPERATORS}
        modules = {str(sizes): module_errors(*sizes) for sizes in MODULES}
        print(json.dumps({"operators": operators, "modules": modules, "others": other_errors()}))


def relative(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    return float((ours - theirs).norm() / theirs.norm())


def operator_errors(channels: int, heads: int, frames: int, size: int, clips: int) -> dict[str, float]:
    compared = motion_ops.comparisons(CPU, torch.float32, channels, frames, size, clips)
    compared += motion_ops.gated_comparisons(gated_linear, CPU, torch.float32, channels)
    compared += temporal_attention.comparisons(CPU, torch.float32, channels // heads, False, frames, heads)
    return {f"{index}, {name}": relative(ours, theirs) for index, (name, ours, theirs) in enumerate(compared)}


def randomised(channels: int, heads: int) -> MotionModule:
    module = MotionModule(channels, heads, TEXT).eval()
    for name, parameter in module.named_parameters():
        parameter.data = torch.randn(parameter.shape) / max(1, parameter[0].numel()) ** 0.5 + ("norm" in name)
    return module


def module_errors(channels: int, heads: int, frames: int, size: int, clips: int) -> dict[str, float]:
    module, x = randomised(channels, heads), torch.randn(clips * frames, channels, size, size)
    text = module.project_text(torch.randn(clips, 7, TEXT))
    errors = {}
    for layout, given in (("planes", x), ("channels last", x.to(memory_format=torch.channels_last))):
        for kind, each in (("text", text), ("no text", None)):
            errors[f"{layout}, {kind}"] = added_error(module, given, frames, each)
    return errors


def added_error(module: MotionModule, x: Tensor, frames: int, text: motion_module.MotionText | None) -> float:
    """Of what the module adds to its input, in the input's layout."""
    ours = module.temporal_transformer.forward_fused(x, frames, text)
    assert ours.stride() == x.stride()
    return relative(ours - x, module(x, frames, text) - x)


def other_errors() -> dict[str, float]:
    module, x = randomised(32, 2), torch.randn(8, 32, 2, 3)
    texts = module.project_text(torch.randn(4, 7, TEXT))
    assert texts is not None
    regions = RegionKeyValue(*texts, torch.rand(2, 2, 6))
    errors = {"regions": added_error(module, x, 4, regions)}
    strided = torch.randn(8, 3, 32, 2).permute(0, 2, 3, 1)
    errors["neither layout"] = relative(module.temporal_transformer.forward_fused(strided, 4), module(strided, 4))
    motion_module.MAX_FEED_FORWARD_BYTES = 8 * 4 * 32 * 10
    errors["feed-forward in pieces"] = added_error(module, x, 4, None)
    motion_module.MAX_PACKED_BYTES = 3 * 4 * 32 * 4 * 5
    errors["attention in pieces"] = added_error(module, x, 4, texts)
    errors["regions in pieces"] = added_error(module, x, 4, regions)
    block = module.temporal_transformer.transformer_blocks[0]
    before = module.temporal_transformer.forward_fused(x, 4)
    block.attention_blocks[0].to_k.weight.data.copy_(torch.randn(32, 32))
    errors["weights changed in place"] = added_error(module, x, 4, None)
    block.attention_blocks[1].to_v.weight = torch.nn.Parameter(torch.randn(32, 32))
    errors["weights exchanged"] = added_error(module, x, 4, None)
    assert relative(module.temporal_transformer.forward_fused(x, 4), before) > 1e-3
    errors |= compiled_error(module, x)
    holder = torch.nn.ModuleDict({"motion_modules": torch.nn.ModuleList([module])})
    add_lora(holder, MOTION_LAYERS, rank=2)
    for name, parameter in module.named_parameters():
        parameter.data = torch.randn(parameter.shape) if name.endswith(".up") else parameter.data
    errors["low-rank additions"] = added_error(module, x, 4, None)
    return errors | tile_errors()


def compiled_error(module: MotionModule, x: Tensor) -> dict[str, float]:
    transformer = module.temporal_transformer
    compiled = torch.compile(transformer.forward_fused, fullgraph=True, backend="aot_eager")
    return {"compiled": relative(compiled(x, 4) - x, transformer(x, 4) - x)}


def tile_errors() -> dict[str, float]:
    """Kernels with other tiles than small sizes have, and what no comparison above runs on a CPU."""
    x, weight, bias = torch.randn(37, 48), torch.randn(80, 48), torch.randn(80)
    value, gate = (x @ weight.T + bias).chunk(2, dim=-1)
    gated = value * torch.nn.functional.gelu(gate)
    # One program makes all tiles, as the CPU counts for one multiprocessor.
    kinds = (None, Tiles(16, 16, 16), Tiles(16, 32, 16), Tiles(32, 16, 32, group=2))
    errors = {f"gated {tiles}": relative(gated_linear(x, weight, bias, tiles), gated) for tiles in kinds}
    x, scale, shift = 5 + torch.randn(70, 96), torch.randn(96), torch.randn(96)
    normed = torch.nn.functional.layer_norm(x, (96,), scale, shift)
    row_kernels.ENOUGH_PROGRAMS = 1  # so programs have several tiles
    errors["LayerNorm of several tiles"] = relative(norm_rows(x, scale, shift, 1e-5, None, None), normed)
    errors["gate of large numbers"] = relative(
        gate_product(torch.tensor([[2.0, -3, 1e9, -40]])), torch.tensor([[2e9, 0]])
    )
    points = torch.linspace(-12, 12, 4001)[None]
    ours = gate_product(torch.cat([torch.ones_like(points), points], dim=1))
    errors["largest error of the gate"] = float((ours - torch.nn.functional.gelu(points)).abs().max())
    return errors | last_layer_errors()


def last_layer_errors() -> dict[str, float]:
    h, weight, bias, x = torch.randn(18, 4, 48), torch.randn(40, 48), torch.randn(40), torch.randn(8, 40, 3, 3)
    added = torch.nn.functional.linear(h, weight, bias).view(2, 3, 3, 4, 40).permute(0, 3, 4, 1, 2).flatten(0, 1)
    errors = {}
    for name, given in (("planes", x), ("channels last", x.to(memory_format=torch.channels_last))):
        for tiles in (None, WIDE_TILES, FrameTiles(16, 16, 16)):
            ours = add_linear_to_frames(h, weight, bias, given, tiles)
            assert ours.stride() == given.stride()
            errors[f"last layer, {name}, {tiles}"] = relative(ours, added + x)
    return errors


if __name__ == "__main__":
    main()
