"""Where an object goes in a clip, by template matching: torch alone, batched, on any device.

The object of frame 0 is searched in every later frame near where it was last (sum of squared differences over its
mask, all shifts at once by Fourier transform), to parts of a pixel by a parabola. It fits what the ablations' scenes
show, objects that move as a whole; `flow.tracks` follows objects that bend.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from ..shapes import Masks, PerSample, Video

Positions = Float[Tensor, "b f 2"]
Velocities = Float[Tensor, "b 2"]
Costs = Float[Tensor, "f rows columns"]

# An object farther from its last place than this part of the width is another one.
REACH = 1 / 12
# Of a template that has left the frame there must remain this share.
LEAST_SEEN = 0.3


def track(frames: Video, masks: Masks) -> Positions:
    """The object's shift from its place in frame 0, in pixels of the clip (x, y).

    Args:
        frames: Pixels 0..1, b 3 f h w.
        masks: The object in frame 0; one without a pixel stays where it is.
    """
    shifts = [_track_one(clip.float(), mask[0].float()) for clip, mask in zip(frames, masks, strict=True)]
    return torch.stack(shifts)


def velocities(positions: Positions) -> Velocities:
    """Pixels per frame (x, y) of the even straight motion that fits each track best, by least squares."""
    time = torch.arange(positions.shape[1], device=positions.device, dtype=positions.dtype)
    time = time - time.mean()
    return (positions * time[None, :, None]).sum(1) / time.square().sum()


def speeds(velocity: Velocities, width: int) -> PerSample:
    """Pixels per frame at 512 pixels of width, from those of a clip of `width`."""
    return velocity.norm(dim=1) * (512 / width)


def _track_one(clip: Float[Tensor, "3 f h w"], mask: Float[Tensor, "h w"]) -> Float[Tensor, "f 2"]:
    count, height, width = clip.shape[1:]
    track = torch.zeros(count, 2)
    if not mask.any():
        return track.to(clip.device)
    # The walk asks for single numbers, for each of which a GPU would have to be waited for.
    costs = _costs(clip, mask).cpu()
    at_y, at_x = 0, 0
    reach = max(2, round(width * REACH))
    for index in range(1, count):
        # The cost of shift (y, x) lies at row y + height, column x + width.
        top, left = max(at_y + height - reach, 1), max(at_x + width - reach, 1)
        window = costs[index, top : at_y + height + reach + 1, left : at_x + width + reach + 1]
        best = int(window.argmin())
        row, column = top + best // window.shape[1], left + best % window.shape[1]
        at_y, at_x = row - height, column - width
        track[index, 0] = at_x + _vertex(costs[index, row, column - 1 : column + 2])
        track[index, 1] = at_y + _vertex(costs[index, row - 1 : row + 2, column])
    return track.to(clip.device)


def _costs(clip: Float[Tensor, "3 f h w"], mask: Float[Tensor, "h w"]) -> Costs:
    """Mean squared difference of frame 0 under the mask to each frame, for all shifts; infinite where too little of
    the object would be seen."""
    height, width = mask.shape
    template = clip[:, 0] * mask
    ones = torch.ones(1, 1, height, width, device=clip.device)
    seen = _correlate(mask[None], ones)
    own = _correlate((template * clip[:, 0]).sum(0, keepdim=True), ones)
    theirs = _correlate(mask[None], clip.square().sum(0)[:, None])
    both = _correlate(template, clip.transpose(0, 1))
    cost = (own - 2 * both + theirs) / seen.clamp(min=1)
    return torch.where(seen >= LEAST_SEEN * mask.sum(), cost, torch.inf)


def _correlate(template: Float[Tensor, "c h w"], frames: Float[Tensor, "n c h w"]) -> Costs:
    """Sum over pixels of template(p) frame(p + d), for shifts d from -h to h - 1 and from -w to w - 1."""
    height, width = template.shape[-2:]
    size = (2 * height, 2 * width)
    product = torch.fft.rfft2(template, s=size).conj() * torch.fft.rfft2(frames, s=size)
    return torch.fft.irfft2(product.sum(1), s=size).roll((height, width), dims=(-2, -1))


def _vertex(three: Float[Tensor, "3"]) -> float:
    """Where between -0.5 and 0.5 the parabola through three costs is lowest."""
    if len(three) < 3 or not three.isfinite().all():
        return 0.0
    before, here, after = three.tolist()
    bend = before - 2 * here + after
    return max(-0.5, min(0.5, 0.5 * (before - after) / bend)) if bend > 0 else 0.0
