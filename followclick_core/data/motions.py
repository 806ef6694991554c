"""Each verb as a motion whose flow is known exactly: where every point of a sprite is in every frame.

A sprite's own coordinates u are -1..1 in its square (x right, y down). Frame t shows the point u at

    centre + half · ( A_t (Q (u + d_t(u)) − pivot) + pivot + shift_t )

where Q is the sprite's fixed pose in the scene (mirror, small rotation), A_t, pivot and shift_t are the motion of the
whole, in the scene's axes and in units of the sprite's half size, and d_t = sum_k coeffs[t, k] fields_k(u) bends parts
of it. Frame 0 is always the sprite at rest, as in the photo that a user gives. Periods are fixed per verb, so that flow
tells verbs apart.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

Points = Float[np.ndarray, "*n 2"]
Fields = Callable[[np.ndarray], np.ndarray]  # points (*n 2) -> displacements (*n k 2)

MAX_FIELDS = 4


@dataclass(frozen=True)
class Subject:
    """What a motion may ask about the object that it moves."""

    half: float  # half the square's width, in frame widths
    extent: tuple[float, float] = (1.0, 1.0)  # half width and half height of what is drawn, in the square's own units
    facing: float = -1.0  # -1 looks left in the scene, 1 right
    tags: frozenset[str] = frozenset()
    code: str = ""
    face: dict[str, float] = field(default_factory=dict)
    jitter: np.ndarray = field(default_factory=lambda: np.zeros((64, 6)))  # uniform -1..1, frames down


@dataclass(frozen=True)
class Pose:
    """A motion over f frames (see above); `gain` brightens the object per frame."""

    linear: np.ndarray  # f 2 2
    shift: np.ndarray  # f 2
    pivot: np.ndarray  # 2
    coeffs: np.ndarray  # f k, k <= MAX_FIELDS, may be empty
    fields: Fields | None
    gain: np.ndarray  # f


@dataclass(frozen=True)
class Motion:
    """A verb's motion as a function of its strength; `limit` is the largest strength that still looks like the verb."""

    pose: Callable[[float, Subject, np.ndarray], Pose]
    limit: Callable[[Subject], float]
    leaves_frame: bool = False


def _pose(t, *, linear=None, shift=None, pivot=(0.0, 0.0), coeffs=None, fields=None, gain=None) -> Pose:
    count = len(t)
    return Pose(
        linear=np.broadcast_to(np.eye(2), (count, 2, 2)) if linear is None else linear,
        shift=np.zeros((count, 2)) if shift is None else shift,
        pivot=np.asarray(pivot, float),
        coeffs=np.zeros((count, 0)) if coeffs is None else coeffs,
        fields=fields,
        gain=np.ones(count) if gain is None else gain,
    )


def rest(num_frames: int) -> Pose:
    """The object as it stands."""
    return _pose(np.arange(num_frames))


def _xy(x, y) -> np.ndarray:
    x, y = np.broadcast_arrays(x, y)
    return np.stack([x, y], -1).astype(float)


def _matrix(a, b, c, d) -> np.ndarray:
    a, b, c, d = np.broadcast_arrays(a, b, c, d)
    return np.stack([np.stack([a, b], -1), np.stack([c, d], -1)], -2).astype(float)


def _rotation(angle) -> np.ndarray:
    """Clockwise on the screen, as y points down."""
    return _matrix(np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle))


def _cycle(t, period) -> np.ndarray:
    """0 -> 1 -> 0 once per period, smooth."""
    return (1 - np.cos(2 * np.pi * t / period)) / 2


def _feet(subject: Subject) -> tuple[float, float]:
    return 0.0, subject.extent[1]


def _translation(direction: tuple[float, float]) -> Motion:
    def pose(k, subject, t):
        return _pose(t, shift=_xy(direction[0] * k * t, direction[1] * k * t))

    return Motion(pose, lambda subject: 0.75 / 15 / subject.half)


