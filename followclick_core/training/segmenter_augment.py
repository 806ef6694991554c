"""Variety for the segmenter's training pictures, batched on the device they are on.

The generated scenes are clean: cartoon objects over photos, square, all of one sharpness. What is clicked later are
photos from cameras, so size, aspect, colours, sharpness and compression are varied. In some pictures the object's
silhouette is filled with a piece of another photo, so that texture and edges count and not the look of an emoji, and in
some each of its parts with another piece, for a person is hair, skin and cloth, and still one thing to click on.
"""

import math
from dataclasses import dataclass, replace
from functools import reduce

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

Pixels = Float[Tensor, "b 3 h w"]
Planes = Float[Tensor, "b 1 h w"]

_TEXTURED = 0.25  # share of pictures whose object is filled with photo texture
_PARTED = 0.35  # share whose object's parts are
_CROPPED = 0.7
_PADDED = 0.35
_HALVED = 0.35  # photos smaller than the encoder's input are scaled up to it
_SMALLEST_CROP = 0.45  # of the picture's side


@dataclass(frozen=True)
class Stills:
    """Pictures with the object to click. Masks are 0 or 1."""

    pixels: Pixels  # 0..1
    mask: Planes  # what the click means
    distractors: Planes  # other objects
    valid: Planes  # 0 where the picture ends and the encoder's padding begins


def augment(pixels: Pixels, mask: Planes, distractors: Planes, generator: torch.Generator) -> Stills:
    """Scenes as they might come from a camera; the same generator state gives the same result."""
    stills = Stills(pixels, mask, distractors, torch.ones_like(mask))
    stills = paste_texture(fill_parts(stills, generator), generator)
    stills = crop(flip(stills, generator), generator)
    pixels = degrade(jitter_colours(stills.pixels, generator), generator)
    return cut_to_aspect(replace(stills, pixels=pixels.clamp(0, 1)), generator)


def paste_texture(stills: Stills, generator: torch.Generator) -> Stills:
    """Lay another picture's object, as a silhouette filled with a third one's enlarged texture, over some pictures."""
    chosen = _chance(stills.mask, _TEXTURED, generator)
    silhouette = stills.mask.roll(1, dims=0)
    texture = _window(stills.pixels.roll(2, dims=0), _uniform(chosen, 0.2, 0.5, generator), 0.5)
    # A pasted edge that is sharper than any other would be all that is learnt.
    alpha = _blur(silhouette)
    pixels = torch.where(chosen, texture * alpha + stills.pixels * (1 - alpha), stills.pixels)
    others = torch.maximum(stills.mask, stills.distractors) * (1 - silhouette)
    return replace(
        stills,
        pixels=pixels,
        mask=torch.where(chosen, silhouette, stills.mask),
        distractors=torch.where(chosen, others, stills.distractors),
    )


def fill_parts(stills: Stills, generator: torch.Generator) -> Stills:
    """Cover three parts of some objects, told apart by their colour, each with a piece of another picture."""
    chosen = _chance(stills.mask, _PARTED, generator)
    direction = torch.randn((len(chosen), 3, 1, 1), generator=generator, device=chosen.device)
    tone = (_blur(stills.pixels) * direction).sum(dim=1, keepdim=True)
    low = tone.masked_fill(stills.mask == 0, torch.inf).amin(dim=(1, 2, 3), keepdim=True)
    high = tone.masked_fill(stills.mask == 0, -torch.inf).amax(dim=(1, 2, 3), keepdim=True)
    first, second = _uniform(chosen, 0.15, 0.5, generator), _uniform(chosen, 0.5, 0.85, generator)
    level = ((tone - low) / (high - low).clamp(min=1e-3)).nan_to_num()
    part = (level > first).long() + (level > second)
    pieces = _window(stills.pixels, _uniform(chosen, 0.2, 0.9, generator), 0.5)
    filled = reduce(torch.add, ((part == index) * pieces.roll(index + 1, dims=0) for index in range(3)))
    alpha = _blur(stills.mask) * _uniform(chosen, 0.4, 1, generator)
    pixels = torch.where(chosen, filled * alpha + stills.pixels * (1 - alpha), stills.pixels)
    return replace(stills, pixels=pixels)


def flip(stills: Stills, generator: torch.Generator) -> Stills:
    chosen = _chance(stills.mask, 0.5, generator)
    return _map(stills, lambda x: torch.where(chosen, x.flip(-1), x))


def crop(stills: Stills, generator: torch.Generator) -> Stills:
    """Enlarge a window around the object's middle, with some change of aspect."""
    mask = stills.mask
    chosen = _chance(mask, _CROPPED, generator)
    side = _uniform(chosen, _SMALLEST_CROP, 1, generator)
    size = torch.cat([(side * _uniform(chosen, 0.85, 1.15, generator)).clamp(max=1) for _ in "xy"], dim=1)
    size = torch.where(chosen.flatten(1), size.flatten(1), torch.ones_like(size.flatten(1)))
    centre = _centroid(mask) + (torch.rand(size.shape, generator=generator, device=size.device) - 0.5) * 0.6 * size
    # The window stays within the picture.
    centre = torch.minimum(torch.maximum(centre, size / 2), 1 - size / 2)
    cropped = _map(stills, lambda x: _window(x, size, centre))
    return replace(cropped, mask=(cropped.mask > 0.5).float(), distractors=(cropped.distractors > 0.5).float())


