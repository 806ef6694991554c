"""What CONDITIONING carries for a motion model, as the host's own condition types, and under which names."""

import copy
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from comfy.conds import CONDNoiseShape, CONDRegular
from torch import Tensor

CONTEXT, MAGNITUDE, FIRST_FRAME = "motion_context", "motion_magnitude", "first_frame"
# Of several regions in one entry: where each counts, and the prompts for the spatial cross-attention.
REGION_SHARES, REGION_PROMPTS = "region_shares", "region_prompts"
CARRIED = (CONTEXT, MAGNITUDE, FIRST_FRAME, REGION_SHARES, REGION_PROMPTS)


class FirstFrameCond(CONDNoiseShape):
    """Mask and first-frame latents of each frame, f 5 h w. The host would cut or repeat them for another length."""

    def process_cond(self, batch_size: int, area: Sequence[int] | None, **kwargs: object) -> CONDNoiseShape:
        self.check(batch_size)
        return super().process_cond(batch_size=batch_size, area=area, **kwargs)

    def check(self, num_frames: int) -> None:
        """Raises:
        ValueError: the latent has another number of frames.
        """
        if num_frames != len(self.cond):
            raise ValueError(
                f"First Frame made its conditioning for {len(self.cond)} frames, but a latent of {num_frames} is "
                "sampled; connect the LATENT of the same First Frame node."
            )


class CurveCond(CONDRegular):
    """A magnitude that changes over the clip: support points, spread evenly over however many frames are sampled."""

    def over(self, num_frames: int) -> Tensor:
        """A number for each frame."""
        points = self.cond[None, None]
        return torch.nn.functional.interpolate(points, num_frames, mode="linear", align_corners=True)[0, 0]

    def process_cond(self, batch_size: int, **kwargs: object) -> CONDRegular:
        return CONDRegular(self.over(batch_size))


def on_device(conds: dict[str, list[dict]], device: torch.device) -> dict[str, list[dict]]:
    """A guider's entries with the tensors of their `model_conds` on a device.

    The host leaves them in main memory, where it repeats them for each frame, joins and rounds them before every UNet
    call; and to copy the result it waits for all that the GPU has to do.
    """
    return {
        name: [
            {**entry, "model_conds": {key: _moved(cond, device) for key, cond in entry["model_conds"].items()}}
            for entry in entries
        ]
        for name, entries in conds.items()
    }


def _moved(cond: CONDRegular, device: torch.device) -> CONDRegular:
    tensor = getattr(cond, "cond", None)  # a list, a number or something of another pack's stays as it is
    if not isinstance(tensor, Tensor):
        return cond
    moved = copy.copy(cond)  # and not by its class, whose arguments only its author knows
    moved.cond = tensor.to(device)
    return moved


def uncompiled_blends(conds: dict[str, list[dict]]) -> AbstractContextManager:
    """Inside it, torch.compile counts for nothing if there is an entry of several regions.

    What is compiled for one block serves its like, and hooks are not among what is compared; but with several regions
    every block has its own. So a compiled UNet would silently make another clip.

    Args:
        conds: A guider's entries, under its names for them.
    """
    blended = any(REGION_SHARES in entry.get("model_conds", {}) for entries in conds.values() for entry in entries)
    # Nothing is compiled before this module is there, and to load it takes seconds; torch 2.5 has no stances.
    if not blended or "torch._dynamo" not in sys.modules or not hasattr(torch.compiler, "set_stance"):
        return nullcontext()
    return torch.compiler.set_stance("force_eager")