def _launch(k, subject, t):
    # The nose of the drawn rocket and planes points up and forwards; anything else rises straight.
    side = (
        -0.6 * subject.facing
        if {"rocket", "plane"} & subject.tags and subject.code in ("1f680", "2708", "1f6eb")
        else 0.0
    )
    way = k * t**2 / 15
    rumble = min(0.04, k) * np.where(t % 2 == 1, 1.0, -1.0) * (t > 0)
    return _pose(t, shift=_xy(side * way + rumble, -way))


def _fall(k, subject, t):
    return _pose(t, shift=_xy(0.0, k * t**2 / 15), linear=_rotation(0.012 * t * min(1.0, 10 * k)))


def _jump(k, subject, t):
    phase = t / 8 % 1
    landing = np.maximum(0, np.cos(2 * np.pi * phase)) ** 4 * (t >= 4)
    squash = min(0.22, 0.3 * k) * landing
    linear = _matrix(1 + 0.6 * squash, 0, 0, 1 - squash)
    return _pose(t, linear=linear, shift=_xy(0.0, -4 * k * phase * (1 - phase)), pivot=_feet(subject))


def _shake(k, subject, t):
    swing = np.sin(2 * np.pi * t / 4)
    return _pose(t, shift=_xy(k * swing, 0.0), linear=_rotation(0.15 * k * swing))


def _nod(k, subject, t):
    bow = k * _cycle(t, 8)
    if {"face", "animal_face", "person_face"} & subject.tags:
        return _pose(t, linear=_matrix(1, 0, 0, 1 - 0.25 * bow), shift=_xy(0.0, 0.3 * bow), pivot=_feet(subject))
    return _pose(t, linear=_matrix(1, -0.45 * subject.facing * bow, 0, 1 - 0.4 * bow), pivot=_feet(subject))


def _spin(k, subject, t):
    return _pose(t, linear=_rotation(k * t))


def _scale(k, subject, t):
    return _pose(t, linear=(1 + k * t)[:, None, None] * np.eye(2))


def _shrink(k, subject, t):
    return _scale(-k, subject, t)


def _pulse(k, subject, t):
    return _pose(t, linear=(1 + k * _cycle(t, 6))[:, None, None] * np.eye(2))


def _bend(u):
    """Both ends up, the middle down: wings seen from the front, or the raised part of a bird seen from the side."""
    return _xy(0 * u[..., 0], 0.3 - u[..., 0] ** 2)[..., None, :]


def _fold(u):
    """Towards the vertical axis: a butterfly's wings."""
    return _xy(-u[..., 0], 0 * u[..., 0])[..., None, :]


def _flap(k, subject, t):
    beat = k * np.sin(2 * np.pi * t / 6)
    if subject.code == "1f98b":
        return _pose(t, coeffs=1.3 * k * _cycle(t, 6)[:, None], fields=_fold, shift=_xy(0.0, 0.15 * beat))
    return _pose(t, coeffs=beat[:, None], fields=_bend, shift=_xy(0.0, 0.25 * beat))


def _fly(k, subject, t):
    beat = min(0.45, 4 * k) * np.sin(2 * np.pi * t / 6)
    shift = _xy(subject.facing * 0.85 * k * t, -0.5 * k * t + 0.2 * beat)
    return _pose(t, shift=shift, coeffs=beat[:, None], fields=_bend)


def _travelling(wave_number: float, across: str, weight: Callable[[np.ndarray], np.ndarray]) -> Fields:
    """Two fields, sine and cosine along x (or y), displacing across it: their mix over time is a travelling wave."""

    def fields(u):
        along = u[..., 0] if across == "y" else u[..., 1]
        sine, cosine, still = (
            weight(u) * np.sin(wave_number * along),
            weight(u) * np.cos(wave_number * along),
            0 * along,
        )
        pairs = [(still, sine), (still, cosine)] if across == "y" else [(sine, still), (cosine, still)]
        return np.stack([_xy(x, y) for x, y in pairs], -2)

    return fields


def _wave_coeffs(amplitude, t, period) -> np.ndarray:
    ramp = np.minimum(t / 3, 1) * amplitude
    angle = 2 * np.pi * t / period
    return np.stack([ramp * np.cos(angle), -ramp * np.sin(angle)], -1)


