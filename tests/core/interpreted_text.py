"""A program: the Triton kernel of attention to motion texts against PyTorch's attention; prints errors.

In Triton's interpreter on the CPU, and a process of its own for the reasons that `interpreted_motion.py` gives.
"""

import json

import torch

from followclick_core.models import text_kernel
from followclick_core.models.text_attention import comparisons

CPU = torch.device("cpu")
# Width of a head, tokens, heads, pixels: of one token, of a power of two, of two pieces, and of tiles not filled.
SIZES = ((40, 77, 8, 20), (80, 40, 2, 13), (160, 120, 1, 13), (40, 1, 2, 3), (80, 128, 1, 1), (16, 16, 1, 64))


def main() -> None:
    torch.set_num_threads(1)
    errors = {str(sizes): error(*sizes) for sizes in SIZES}
    text_kernel.ENOUGH_PROGRAMS = 1  # so programs have several tiles, the last of which are beyond the end
    errors["several tiles"] = error(48, 77, 1, 70)
    print(json.dumps(errors))


def error(width: int, tokens: int, heads: int, pixels: int) -> float:
    ((_, ours, theirs),) = comparisons(CPU, torch.float32, width, tokens, heads, pixels)
    assert ours.shape == theirs.shape
    return float((ours - theirs).norm() / theirs.norm())


if __name__ == "__main__":
    main()
