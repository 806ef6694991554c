"""Draws one scene: which photo, which objects where, who moves, by which verb and how fast. Plain numbers, no pixels.

Every scene has its own generator seeded by (seed, index), so a scene does not depend on the batch that it is drawn in.
Lengths are in frame widths; frames are square.
"""

from dataclasses import dataclass

import numpy as np

from . import captions, sprite_names
from .art import ArtPack
from .motions import MOTIONS, Pose, Subject, mean_speed, positions, rest
from .verbs import VERBS, describe

REFERENCE_WIDTH = 512  # magnitudes are px/frame at this width
_OUTLINES = 12  # numbers that describe a cut-out's outline
_SPEED_POINTS = 48


@dataclass(frozen=True)
class SceneParams:
    """How scenes are made.

    Attributes:
        size: Height and width in pixels.
        scales: Smallest and largest width of the target, in frame widths.
        magnitudes: Range of the magnitude (px/frame at 512 width), drawn log-uniformly as far as the verb reaches.
        cutouts: Share of objects without a fixed verb that are photo cut-outs.
        drawn: Share of drawn animations among the verbs that have any.
        shadows: Share of still things that cast a soft shadow.
        verbs: Which verbs are drawn.
    """

    size: int = 256
    num_frames: int = 16
    max_distractors: int = 5
    scales: tuple[float, float] = (0.15, 0.5)
    magnitudes: tuple[float, float] = (0.7, 24.0)
    cutouts: float = 0.22
    drawn: float = 0.35
    shadows: float = 0.3
    verbs: tuple[str, ...] = VERBS


@dataclass(frozen=True)
class Piece:
    """One object as it stands in frame 0. `index` is into the sprites (or the animations, or none for a cut-out)."""

    kind: str  # "sprite", "animation" or "cutout"
    index: int
    noun: str
    centre: np.ndarray  # x, y
    half: float
    rest_pose: np.ndarray  # Q, 2 2
    colour: np.ndarray  # 3 3, applied to RGB
    outline: np.ndarray  # of a cut-out
    photo: "Crop | None" = None
    front: bool = False
    shadow: float = 0.0


@dataclass(frozen=True)
class Crop:
    """A square cut out of a photo: left, top and side in the photo's pixels."""

    photo: int
    left: int
    top: int
    side: int
    mirrored: bool


@dataclass(frozen=True)
class Layout:
    background: Crop
    background_colour: np.ndarray  # 3 3
    target: Piece
    distractors: tuple[Piece, ...]
    pose: Pose
    verb: str
    prompt: str
    caption: str
    drawn_magnitude: float  # of the drawn animation itself, px/frame at 512 width; 0 for sprites


