"""The verb rule, against the generator's own motions (another implementation) and on frames drawn here."""

import numpy as np
import pytest

from followclick_core.data.motions import MOTIONS, Subject, positions
from followclick_core.data.verbs import VERBS
from followclick_core.evaluation.signals import SIGNALS, read_signals
from followclick_core.evaluation.verbs import SKETCHES, recognise_verb, verb_distances
from followclick_core.flow import Tracks

HALF = 30.0  # pixels
FACE = {"mouth", "eyes", "face"}


def disc_points(count=900):
    steps = np.arange(count) + 0.5
    radius, angle = np.sqrt(steps / count), steps * 2.39996
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)


def exact_tracks(verb, share_of_limit=0.6, facing=-1.0, noise=0.0, seed=0):
    """The points of a disc, moved by the generator's definition of the verb."""
    rng = np.random.default_rng(seed)
    tags = frozenset(FACE if verb in ("smile", "sad", "blink", "nod") else ())
    subject = Subject(HALF / 256, facing=facing, tags=tags, jitter=rng.uniform(-1, 1, (64, 6)))
    motion = MOTIONS[verb]
    pose = motion.pose(share_of_limit * motion.limit(subject), subject, np.arange(16.0))
    points = 128 + HALF * positions(pose, disc_points(), np.eye(2))
    points = points + rng.normal(0, noise, points.shape) * (np.arange(16) > 0)[:, None, None]
    return Tracks(points.astype(np.float32), np.ones(points.shape[:2], bool), pose.gain)


def nearest(tracks, candidates=VERBS):
    distances = verb_distances(read_signals(tracks), candidates)
    return min(distances, key=lambda verb: distances[verb])


def moving_disc(path, size=128, radius=20, turn=0.0, blur=0.0, noise=0.0):
    """A textured disc whose middle goes along `path` (f 2) and that turns by `turn` per frame, over a still texture."""
    import cv2

    rng = np.random.default_rng(0)
    background, texture = (cv2.GaussianBlur(rng.random((size, size, 3)), (0, 0), s) for s in (4, 1.5))
    background, texture = 128 + 250 * (background - 0.5), 128 + 500 * (texture - 0.5)
    y, x = np.mgrid[:size, :size]
    frames = []
    for index, (cx, cy) in enumerate(path):
        warp = cv2.getRotationMatrix2D((size / 2, size / 2), -np.degrees(turn * index), 1)
        warp[:, 2] += (cx - size / 2, cy - size / 2)
        disc = cv2.warpAffine(texture, warp, (size, size))
        frame = np.where(((x - cx) ** 2 + (y - cy) ** 2 < radius**2)[..., None], disc, background)
        frame = (cv2.GaussianBlur(frame, (0, 0), blur) if blur else frame) + rng.normal(0, noise, frame.shape)
        frames.append(frame.clip(0, 255).astype(np.uint8))
    (cx, cy) = path[0]
    return np.stack(frames), (x - cx) ** 2 + (y - cy) ** 2 < radius**2


T = np.arange(16)[:, None]
CENTRE = np.array([64.0, 64.0])


def test_there_is_a_sketch_of_every_verb():
    assert SKETCHES.keys() | {"storm"} == set(VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_the_generators_own_motion_is_recognised(verb):
    assert nearest(exact_tracks(verb)) == verb


@pytest.mark.parametrize("verb", VERBS)
def test_a_weaker_motion_in_the_mirror_is_recognised_through_noise(verb):
    assert nearest(exact_tracks(verb, share_of_limit=0.3, facing=1.0, noise=0.3)) == verb


def test_the_signals_of_a_turn_are_its_sine_and_cosine():
    values = read_signals(exact_tracks("spin", share_of_limit=0.5)).values
    angle = 0.5 * MOTIONS["spin"].limit(Subject(0.1)) * np.arange(16)
    np.testing.assert_allclose(values[:, SIGNALS.index("yx")], np.sin(angle), atol=0.02)
    np.testing.assert_allclose(values[:, SIGNALS.index("xx")], np.cos(angle) - 1, atol=0.02)
    np.testing.assert_allclose(values[:, SIGNALS.index("bend")], 0, atol=0.02)


def test_points_that_left_the_picture_do_not_count():
    tracks = exact_tracks("move right")
    tracks.inside[8:, ::2] = False
    tracks.points[8:, ::2] = 0
    assert nearest(tracks) == "move right"


@pytest.mark.parametrize(
    ("path", "turn", "verb"),
    [
        (CENTRE + T * [-2, 0], 0, "move left"),
        (CENTRE + T * [2, 0], 0, "move right"),
        (CENTRE + T * [0, -2], 0, "move up"),
        (CENTRE + T * [0, 2], 0, "move down"),
        (CENTRE + 5 * np.sin(np.pi * T / 2) * [1, 0], 0, "shake"),
        (CENTRE - 30 * (T / 15) ** 2 * [0, 1], 0, "launch"),
        (CENTRE + 0 * T, 0.15, "spin"),
    ],
)
@pytest.mark.parametrize("spoiled", [{}, {"blur": 1.2, "noise": 3}])
def test_a_verb_is_recognised_from_the_frames_of_a_clip(path, turn, verb, spoiled):
    frames, mask = moving_disc(path, turn=turn, **spoiled)
    assert recognise_verb(frames, mask) == verb


def test_a_still_clip_shows_no_verb():
    frames, mask = moving_disc(CENTRE + 0 * T, noise=2)
    assert recognise_verb(frames, mask) == "still"


def test_only_candidates_are_answered():
    frames, mask = moving_disc(CENTRE + T * [2, 0])
    assert recognise_verb(frames, mask, ["move up", "spin", "run"]) == "run"


def test_an_unknown_candidate_is_refused():
    frames, mask = moving_disc(CENTRE + T * [2, 0])
    with pytest.raises(ValueError, match="sketch of teleport"):
        recognise_verb(frames, mask, ["run", "teleport"])


def test_a_mask_of_another_size_is_refused():
    frames, mask = moving_disc(CENTRE + T * [2, 0])
    with pytest.raises(ValueError, match="resize the mask"):
        recognise_verb(frames, mask[:64])
