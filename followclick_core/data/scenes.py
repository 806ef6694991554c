"""Clips with exact masks and flow, made from a seed: one object moves by a verb, all else stands still.

Split by sprite and by photo: what "test" shows, training never saw.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..shapes import Masks, PerSample
from .art import ArtPack
from .layout import REFERENCE_WIDTH, Draftsman, Layout, SceneParams
from .render import Rendered, Renderer

__all__ = ["SceneBatch", "SceneGenerator", "SceneParams"]


@dataclass(frozen=True)
class SceneBatch:
    """A batch of clips on the generator's device. Flow is in pixels of these frames, x then y.

    Attributes:
        frames: 0..1.
        object_masks: The visible target per frame, 0 or 1.
        distractor_mask: The visible distractors of frame 0, 0 or 1; they stand still.
        flow: From frame i to i+1 at frame i's pixels, inside object_masks[:, i]; 0 elsewhere.
        origins: Of the middle of every cell of 8 x 8 pixels in which the target is seen, the point of frame 0 that it
            shows, x then y, in pixels; -1 elsewhere and for drawn animations.
        flow_known: False where a drawn animation moves: then `flow` holds only its movement as a whole.
        magnitude: Mean flow over the visible target, then over the frame pairs, in px/frame at 512 px of width.
        verbs: Canonical names (data.verbs.VERBS).
        motion_prompts: What a user would say.
        captions: What the still picture shows.
    """

    frames: Float[Tensor, "b 3 f h w"]
    object_masks: Float[Tensor, "b f h w"]
    distractor_mask: Float[Tensor, "b h w"]
    flow: Float[Tensor, "b 2 f-1 h w"]
    origins: Float[Tensor, "b 2 f rows columns"]
    flow_known: Bool[Tensor, "b"]
    magnitude: PerSample
    verbs: list[str]
    motion_prompts: list[str]
    captions: list[str]

    @property
    def mask(self) -> Masks:
        """The silhouette that a click on frame 0 means."""
        return self.object_masks[:, :1]

    @property
    def swept(self) -> Masks:
        """Wherever the target is in any frame."""
        return self.object_masks.amax(1, keepdim=True)


class SceneGenerator:
    """Makes batches of scenes from one side of the split of an art pack."""

    def __init__(
        self, art: ArtPack, params: SceneParams, device: torch.device | str = "cpu", split: str = "train"
    ) -> None:
        self.params = params
        self.device = torch.device(device)
        self._draftsman = Draftsman(art, params, split)
        self._stills = Draftsman(art, replace(params, num_frames=1), split)
        animations = [i for indices in self._draftsman.animations.values() for i in indices]
        self._renderer = Renderer(art, self._draftsman.sprites, self._draftsman.photos, animations, self.device)

    def sample(
        self, batch_size: int, seed: int, verbs: Sequence[str] | None = None, magnitudes: Sequence[float] | None = None
    ) -> SceneBatch:
        """A batch of clips, the same for the same arguments on the same device.

        Args:
            verbs, magnitudes: What each scene should show, for evaluation; drawn where None. A magnitude beyond what
                the verb reaches on the object gives its ceiling; `SceneBatch.magnitude` says what came out.
        """
        layouts = [
            self._draftsman.draw(seed, i, verbs[i] if verbs else None, magnitudes[i] if magnitudes else None)
            for i in range(batch_size)
        ]
        return self._render(layouts, self.params)

    def sample_stills(self, batch_size: int, seed: int) -> SceneBatch:
        """A batch of single frames: for what learns from pictures alone."""
        layouts = [self._stills.draw(seed, i) for i in range(batch_size)]
        return self._render(layouts, self._stills.params)

    def _render(self, layouts: Sequence[Layout], params: SceneParams) -> SceneBatch:
        # Positions need all the bits of float32, also inside a training step's autocast.
        with torch.autocast(self.device.type, enabled=False):
            return _batch(layouts, self._renderer.render(layouts, params))


def _batch(layouts: Sequence[Layout], rendered: Rendered) -> SceneBatch:
    device = rendered.frames.device
    drawn = torch.tensor([layout.drawn_magnitude for layout in layouts], device=device)
    # The drawn part and the whole's movement point every which way against each other, so their squares add.
    magnitude = torch.sqrt(mean_flow(rendered) ** 2 + drawn**2)
    return SceneBatch(
        frames=rendered.frames,
        object_masks=rendered.object_masks,
        distractor_mask=rendered.distractor_mask,
        flow=rendered.flow,
        origins=rendered.origins,
        flow_known=torch.tensor([layout.target.kind != "animation" for layout in layouts], device=device),
        magnitude=magnitude,
        verbs=[layout.verb for layout in layouts],
        motion_prompts=[layout.prompt for layout in layouts],
        captions=[layout.caption for layout in layouts],
    )


def mean_flow(rendered: Rendered) -> PerSample:
    """Mean flow over the visible target, then over the pairs of frames in which it is seen; px/frame at 512 width."""
    width = rendered.frames.shape[-1]
    speed = rendered.flow.square().sum(1).sqrt().sum((-1, -2))
    area = rendered.object_masks[:, : speed.shape[1]].sum((-1, -2))
    pairs = (area > 0).sum(1).clamp(min=1)
    return (speed / area.clamp(min=1)).sum(1) / pairs * (REFERENCE_WIDTH / width)
