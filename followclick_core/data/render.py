"""Turns layouts into pixels, masks and exact flow, batched on any device.

The photo and all that stands still are composited once per scene; each frame then only warps the target. A warp looks
up, for every pixel, which point of the sprite it shows: the whole's motion is inverted in closed form, a bend by
fixed-point steps on a coarse table. Colours are premultiplied by alpha throughout.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from .art import SPRITE_SIZE, ArtPack
from .layout import Crop, Layout, Piece, SceneParams
from .motions import MAX_FIELDS, positions

_TABLE = 48  # points along a side of the table of bends
_TABLE_REACH = 1.25  # the table covers -1.25 .. 1.25 of the sprite's coordinates
_STEPS = 24
ORIGIN_STRIDE = 8  # pixels from one point whose origin is told to the next: a latent cell

Rgba = Float[Tensor, "b 4 h w"]  # premultiplied, 0..1
Textures = Float[Tensor, "b 4 s s"]  # the same, of single sprites


@dataclass(frozen=True)
class Stage:
    """What stands still: `behind` the target without alpha, `front` of it with, and where a distractor is on top."""

    behind: Float[Tensor, "b 3 h w"]
    behind_thing: Float[Tensor, "b h w"]
    front: Rgba


@dataclass(frozen=True)
class Rendered:
    frames: Float[Tensor, "b 3 f h w"]
    object_masks: Float[Tensor, "b f h w"]
    distractor_mask: Float[Tensor, "b h w"]
    flow: Float[Tensor, "b 2 f-1 h w"]
    origins: Float[Tensor, "b 2 f rows columns"]


class Renderer:
    """Holds the art of one split on the device."""

    def __init__(
        self, art: ArtPack, sprites: Sequence[int], photos: Sequence[int], animations: Sequence[int], device
    ) -> None:
        self.device = torch.device(device)
        self.sprite_rows = {index: row for row, index in enumerate(sprites)}
        self.animation_rows = {index: row for row, index in enumerate(animations)}
        self.sprites = torch.from_numpy(art.sprites[list(sprites)]).permute(0, 3, 1, 2).contiguous().to(self.device)
        drawn = torch.from_numpy(art.animations[list(animations)])
        self.animations = drawn.permute(0, 1, 4, 2, 3).contiguous().to(self.device)
        self.photos = {
            i: torch.from_numpy(np.ascontiguousarray(art.photos[i])).permute(2, 0, 1).to(self.device) for i in photos
        }

    def render(self, layouts: Sequence[Layout], params: SceneParams) -> Rendered:
        stage = self._stage(layouts, params)
        textures = self._textures([layout.target for layout in layouts], params.size)
        b, f, size = len(layouts), params.num_frames, params.size
        alpha_front = stage.front[:, 3]
        still = stage.behind * (1 - alpha_front[:, None]) + stage.front[:, :3]
        frames = still[:, :, None].repeat(1, 1, f, 1, 1)
        masks = torch.zeros(b, f, size, size, device=self.device)
        flow = torch.zeros(b, 2, max(f - 1, 0), size, size, device=self.device)
        origins = torch.full((b, 2, f, size // ORIGIN_STRIDE, size // ORIGIN_STRIDE), -1.0, device=self.device)
        # One scene at a time is kindest to a processor's caches; a GPU wants several.
        chunk = 1 if self.device.type == "cpu" else 8
        for start in range(0, b, chunk):
            part = slice(start, start + chunk)
            self._render_targets(layouts[part], textures[part], stage, part, frames, masks, flow, origins)
        on_top = torch.maximum(
            stage.behind_thing * (alpha_front < 0.5) * (1 - masks[:, 0]), (alpha_front >= 0.5).float()
        )
        return Rendered(frames.clamp_(0, 1), masks, on_top, flow, origins)

    def _render_targets(self, layouts, textures, stage: Stage, part: slice, frames, masks, flow, origins) -> None:
        """Draw the targets of a chunk into what follows `part` (in place), within the window that they sweep."""
        size, count = frames.shape[-1], frames.shape[2]
        top, bottom, left, right = _window(layouts, size)
        forward, backward, offset, offset_back = (self._tensor(x) for x in _affine(layouts))
        ys = (torch.arange(top, bottom, device=self.device) + 0.5) / size
        xs = (torch.arange(left, right, device=self.device) + 0.5) / size
        grid = torch.stack(torch.broadcast_tensors(xs[None, :], ys[:, None]), -1)  # h w 2, frame widths
        n, (height, width) = len(layouts), grid.shape[:2]
        points = (grid.reshape(1, 1, -1, 2) @ backward.transpose(-1, -2) + offset_back[:, :, None]).reshape(
            n, count, height, width, 2
        )
        bends = self._bends(layouts)
        if bends is not None:
            table, inverse = bends
            bent = points - _look_up(inverse, points)
        else:
            table, bent = None, points
        rgba = _sample(textures, bent, layouts, self, size)
        gain = self._tensor(np.stack([layout.pose.gain for layout in layouts]))[:, None, :, None, None]
        # A blurred texture fades out far beyond its outline; what cannot be seen must not touch the still picture.
        rgba = rgba * (rgba[:, 3:] > 0.01)
        alpha = rgba[:, 3]
        colour = torch.minimum(rgba[:, :3] * gain, alpha[:, None])
        window = (part, slice(None), slice(None), slice(top, bottom), slice(left, right))
        front = stage.front[part, :, None, top:bottom, left:right]
        behind = stage.behind[part, :, None, top:bottom, left:right]
        seen = behind * (1 - alpha[:, None]) + colour
        # Where nothing of the target lies, keep the still picture's own values: not one rounding apart.
        frames[window] = torch.where(alpha[:, None] > 0, seen * (1 - front[:, 3:4]) + front[:, :3], frames[window])
        visible = ((alpha > 0.5) & (front[:, 3] < 0.5)).float()
        masks[part, :, top:bottom, left:right] = visible
        drawn = torch.tensor([layout.target.kind == "animation" for layout in layouts], device=self.device)
        start = _move(bent, forward[:, :1], offset[:, :1])
        # Hidden in frame 0, a point comes from nowhere; and a drawn animation's points go their own ways.
        was_visible = _seen_at(visible[:, 0], start, grid)
        known = visible * was_visible * ~drawn[:, None, None, None]
        _note_origins(origins[part], start * size, known, (top, left))
        if count > 1:
            here, there = points[:, :-1], points[:, :-1]
            if table is not None:
                here = bent[:, :-1] + _look_up(table[:, :-1], bent[:, :-1])
                there = bent[:, :-1] + _look_up(table[:, 1:], bent[:, :-1])
            step = _move(there, forward[:, 1:], offset[:, 1:]) - _move(here, forward[:, :-1], offset[:, :-1])
            flow[window] = (step * size * visible[:, :-1, ..., None]).permute(0, 4, 1, 2, 3)

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array, np.float32)).to(self.device)

    def _bends(self, layouts: Sequence[Layout]) -> tuple[Tensor, Tensor] | None:
        """Tables b f 2 g g of the bend d_t(u) and its inverse e_t(v), where u = v − e_t(v); None if nothing bends."""
        if all(layout.pose.fields is None for layout in layouts):
            return None
        count = layouts[0].pose.coeffs.shape[0]
        axis = (np.arange(_TABLE) + 0.5) / _TABLE * 2 * _TABLE_REACH - _TABLE_REACH
        at = np.stack(np.meshgrid(axis, axis), -1)
        coeffs = np.zeros((len(layouts), count, MAX_FIELDS), np.float32)
        basis = np.zeros((len(layouts), MAX_FIELDS, 2, _TABLE, _TABLE), np.float32)
        for i, layout in enumerate(layouts):
            if layout.pose.fields is not None:
                fields = layout.pose.fields(at)
                basis[i, : fields.shape[2]] = fields.transpose(2, 3, 0, 1)
                coeffs[i, :, : fields.shape[2]] = layout.pose.coeffs
        table = torch.einsum("bfk,bkcgh->bfcgh", self._tensor(coeffs), self._tensor(basis))
        points = self._tensor(at)[None, None].expand(len(layouts), count, _TABLE, _TABLE, 2)
        inverse = torch.zeros_like(points)
        for _ in range(_STEPS):
            inverse = _look_up(table, points - inverse)
        return table, inverse.permute(0, 1, 4, 2, 3)

    def _stage(self, layouts: Sequence[Layout], params: SceneParams) -> Stage:
        size = params.size
        photos = torch.stack([self._cut(layout.background, size) for layout in layouts])
        colours = self._tensor(np.stack([layout.background_colour for layout in layouts]))
        behind = torch.einsum("bdc,bchw->bdhw", colours, photos).clamp_(0, 1)
        thing = torch.zeros(len(layouts), size, size, device=self.device)
        front = torch.zeros(len(layouts), 4, size, size, device=self.device)
        jobs = [(i, piece) for i, layout in enumerate(layouts) for piece in layout.distractors]
        layers = self._still_layers([piece for _, piece in jobs], size) if jobs else []
        for (i, piece), layer in zip(jobs, layers, strict=True):
            alpha = layer[3:]
            if piece.shadow > 0:
                behind[i] *= 1 - piece.shadow * _shadow(alpha)
            if piece.front:
                front[i] = front[i] * (1 - alpha) + layer
            else:
                behind[i] = behind[i] * (1 - alpha) + layer[:3]
                thing[i] = torch.maximum(thing[i], (alpha[0] > 0.5).float())
        for i, layout in enumerate(layouts):
            if layout.target.shadow > 0:
                behind[i] *= 1 - layout.target.shadow * _shadow(self._still_layers([layout.target], size)[0][3:])
        return Stage(behind, thing, front)

    def _still_layers(self, pieces: Sequence[Piece], size: int) -> Rgba:
        backward = np.stack([np.linalg.inv(piece.rest_pose) / piece.half for piece in pieces])
        offset = np.stack([-(m @ piece.centre) for m, piece in zip(backward, pieces, strict=True)])
        axis = (torch.arange(size, device=self.device) + 0.5) / size
        grid = torch.stack(torch.broadcast_tensors(axis[None, :], axis[:, None]), -1).reshape(1, -1, 2)
        points = grid @ self._tensor(backward).transpose(1, 2) + self._tensor(offset)[:, None]
        textures = self._textures(pieces, size)
        return F.grid_sample(textures, points.reshape(len(pieces), size, size, 2), align_corners=False)

    def _cut(self, crop: Crop, size: int) -> Float[Tensor, "3 s s"]:
        photo = self.photos[crop.photo][:, crop.top : crop.top + crop.side, crop.left : crop.left + crop.side]
        pixels = F.interpolate(photo[None].float() / 255, (size, size), mode="bilinear", antialias=True)[0]
        return pixels.flip(-1) if crop.mirrored else pixels

    def _textures(self, pieces: Sequence[Piece], size: int) -> Textures:
        """Premultiplied textures, coloured, and as sharp as the size at which they are drawn can show."""
        rows = [self.sprite_rows[piece.index] if piece.kind == "sprite" else 0 for piece in pieces]
        textures = self.sprites[torch.tensor(rows, device=self.device)].float() / 255
        cutouts = [i for i, piece in enumerate(pieces) if piece.kind == "cutout"]
        if cutouts:
            alpha = _outlines(self._tensor(np.stack([pieces[i].outline for i in cutouts])), SPRITE_SIZE)
            for i, outline in zip(cutouts, alpha, strict=True):
                crop = pieces[i].photo
                assert crop is not None
                textures[i] = torch.cat([self._cut(crop, SPRITE_SIZE), outline[None]])
        return _prepared(textures, self._colours(pieces), [2 * piece.half * size for piece in pieces])

    def drawn_textures(self, piece: Piece, size: int) -> Textures:
        """The frames of a drawn animation, as `_textures` gives a sprite."""
        textures = self.animations[self.animation_rows[piece.index]].float() / 255
        return _prepared(
            textures, self._colours([piece]).expand(len(textures), 3, 3), [2 * piece.half * size] * len(textures)
        )

    def _colours(self, pieces: Sequence[Piece]) -> Tensor:
        return self._tensor(np.stack([piece.colour for piece in pieces]))


def _prepared(textures: Textures, colours: Tensor, drawn_widths: Sequence[float]) -> Textures:
    colour = torch.einsum("bdc,bchw->bdhw", colours, textures[:, :3]).clamp_(0, 1)
    textures = torch.cat([colour * textures[:, 3:], textures[:, 3:]], 1)
    width = textures.shape[-1]
    for factor, least in ((2, 1.4), (4, 2.8)):
        small = [
            i
            for i, drawn in enumerate(drawn_widths)
            if least < width / drawn <= 2 * least or (factor == 4 and width / drawn > least)
        ]
        if small:
            pooled = F.avg_pool2d(textures[small], factor)
            textures[small] = F.interpolate(pooled, (width, width), mode="bilinear", align_corners=False)
    return textures


def _outlines(numbers: Float[Tensor, "n k"], size: int) -> Float[Tensor, "n s s"]:
    """Random closed outlines with soft edges: blobs, superellipses and polygons, by the numbers' first entry."""
    axis = (torch.arange(size, device=numbers.device) + 0.5) / size * 2 - 1
    x, y = axis[None, None, :], axis[None, :, None]
    angle, radius = torch.atan2(y, x), torch.sqrt(x**2 + y**2)
    n = numbers[:, :, None, None]
    blob = (
        0.66 + sum(0.26 / k**0.7 * n[:, k] * torch.cos(k * angle + 3.1416 * n[:, k + 5]) for k in (1, 2, 3, 4, 5)) * 0.6
    )
    power = 2.5 + 2 * n[:, 1].abs() * 2
    wide, high = 0.65 + 0.28 * n[:, 2], 0.65 + 0.28 * n[:, 3]
    ellipse = ((angle.cos().abs() / wide) ** power + (angle.sin().abs() / high) ** power) ** (-1 / power)
    corners = torch.floor(3 + 4 * n[:, 1].abs())
    wedge = 6.2832 / corners
    polygon = 0.8 * torch.cos(wedge / 2) / torch.cos(torch.remainder(angle + 3 * n[:, 2], wedge) - wedge / 2)
    limit = torch.where(n[:, 0] < 0, blob, torch.where(n[:, 0] < 0.5, ellipse, polygon))
    return ((limit.clamp(0.3, 0.95) - radius) * size / 3 + 0.5).clamp(0, 1)


