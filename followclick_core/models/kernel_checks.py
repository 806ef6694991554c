"""Whether a GPU's Triton kernels compute what PyTorch does, asked before the first of them is relied on."""

import functools
import logging
from collections.abc import Callable

import torch
from torch import Tensor

logger = logging.getLogger("followclick")

# bfloat16 products need tensor cores of this generation.
LEAST_CAPABILITY = (8, 0)
# ||kernel - PyTorch|| / ||PyTorch||: bfloat16 is good for 0.004.
TOLERANCE = 0.01

Comparison = tuple[str, Tensor, Tensor]  # a name, the kernel's result and PyTorch's


def capable(device_index: int) -> bool:
    """Whether the kernels are made for GPUs of this kind and age."""
    return torch.version.hip is None and torch.cuda.get_device_capability(device_index) >= LEAST_CAPABILITY


def agree(what: str, sizes: str, compare: Callable[[], list[Comparison]]) -> bool:
    """Whether `compare` runs and all of its pairs are equal but for rounding; a warning says why not.

    Args:
        what: Whose kernels, as the warning's subject and verb: "Motion modules run".
        sizes: Which of them: "320 channels".

    Raises:
        torch.cuda.OutOfMemoryError, RuntimeError: The GPU's memory is full, which says nothing about the kernels; the
            caller must not remember an answer.
    """
    try:
        # A caller's autocast would round what the kernels are compared with.
        with torch.inference_mode(False), torch.no_grad(), torch.autocast("cuda", enabled=False):
            for name, ours, theirs in compare():
                error = (ours.float() - theirs.float()).norm() / theirs.float().norm()
                if not error < TOLERANCE:
                    raise ArithmeticError(f"{name} of {sizes} is off by {error:.2g}")
    except Exception as error:  # a missing, old or broken Triton fails in many ways, none of which should stop anybody
        if _is_out_of_memory(error):
            raise
        _warn(what, str(error))
        return False
    return True


def _is_out_of_memory(error: Exception) -> bool:
    # Drivers and Triton report it as a plain RuntimeError. A kernel too large for this GPU is "out of resource".
    return isinstance(error, torch.cuda.OutOfMemoryError) or "out of memory" in str(error).lower()


@functools.lru_cache(maxsize=64)
def _warn(what: str, reason: str) -> None:
    """Once for each reason: a Triton that is missing is missing for every size."""
    logger.warning("%s without Triton kernels, so more slowly: %s", what, reason)
