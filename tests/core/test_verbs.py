"""data/verbs.py and data/motions.py: what the phrases mean, and that every verb has a motion that starts at rest."""

import numpy as np
import pytest

from followclick_core.data.motions import MAX_FIELDS, MOTIONS, Subject, mean_speed
from followclick_core.data.verbs import SYNONYMS, VERBS, canonical_verb, describe, noun_phrases

POINTS = np.random.default_rng(0).uniform(-0.8, 0.8, (64, 2))
UPRIGHT = np.eye(2)
FRAMES = np.arange(16.0)


def pose_of(verb, strength=1.0, **subject):
    subject = Subject(half=0.15, jitter=np.random.default_rng(1).uniform(-1, 1, (64, 6)), **subject)
    return MOTIONS[verb].pose(strength * MOTIONS[verb].limit(subject), subject, FRAMES)


def test_every_verb_that_the_project_promises_is_there():
    promised = "move left,move right,launch,jump,shake,nod,spin,grow,shrink,flap,drift,dance,run,storm,smile,sad,blink"
    assert set(promised.split(",")) <= set(VERBS)
    assert set(MOTIONS) == set(VERBS) == set(SYNONYMS)


def test_no_phrase_means_two_verbs():
    phrases = [phrase for verb in VERBS for phrase in SYNONYMS[verb]]
    assert len(phrases) == len(set(phrases))
    assert all(phrase == phrase.lower() for phrase in phrases)


@pytest.mark.parametrize("verb", VERBS)
def test_every_phrase_leads_back_to_its_verb(verb):
    assert all(canonical_verb(phrase) == verb for phrase in SYNONYMS[verb])
    assert all(canonical_verb(phrase) == verb for phrase in noun_phrases(verb, "eagle"))


def test_a_sentence_is_understood_by_its_end_and_nonsense_is_not():
    assert canonical_verb("  The brown dog is RUNNING. ") == "run"
    assert canonical_verb("the eagle flaps its wings") == "flap"
    assert canonical_verb("go to the left") == "move left"
    assert canonical_verb("recite a poem") is None
    assert canonical_verb("") is None


def test_an_unknown_verb_is_refused_by_name():
    with pytest.raises(ValueError, match="'recite' is no verb"):
        describe("recite")


@pytest.mark.parametrize("verb", VERBS)
def test_frame_0_is_at_rest_and_strength_adds_speed(verb):
    pose = pose_of(verb)
    assert np.allclose(pose.linear[0], np.eye(2)) and np.allclose(pose.shift[0], 0) and np.allclose(pose.coeffs[0], 0)
    assert pose.gain[0] == 1 and pose.coeffs.shape[1] <= MAX_FIELDS
    slow, fast = (mean_speed(pose_of(verb, strength), POINTS, UPRIGHT) for strength in (0.3, 1.0))
    assert 0 < slow < fast


def test_directions_are_those_of_the_screen():
    ends = {
        verb: pose_of(verb).shift[-1] for verb in ("move left", "move right", "move up", "move down", "launch", "fall")
    }
    assert ends["move left"][0] < 0 < ends["move right"][0]
    assert ends["move up"][1] < 0 < ends["move down"][1]
    assert ends["launch"][1] < 0 < ends["fall"][1]


@pytest.mark.parametrize("verb", ["run", "drift", "swim", "fly"])
def test_what_looks_right_goes_right(verb):
    assert pose_of(verb, facing=-1.0).shift[-1, 0] < 0 < pose_of(verb, facing=1.0).shift[-1, 0]


def test_launch_speeds_up_and_shake_comes_back():
    steps = -np.diff(pose_of("launch").shift[:, 1])
    assert np.all(np.diff(steps) > 0)
    shaken = pose_of("shake").shift[:, 0]
    assert np.allclose(shaken[::4], 0, atol=1e-9) and np.ptp(shaken) > 0