def _shadow(alpha: Float[Tensor, "1 h w"]) -> Float[Tensor, "1 h w"]:
    """A soft copy of the silhouette, a little lower and to the right."""
    size = alpha.shape[-1]
    small = F.avg_pool2d(alpha[None], size // 32)
    small = F.avg_pool2d(F.pad(small, (1, 1, 1, 1)), 3, stride=1)
    soft = F.interpolate(small, (size, size), mode="bilinear", align_corners=False)[0]
    return torch.roll(soft, (size // 40, size // 60), (1, 2))


def _affine(layouts: Sequence[Layout]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Per scene and frame: x = forward v + offset in frame widths, and v = backward x + offset_back."""
    forwards, offsets = [], []
    for layout in layouts:
        pose, piece = layout.pose, layout.target
        forwards.append(piece.half * pose.linear @ piece.rest_pose)
        offsets.append(piece.centre + piece.half * (pose.pivot + pose.shift - pose.linear @ pose.pivot))
    forward, offset = np.stack(forwards), np.stack(offsets)
    backward = np.linalg.inv(forward)
    return forward, backward, offset, -np.einsum("bfij,bfj->bfi", backward, offset)


def _seen_at(
    visible: Float[Tensor, "b h w"], points: Float[Tensor, "b f h w 2"], grid: Float[Tensor, "h w 2"]
) -> Float[Tensor, "b f h w"]:
    """1 where the target is visible in frame 0 at `points`; `grid` is where the window's pixels lie."""
    low, high = grid[0, 0], grid[-1, -1]
    # Pixels' middles of a window of one row or column lie at the middle of the look-up as well.
    at = (points - (low + high) / 2) / ((high - low) / 2).clamp(min=1e-6)
    b, f, h, w, _ = points.shape
    found = F.grid_sample(visible[:, None], at.reshape(b, f * h, w, 2), mode="nearest", align_corners=True)
    return found.reshape(b, f, h, w)


def _note_origins(
    origins: Float[Tensor, "b 2 f rows columns"],
    start: Float[Tensor, "b f h w 2"],
    known: Float[Tensor, "b f h w"],
    corner: tuple[int, int],
) -> None:
    """Write where the middles of cells have come from, in place; `corner` is the first row and column of the window."""
    middles, cells = [], []
    for first, length in zip(corner, known.shape[2:], strict=True):
        at = torch.arange(first, first + length, device=known.device)
        middle = at % ORIGIN_STRIDE == ORIGIN_STRIDE // 2
        middles.append(middle)
        cells.append(at[middle] // ORIGIN_STRIDE)
    rows, columns = middles
    start, known = start[:, :, rows][:, :, :, columns], known[:, :, rows][:, :, :, columns]
    found = torch.where(known[..., None] > 0, start, -1.0).permute(0, 4, 1, 2, 3)
    origins[:, :, :, cells[0][:, None], cells[1]] = found


def _move(points: Tensor, matrix: Tensor, offset: Tensor) -> Tensor:
    n, f, h, w, _ = points.shape
    return (points.reshape(n, f, h * w, 2) @ matrix.transpose(-1, -2) + offset[:, :, None]).reshape(n, f, h, w, 2)


def _look_up(table: Float[Tensor, "b f 2 g g"], points: Float[Tensor, "b f h w 2"]) -> Float[Tensor, "b f h w 2"]:
    b, f = points.shape[:2]
    found = F.grid_sample(
        table.reshape(b * f, 2, *table.shape[3:]), (points / _TABLE_REACH).reshape(b * f, *points.shape[2:]),
        padding_mode="border", align_corners=False,
    )  # fmt: skip
    return found.permute(0, 2, 3, 1).reshape(points.shape)


def _sample(
    textures: Textures, points: Float[Tensor, "b f h w 2"], layouts, renderer: Renderer, size: int
) -> Float[Tensor, "b 4 f h w"]:
    b, f, h, w, _ = points.shape
    # Frames lie below one another in the look-up, so that a sprite's texture is not copied for each.
    rgba = F.grid_sample(textures, points.reshape(b, f * h, w, 2), align_corners=False).reshape(b, 4, f, h, w)
    for i, layout in enumerate(layouts):
        if layout.target.kind == "animation":
            drawn = renderer.drawn_textures(layout.target, size)
            order = torch.arange(f, device=points.device) % len(drawn)
            rgba[i] = F.grid_sample(drawn[order], points[i], align_corners=False).transpose(0, 1)
    return rgba


def _window(layouts: Sequence[Layout], size: int) -> tuple[int, int, int, int]:
    """Rows and columns that hold the targets in every frame: top, bottom, left, right."""
    axis = np.linspace(-1.02, 1.02, 13)
    at = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    low, high = np.ones(2), np.zeros(2)
    for layout in layouts:
        piece = layout.target
        where = positions(layout.pose, at, piece.rest_pose).reshape(-1, 2) * piece.half + piece.centre
        low, high = np.minimum(low, where.min(0)), np.maximum(high, where.max(0))
    margin = 0.02
    left, top = np.clip(np.floor((low - margin) * size), 0, size - 1).astype(int)
    right, bottom = np.clip(np.ceil((high + margin) * size), 1, size).astype(int)
    return int(top), int(max(bottom, top + 1)), int(left), int(max(right, left + 1))