def jitter_colours(pixels: Pixels, generator: torch.Generator) -> Pixels:
    """Exposure, contrast, gamma, and a mixing of channels that shifts hue and saturation."""
    per_picture = pixels[:, :1, :1, :1]
    mixing = torch.eye(3, device=pixels.device) + 0.12 * torch.randn(
        (len(pixels), 3, 3), generator=generator, device=pixels.device
    )
    mixing = mixing / mixing.sum(dim=2, keepdim=True).clamp(min=0.5)  # grey stays grey
    pixels = torch.einsum("bij,bjhw->bihw", mixing, pixels)
    mean = pixels.mean(dim=(1, 2, 3), keepdim=True)
    pixels = mean + (pixels - mean) * _uniform(per_picture, 0.6, 1.3, generator)
    pixels = pixels * _uniform(per_picture, 0.7, 1.3, generator)
    return pixels.clamp(1e-3, 1) ** _uniform(per_picture, 0.75, 1.35, generator)


def degrade(pixels: Pixels, generator: torch.Generator) -> Pixels:
    """Half the resolution in some pictures; blur, sensor noise and blocky compression, each in about half of them."""
    per_picture = pixels[:, :1, :1, :1]
    halved = F.interpolate(F.avg_pool2d(pixels, 2), scale_factor=2, mode="bilinear")
    pixels = torch.where(_chance(per_picture, _HALVED, generator), halved, pixels)
    softness = _uniform(per_picture, -1, 1, generator).clamp(min=0)
    pixels = pixels + softness * (_blur(pixels) - pixels)
    noise = torch.randn(pixels.shape, generator=generator, device=pixels.device)
    pixels = pixels + _uniform(per_picture, -0.04, 0.04, generator).clamp(min=0) * noise
    return compress(pixels, _uniform(per_picture, -0.15, 0.15, generator).clamp(min=1e-4))


def compress(pixels: Pixels, step: Float[Tensor, "b 1 1 1"]) -> Pixels:
    """JPEG's loss: the cosine coefficients of 8x8 blocks are rounded, to multiples of `step` and coarser if high."""
    index = torch.arange(8, device=pixels.device, dtype=torch.float32)
    basis = torch.cos(math.pi / 8 * (index + 0.5) * index[:, None]) / 2
    basis[0] /= math.sqrt(2)
    b, c, h, w = pixels.shape
    blocks = pixels.reshape(b, c, h // 8, 8, w // 8, 8)
    coefficients = torch.einsum("ui,bcyixj,vj->bcyuxv", basis, blocks, basis)
    steps = step[..., None, None] * (1 + index[:, None, None] + index) / 4
    coefficients = (coefficients / steps).round() * steps
    return torch.einsum("ui,bcyuxv,vj->bcyixj", basis, coefficients, basis).reshape(b, c, h, w)


def cut_to_aspect(stills: Stills, generator: torch.Generator) -> Stills:
    """Let some pictures end before the right or the lower border, as wide or tall ones do in the square input."""
    height, width = stills.mask.shape[-2:]
    share = _uniform(stills.mask[:, :, :1, :1], 0.5, 1, generator)
    tall = _chance(stills.mask, 0.5, generator)
    x = torch.arange(width, device=share.device) < share * width
    y = torch.arange(height, device=share.device)[:, None] < share * height
    valid = torch.where(tall, x.expand_as(stills.mask), y.expand_as(stills.mask)).float()
    # Without an object left there would be nothing to click.
    enough = (stills.mask * valid).sum(dim=(1, 2, 3), keepdim=True) > 0.3 * stills.mask.sum(dim=(1, 2, 3), keepdim=True)
    valid = torch.where(_chance(stills.mask, _PADDED, generator) & enough, valid, torch.ones_like(valid))
    return Stills(stills.pixels, stills.mask * valid, stills.distractors * valid, valid)


def _map(stills: Stills, change) -> Stills:
    return Stills(change(stills.pixels), change(stills.mask), change(stills.distractors), change(stills.valid))


def _chance(like: Tensor, probability: float, generator: torch.Generator) -> Bool[Tensor, "b 1 1 1"]:
    return torch.rand((len(like), 1, 1, 1), generator=generator, device=like.device) < probability


def _uniform(like: Tensor, low: float, high: float, generator: torch.Generator) -> Float[Tensor, "b 1 1 1"]:
    return low + (high - low) * torch.rand((len(like), 1, 1, 1), generator=generator, device=like.device)


def _centroid(mask: Planes) -> Float[Tensor, "b 2"]:
    """The middle (x, y) of each mask, 0..1; of an empty one, the picture's."""
    height, width = mask.shape[-2:]
    weight = mask + 1e-6
    total = weight.sum(dim=(1, 2, 3))
    x = (weight.sum(dim=(1, 2)) * torch.linspace(0, 1, width, device=mask.device)).sum(dim=1) / total
    y = (weight.sum(dim=(1, 3)) * torch.linspace(0, 1, height, device=mask.device)).sum(dim=1) / total
    return torch.stack((x, y), dim=1)


def _window(x: Float[Tensor, "b c h w"], size: Tensor, centre: Tensor | float) -> Float[Tensor, "b c h w"]:
    """The part of each picture around `centre` (x, y), of `size` times the whole, enlarged to the whole; all 0..1."""
    size = size.flatten(1).expand(len(x), 2)
    offset = (2 * torch.as_tensor(centre, device=x.device) - 1).expand(len(x), 2)
    theta = torch.cat((torch.diag_embed(size), offset[..., None]), dim=2)
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _blur(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """A binomial blur of 5 pixels (standard deviation 1)."""
    taps = list(enumerate((1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)))
    h, w = x.shape[-2:]
    padded = F.pad(x, (2, 2, 2, 2), mode="replicate")
    # A CPU's convolution of so few channels takes six times as long as these sums.
    rows = reduce(torch.add, (tap * padded[..., i : i + w] for i, tap in taps))
    return reduce(torch.add, (tap * rows[..., i : i + h, :] for i, tap in taps))