_TAIL = _travelling(3.0, "y", lambda u: 0.25 + 0.75 * (u[..., 0] + 1) / 2)
_CLOTH = _travelling(3.5, "y", lambda u: np.clip((u[..., 0] + 1) / 2, 0, 1.2))
_BILLOW = _travelling(4.0, "x", lambda u: 1.0 + 0 * u[..., 0])


def _swim(k, subject, t):
    return _pose(t, shift=_xy(subject.facing * k * t, 0.0), coeffs=_wave_coeffs(min(0.32, 4 * k), t, 6), fields=_TAIL)


def _drift(k, subject, t):
    wave = np.sin(2 * np.pi * t / 14)
    return _pose(t, shift=_xy(subject.facing * k * t, 2.0 * k * wave), linear=_rotation(min(0.1, 1.5 * k) * wave))


def _dance(k, subject, t):
    beat = np.sin(2 * np.pi * t / 8)
    squash = 0.12 * k * beat**2
    linear = _rotation(0.32 * k * beat) @ _matrix(1 + 0.5 * squash, 0, 0, 1 - squash)
    return _pose(t, linear=linear, shift=_xy(0.12 * k * beat, -0.22 * k * np.abs(beat)), pivot=_feet(subject))


def _legs(u):
    below = np.clip((u[..., 1] - 0.1) / 0.8, 0, 1.2)
    return _xy(below * np.sin(4.5 * u[..., 0]), 0 * below)[..., None, :]


def _run(k, subject, t):
    effort = min(1.0, 8 * k)
    lean = 0.2 * effort * np.minimum(t / 3, 1)
    linear = _matrix(1, -subject.facing * lean, 0, 1)
    shift = _xy(subject.facing * k * t, -0.22 * effort * np.abs(np.sin(np.pi * t / 4)))
    stride = 0.15 * effort * np.sin(2 * np.pi * t / 4)
    return _pose(t, linear=linear, shift=shift, pivot=_feet(subject), coeffs=stride[:, None], fields=_legs)


def _storm(k, subject, t):
    noise = subject.jitter[: len(t)] * (t > 0)[:, None]
    linear = np.eye(2) + 0.10 * k * _matrix(noise[:, 2], 0, 0, noise[:, 3])
    flash = 1 + 0.7 * ((t > 0) & ((t + round(3 * subject.jitter[0, 0])) % 5 < 2)) * (0.6 + 0.4 * noise[:, 4])
    return _pose(
        t, linear=linear, shift=0.13 * k * noise[:, :2], coeffs=_wave_coeffs(0.06 * k, t, 4), fields=_BILLOW, gain=flash
    )


def _face(subject: Subject) -> dict[str, float]:
    return subject.face or {"eye_x": 0.36, "eye_y": -0.28, "eye_r": 0.3, "mouth_y": 0.32, "mouth_w": 0.52}


def _mouth(subject: Subject) -> Fields:
    box = _face(subject)

    def fields(u):
        x, y = u[..., 0] / box["mouth_w"], (u[..., 1] - box["mouth_y"]) / (0.75 * box["mouth_w"])
        window = np.exp(-((x / 1.5) ** 4) - y**2)
        bend = _xy(0 * x, box["mouth_w"] * (0.35 - x**2) * window)
        widen = _xy(0.4 * u[..., 0] * window, 0 * x)
        return np.stack([bend, widen], -2)

    return fields


def _ease(t, frames: float) -> np.ndarray:
    s = np.clip(t / frames, 0, 1)
    return s * s * (3 - 2 * s)


def _smile(k, subject, t):
    grow = k * _ease(t, 10)
    linear = _matrix(1 + 0.10 * grow, 0, 0, 1 + 0.04 * grow)
    shift = _xy(0.0, -0.16 * grow)
    return _pose(t, linear=linear, shift=shift, coeffs=np.stack([0.75 * grow, 0.7 * grow], -1), fields=_mouth(subject))


def _sad(k, subject, t):
    droop = k * _ease(t, 10)
    linear = _matrix(1 - 0.04 * droop, 0, 0, 1 - 0.12 * droop)
    return _pose(
        t, linear=linear, shift=_xy(0.0, 0.12 * droop), pivot=_feet(subject),
        coeffs=np.stack([-0.75 * droop, -0.5 * droop], -1), fields=_mouth(subject),
    )  # fmt: skip


