"""Teaching the still gate which cells show the first frame unchanged (models/still_gate.py).

The diffusion loss alone teaches it too, but slowly where it matters most: far from the object the UNet's own prediction
is nearly right, so that little is gained by opening the gate, and yet what is left there shimmers. Clips know the
answer: a cell whose latents are those of frame 0 stands still.
"""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ..models.still_gate import StillGate
from ..shapes import Video

# Mean square over a cell's channels, of latents of unit variance. Beside a moving object the autoencoder's view of it
# reaches three cells far and changes them by less than this.
LEAST_CHANGE = 1e-3


class StillLoss:
    """Watches a gate, and says how far its opening is from what stands still."""

    def __init__(self, gate: StillGate):
        self._logits: Tensor | None = None
        self.recording = False
        gate.conv.register_forward_hook(self._note)

    def __call__(self, still: Float[Tensor, "b 1 f h w"]) -> Tensor:
        """Mean cross-entropy of the gate in the call before, in nats. Args: still: see `still_cells`."""
        logits, self._logits = self._logits, None
        assert logits is not None
        return F.binary_cross_entropy_with_logits(logits.float(), still.transpose(1, 2).flatten(0, 1).float())

    def _note(self, _conv: nn.Module, _inputs: object, logits: Tensor) -> None:
        if self.recording:
            self._logits = logits


def still_cells(latents: Video) -> Float[Tensor, "b 1 f h w"]:
    """1 where a cell of a frame is that of frame 0, else 0."""
    change = (latents - latents[:, :, :1]).square().mean(1, keepdim=True)
    return (change < LEAST_CHANGE).to(latents.dtype)