class Draftsman:
    """Draws layouts from one side of the split."""

    def __init__(self, art: ArtPack, params: SceneParams, split: str = "train") -> None:
        if split not in ("train", "test"):
            raise ValueError(f"The split is 'train' or 'test', not '{split}'.")
        self.art, self.params = art, params
        self.sprites = [i for i, info in enumerate(art.sprite_infos) if info.split == split]
        self.photos = [i for i, info in enumerate(art.photo_infos) if info.split == split]
        if not self.sprites or not self.photos:
            raise ValueError(
                f"The art pack has {len(self.sprites)} sprites and {len(self.photos)} photos for '{split}'; "
                "scenes need one of each."
            )
        self.by_tag: dict[str, list[int]] = {}
        for i in self.sprites:
            for tag in art.sprite_infos[i].tags:
                self.by_tag.setdefault(tag, []).append(i)
        self.animations: dict[str, list[int]] = {}
        for i, info in enumerate(art.animation_infos):
            if info.split == split:
                self.animations.setdefault(info.verb, []).append(i)
        self._outline_of = [_extent_and_points(sprite[..., 3], i) for i, sprite in enumerate(art.sprites)]
        self._possible = [name for name in params.verbs if self._suits_something(name)]
        weights = np.array([describe(name).weight for name in self._possible])
        self._weights = weights / weights.sum()

    def _suits_something(self, verb: str) -> bool:
        return bool(describe(verb).anywhere or not describe(verb).tags or self._suited(verb))

    def _suited(self, verb: str) -> list[int]:
        return sorted({i for tag in describe(verb).tags for i in self.by_tag.get(tag, [])})

    def draw(self, seed: int, index: int, verb: str | None = None, magnitude: float | None = None) -> Layout:
        """The layout of scene `index` of `seed`; verb and magnitude can be asked for instead of drawn."""
        rng = np.random.default_rng([seed, index])
        params = self.params
        background = self._crop(rng, smallest=0.45)
        drawn_verb = str(rng.choice(self._possible, p=self._weights))
        verb = drawn_verb if verb is None else verb
        target = self._target(rng, verb, background.photo)
        still = params.num_frames == 1
        pose = rest(params.num_frames) if still else self._motion(rng, verb, target, magnitude)
        target = _placed(target, pose, rng, leaves=MOTIONS[verb].leaves_frame)
        if still and rng.random() < params.shadows:
            target = _with(target, shadow=rng.uniform(0.2, 0.5))
        distractors = self._distractors(rng, target, background.photo)
        info = self.art.photo_infos[background.photo]
        drawn = 0.0
        if target.kind == "animation" and not still:
            drawn = self.art.animation_infos[target.index].flow * 2 * target.half * REFERENCE_WIDTH
        return Layout(
            background=background,
            background_colour=_colour(rng, 0.12),
            target=target,
            distractors=distractors,
            pose=pose,
            verb=verb,
            prompt=captions.motion_prompt(verb, target.noun, rng),
            caption=captions.caption([target.noun, *(piece.noun for piece in distractors)], info.description),
            drawn_magnitude=drawn,
        )

    def _crop(self, rng: np.random.Generator, smallest: float, avoid: int = -1, largest: float = 1.0) -> Crop:
        choices = [i for i in self.photos if i != avoid] or self.photos
        photo = int(rng.choice(choices))
        height, width = self.art.photos[photo].shape[:2]
        side = max(8, round(min(height, width) * rng.uniform(smallest, largest)))
        left, top = rng.integers(0, width - side + 1), rng.integers(0, height - side + 1)
        return Crop(photo, int(left), int(top), side, bool(rng.random() < 0.5))

    def _target(self, rng: np.random.Generator, verb: str, background: int) -> Piece:
        """An object that suits the verb, not yet placed."""
        described = describe(verb)
        half = 0.5 * rng.uniform(*self.params.scales)
        drawn = self.animations.get(verb, [])
        if drawn and self.params.num_frames > 1 and rng.random() < self.params.drawn:
            index = int(rng.choice(drawn))
            return _piece(rng, "animation", index, self.art.animation_infos[index].noun, max(half, 0.12))
        suited = self._suited(verb)
        if suited and rng.random() >= described.anywhere:
            index = int(rng.choice(suited))
            return _piece(
                rng, "sprite", index, self.art.sprite_infos[index].noun, max(half, 0.1 if described.anywhere else 0.14)
            )
        return self._anything(rng, half, background)

    def _anything(self, rng: np.random.Generator, half: float, background: int) -> Piece:
        if rng.random() < self.params.cutouts:
            photo = self._crop(rng, 0.12, avoid=background, largest=0.5)
            return _with(_piece(rng, "cutout", -1, str(rng.choice(["shape", "patch"])), half), photo=photo)
        index = int(rng.choice(self.sprites))
        return _piece(rng, "sprite", index, self.art.sprite_infos[index].noun, half)

    def _subject(self, piece: Piece, rng: np.random.Generator) -> tuple[Subject, np.ndarray]:
        """What the motion may ask about the piece, and points that lie on it."""
        jitter = rng.uniform(-1, 1, (64, 6))
        if piece.kind == "sprite":
            info = self.art.sprite_infos[piece.index]
            extent, points = self._outline_of[piece.index]
            facing = _mirrored_facing(piece) if sprite_names.looks_aside(info.code) else -1.0
            return Subject(piece.half, extent, facing, frozenset(info.tags), info.code, dict(info.face), jitter), points
        facing = _mirrored_facing(piece) if piece.kind == "animation" else -1.0
        return Subject(piece.half, facing=facing, jitter=jitter), _DISC

    def _motion(self, rng: np.random.Generator, verb: str, piece: Piece, magnitude: float | None) -> Pose:
        """The verb's motion at a magnitude drawn log-uniformly over what this verb reaches on this object."""
        t = np.arange(self.params.num_frames, dtype=float)
        subject, points = self._subject(piece, rng)
        low, high = self.params.magnitudes
        if piece.kind == "animation":
            moves = {"run": (1.0, 0.0), "swim": (1.0, 0.0), "drift": (1.0, 0.0), "flap": (0.8, -0.4)}.get(verb)
            speed = np.exp(rng.uniform(np.log(low), np.log(12.0))) / REFERENCE_WIDTH / piece.half
            if moves is None or (verb == "flap" and rng.random() < 0.5):
                return rest(len(t))
            path = np.stack([subject.facing * moves[0] * speed * t, moves[1] * speed * t], -1)
            return _shifted(rest(len(t)), path)
        motion = MOTIONS[verb]
        scale = piece.half * REFERENCE_WIDTH

        def reached(k: float) -> float:
            return mean_speed(motion.pose(k, subject, t), points, piece.rest_pose) * scale

        limit = motion.limit(subject)
        ceiling = reached(limit)
        wanted = np.exp(rng.uniform(np.log(min(low, 0.5 * ceiling)), np.log(min(high, ceiling))))
        wanted = min(wanted if magnitude is None else magnitude, ceiling)
        strength = limit * wanted / max(ceiling, 1e-6)
        for _ in range(2):
            strength = min(limit, strength * wanted / max(reached(strength), 1e-6))
        return motion.pose(strength, subject, t)

    def _distractors(self, rng: np.random.Generator, target: Piece, background: int) -> tuple[Piece, ...]:
        """Things that stand still: sometimes the target's twin, sometimes overlapping it, in front of it or behind."""
        most = self.params.max_distractors
        chances = np.array([0.10, 0.24, 0.25, 0.19, 0.13, 0.09])[: most + 1]
        count = int(rng.choice(len(chances), p=chances / chances.sum()))
        pieces = []
        for number in range(count):
            half = 0.5 * rng.uniform(*self.params.scales)
            if number == 0 and target.kind != "animation" and rng.random() < 0.25:
                twin_half = target.half * rng.uniform(0.75, 1.3)
                piece = _with(
                    _piece(rng, target.kind, target.index, target.noun, twin_half),
                    photo=target.photo,
                    outline=target.outline,
                )
            else:
                piece = self._anything(rng, half, background)
            near = rng.random() < 0.3
            for _ in range(8):
                centre = rng.uniform(0.06, 0.94, 2)
                reach = (0.5 if near else 0.85) * (piece.half + target.half)
                if np.linalg.norm(centre - target.centre) > reach:
                    shadow = rng.uniform(0.2, 0.5) if rng.random() < self.params.shadows else 0.0
                    pieces.append(_with(piece, centre=centre, front=bool(rng.random() < 0.35), shadow=shadow))
                    break
        return tuple(pieces)


