"""Simulated clicks for the segmenter's training (Kirillov et al. 2023, appendix A, "training algorithm").

Points are (x, y) pixel indices of the encoder's input, as Sam's prompt encoder takes them. Nothing here waits for the
device or has a shape that depends on the data, so a GPU can replay it: a random point is where random numbers, one per
pixel ("draws"), are largest.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from .segmenter_augment import Pixels, Planes, Stills

Points = Float[Tensor, "b n 2"]
Labels = Float[Tensor, "b n"]

_PART_SHARE = (0.08, 0.7)  # of the object's area; less is a speck, more is the whole


def including_clicks(mask: Planes, number: int, generator: torch.Generator) -> tuple[Points, Labels]:
    """Clicks on the object: some anywhere, some where people rather click, away from its edge."""
    inner = _first_not_empty(erode(mask, 4), mask)
    careful = torch.rand((len(mask), 1, 1, 1), generator=generator, device=mask.device) < 0.6
    points = random_points(torch.where(careful, inner, mask), random_draws(mask, generator), number)
    return points, torch.ones(points.shape[:2], device=mask.device)


def excluding_clicks(stills: Stills, mask: Planes, number: int, generator: torch.Generator) -> tuple[Points, Labels]:
    """Clicks on other objects, or near the object if there are none; `mask` is what the clicks mean."""
    outside = (1 - mask) * stills.valid
    near = outside * dilate(mask, 20)
    others = erode(stills.distractors * outside, 2)
    on_others = torch.rand((len(mask), 1, 1, 1), generator=generator, device=mask.device) < 0.6
    where = torch.where(on_others, _first_not_empty(others, near), near)
    points = random_points(_first_not_empty(where, outside), random_draws(mask, generator), number)
    return points, torch.zeros(points.shape[:2], device=mask.device)


def correcting_click(predicted: Planes, mask: Planes, valid: Planes, draws: Planes) -> tuple[Points, Labels]:
    """A click within what the prediction got wrong: including where it lacks, excluding where it has too much.

    Where nothing is wrong, one more on the object.
    """
    wrong = (predicted != mask).float() * valid
    where = _first_not_empty(_first_not_empty(erode(wrong, 2), wrong), mask)
    points = random_points(where, draws, 1)
    return points, values_at(mask, points)


def part_of(
    pixels: Pixels, mask: Planes, points: Points, generator: torch.Generator
) -> tuple[Planes, Bool[Tensor, "b"]]:
    """The part of the object that has the colour of what was clicked first, and whether it is a part worth the name.

    A click on a shirt may mean the shirt or the person; only with such examples do Sam's several masks differ.
    """
    smooth = F.avg_pool2d(pixels, 5, stride=1, padding=2, count_include_pad=False)
    colour = torch.stack([values_at(channel[:, None], points[:, :1]) for channel in smooth.unbind(dim=1)], dim=1)
    tolerance = 0.1 + 0.15 * torch.rand((len(mask), 1, 1, 1), generator=generator, device=mask.device)
    alike = ((smooth - colour[..., None]).abs().amax(dim=1, keepdim=True) < tolerance).float()
    part = dilate(erode(alike * mask, 1), 1) * mask
    share = part.sum(dim=(1, 2, 3)) / mask.sum(dim=(1, 2, 3)).clamp(min=1)
    return part, (share > _PART_SHARE[0]) & (share < _PART_SHARE[1]) & (values_at(part, points[:, :1])[:, 0] > 0)


def random_draws(like: Planes, generator: torch.Generator) -> Planes:
    return torch.rand(like.shape, generator=generator, device=like.device)


def random_points(where: Planes, draws: Planes, number: int) -> Points:
    """Pixels uniform over where it is not 0, distinct as far as there are so many."""
    candidates = (draws * (where > 0)).flatten(1)
    if number == 1:  # the common case, and an argmax is much faster than a selection
        index = candidates.argmax(dim=1, keepdim=True)
    else:
        largest, index = candidates.topk(number, dim=1)
        index = torch.where(largest > 0, index, index[:, :1])
    width = where.shape[-1]
    return torch.stack((index % width, index // width), dim=2).float()


def values_at(plane: Planes, points: Points) -> Labels:
    """The plane's values at pixel indices (x, y)."""
    x, y = points.long().unbind(dim=2)
    return plane.flatten(1).gather(1, y * plane.shape[-1] + x)


def erode(mask: Planes, radius: int) -> Planes:
    return 1 - dilate(1 - mask, radius)


def dilate(mask: Planes, radius: int) -> Planes:
    """The mask grown by a square of this radius; two passes along the axes cost less than one over the square."""
    mask = F.max_pool2d(mask, (1, 2 * radius + 1), stride=1, padding=(0, radius))
    return F.max_pool2d(mask, (2 * radius + 1, 1), stride=1, padding=(radius, 0))


def _first_not_empty(first: Planes, second: Planes) -> Planes:
    return torch.where(first.sum(dim=(1, 2, 3), keepdim=True) > 0, first, second)