def _eyes(subject: Subject) -> Fields:
    box = _face(subject)

    def fields(u):
        y = u[..., 1] - box["eye_y"]
        radius = box["eye_r"]
        window = sum(np.exp(-(((u[..., 0] - side * box["eye_x"]) / (1.15 * radius)) ** 4)) for side in (-1, 1))
        return _xy(0 * y, -y * window * np.exp(-((y / (1.5 * radius)) ** 2)))[..., None, :]

    return fields


def _blink(k, subject, t):
    lids = 0.95 * min(1.0, k) * _cycle(t, 6)
    return _pose(t, coeffs=lids[:, None], fields=_eyes(subject))


def _wave(k, subject, t):
    if "flag" in subject.tags:
        return _pose(t, coeffs=_wave_coeffs(0.3 * k, t, 6), fields=_CLOTH)
    return _pose(t, linear=_rotation(0.45 * k * np.sin(2 * np.pi * t / 6)), pivot=_feet(subject))


def _sway(k, subject, t):
    return _pose(t, linear=_rotation(0.38 * k * np.sin(2 * np.pi * t / 14)), pivot=_feet(subject))


def _up_to(limit: float) -> Callable[[Subject], float]:
    return lambda subject: limit


def _across(subject: Subject) -> float:
    """The speed that crosses three quarters of the frame in 16 frames."""
    return 0.75 / 15 / subject.half


MOTIONS: dict[str, Motion] = {
    "move left": _translation((-1, 0)),
    "move right": _translation((1, 0)),
    "move up": _translation((0, -1)),
    "move down": _translation((0, 1)),
    "launch": Motion(_launch, lambda subject: 1.1 / 15 / subject.half, leaves_frame=True),
    "fall": Motion(_fall, _across),
    "jump": Motion(_jump, lambda subject: min(2.2, 0.35 / subject.half)),
    "shake": Motion(_shake, _up_to(0.45)),
    "nod": Motion(_nod, _up_to(1.1)),
    "spin": Motion(_spin, _up_to(0.42)),
    "grow": Motion(_scale, lambda subject: min(0.1, max(0.02, (0.46 / subject.half - 1) / 15))),
    "shrink": Motion(_shrink, _up_to(0.8 / 15)),
    "pulse": Motion(_pulse, _up_to(0.5)),
    "flap": Motion(_flap, _up_to(0.6)),
    "fly": Motion(_fly, lambda subject: 0.8 * _across(subject)),
    "swim": Motion(_swim, lambda subject: 0.8 * _across(subject)),
    "drift": Motion(_drift, lambda subject: min(0.12, 0.5 * _across(subject))),
    "dance": Motion(_dance, _up_to(1.4)),
    "run": Motion(_run, _across),
    "storm": Motion(_storm, _up_to(2.5)),
    "smile": Motion(_smile, _up_to(1.0)),
    "sad": Motion(_sad, _up_to(1.0)),
    "blink": Motion(_blink, _up_to(1.0)),
    "wave": Motion(_wave, _up_to(1.2)),
    "sway": Motion(_sway, _up_to(1.3)),
}


def positions(pose: Pose, points: Points, rest_pose: np.ndarray) -> Float[np.ndarray, "f *n 2"]:
    """Where the points u are in each frame, from the object's centre, in half sizes; `rest_pose` is Q (2 2)."""
    moved = np.broadcast_to(points, (len(pose.shift), *points.shape))
    if pose.fields is not None:
        moved = moved + np.einsum("fk,nkc->fnc", pose.coeffs, pose.fields(points))
    offset = pose.pivot + pose.shift - pose.linear @ pose.pivot
    return moved @ rest_pose.T @ pose.linear.transpose(0, 2, 1) + offset[:, None]


def mean_speed(pose: Pose, points: Points, rest_pose: np.ndarray) -> float:
    """Mean flow over points and frames, in half sizes per frame."""
    steps = np.diff(positions(pose, points, rest_pose), axis=0)
    return float(np.linalg.norm(steps, axis=-1).mean()) if len(steps) else 0.0