def _mirrored_facing(piece: Piece) -> float:
    """Animals, people and vehicles are drawn looking left; -1 is left."""
    return -1.0 if piece.rest_pose[0, 0] > 0 else 1.0


def _with(piece: Piece, **changes) -> Piece:
    return Piece(**{**piece.__dict__, **changes})


def _piece(rng: np.random.Generator, kind: str, index: int, noun: str, half: float) -> Piece:
    angle = rng.normal(0, 0.1) if kind != "cutout" else rng.uniform(-0.4, 0.4)
    mirror = -1.0 if rng.random() < 0.5 else 1.0
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    hue = 0.12 if rng.random() < 0.75 else 1.5
    return Piece(
        kind, index, noun, np.array([0.5, 0.5]), float(half), rotation @ np.diag([mirror, 1.0]), _colour(rng, hue),
        outline=rng.uniform(-1, 1, _OUTLINES),
    )  # fmt: skip


def _colour(rng: np.random.Generator, hue: float) -> np.ndarray:
    """A rotation about the grey axis by up to `hue` radians, times a gain near 1."""
    angle = rng.uniform(-hue, hue)
    cos, sin, third = np.cos(angle), np.sin(angle), 1 / 3
    spread = np.sqrt(third) * sin
    matrix = np.full((3, 3), third * (1 - cos)) + cos * np.eye(3)
    matrix += spread * np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]])
    return matrix * rng.uniform(0.85, 1.12)


def _shifted(pose: Pose, path: np.ndarray) -> Pose:
    return Pose(pose.linear, pose.shift + path, pose.pivot, pose.coeffs, pose.fields, pose.gain)


def _placed(piece: Piece, pose: Pose, rng: np.random.Generator, leaves: bool) -> Piece:
    """The piece where its way fits: its centre stays in the frame, so half of it is always seen (launch may leave)."""
    way = positions(pose, np.zeros((1, 2)), piece.rest_pose)[:, 0] * piece.half
    low, high = (np.minimum(way[0], 0), np.maximum(way[0], 0)) if leaves else (way.min(0), way.max(0))
    margin = (1.0 if rng.random() < 0.7 else 0.55) * piece.half  # mostly all of it, as where a user would click
    start, end = margin - low, 1 - margin - high
    middle = (start + end) / 2
    start, end = np.minimum(start, middle), np.maximum(end, middle)
    # A launch that starts low stays in sight for longer.
    draw = rng.random(2)
    if leaves:
        draw[1] = 0.4 + 0.6 * draw[1]
    return _with(piece, centre=start + (end - start) * draw)


def _extent_and_points(alpha: np.ndarray, seed: int) -> tuple[tuple[float, float], np.ndarray]:
    """Half width and height of what is drawn, and random points on it, in the sprite's own coordinates."""
    rows, columns = np.nonzero(alpha > 127)
    if not len(rows):
        return (1.0, 1.0), _DISC
    size = len(alpha)
    picked = np.random.default_rng(seed).integers(0, len(rows), _SPEED_POINTS)
    points = np.stack([columns[picked], rows[picked]], -1) * (2 / size) + (1 / size - 1)
    return (float(np.abs(columns * 2 / size - 1).max()), float(np.abs(rows * 2 / size - 1).max())), points


def _disc_points() -> np.ndarray:
    steps = np.arange(_SPEED_POINTS) + 0.5
    radius, angle = 0.75 * np.sqrt(steps / _SPEED_POINTS), steps * 2.39996
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], -1)


_DISC = _disc_points()
