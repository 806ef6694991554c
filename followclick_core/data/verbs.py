"""The verbs of the generated clips: their phrases, the sprites that they suit, and how often they are drawn."""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Verb:
    """One motion by name.

    Attributes:
        base, third, ing: The word as in "make it run", "the dog runs", "is running".
        extra: Further phrases that mean the same.
        tags: Sprites that suit it best (sprite_names.tags); empty: any.
        anywhere: Share of samples on any object at all, where tags are given.
        weight: How often it is drawn, relative to the others.
    """

    base: str
    third: str
    ing: str
    extra: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    anywhere: float = 0.0
    weight: float = 1.0


_VERBS: dict[str, Verb] = {
    "move left": Verb(
        "move left", "moves left", "moving left", ("go left", "slide left", "to the left", "left"), weight=1.3
    ),
    "move right": Verb(
        "move right", "moves right", "moving right", ("go right", "slide right", "to the right", "right"), weight=1.3
    ),
    "move up": Verb("move up", "moves up", "moving up", ("rise", "rising", "go up", "upwards", "up"), weight=1.2),
    "move down": Verb(
        "move down", "moves down", "moving down", ("sink", "sinking", "go down", "downwards", "down"), weight=1.2
    ),
    "launch": Verb(
        "launch",
        "launches",
        "launching",
        ("take off", "taking off", "lift off", "blast off"),
        ("rocket", "plane"),
        0.7,
        1.3,
    ),
    "fall": Verb("fall", "falls", "falling", ("drop", "dropping", "fall down")),
    "jump": Verb("jump", "jumps", "jumping", ("bounce", "bouncing", "hop", "hopping", "leap"), weight=1.3),
    "shake": Verb("shake", "shakes", "shaking", ("shake the head", "tremble", "trembling", "vibrate"), weight=1.2),
    "nod": Verb(
        "nod",
        "nods",
        "nodding",
        ("nod the head", "bow", "bowing"),
        ("animal_face", "person_face", "face", "dancer"),
        0.6,
        1.2,
    ),
    "spin": Verb("spin", "spins", "spinning", ("rotate", "rotating", "turn around", "roll"), weight=1.2),
    "grow": Verb("grow", "grows", "growing", ("get bigger", "inflate", "expand", "come closer"), weight=1.1),
    "shrink": Verb("shrink", "shrinks", "shrinking", ("get smaller", "deflate", "go away"), weight=1.1),
    "pulse": Verb("pulse", "pulses", "pulsing", ("beat", "beating", "throb"), ("heart",), 0.7, 0.7),
    "flap": Verb(
        "flap", "flaps", "flapping", ("flap the wings", "flapping its wings", "flaps its wings"), ("wing",), 0.25, 1.3
    ),
    "fly": Verb("fly", "flies", "flying", ("fly away", "soar", "fly up"), ("wing", "plane"), 0.25, 0.9),
    "swim": Verb("swim", "swims", "swimming", ("wriggle", "wriggling"), ("fish",), 0.2, 0.9),
    "drift": Verb("drift", "drifts", "drifting", ("float", "floating", "sail", "sailing"), ("boat", "cloud"), 0.6, 1.2),
    "dance": Verb("dance", "dances", "dancing", ("groove", "boogie"), ("dancer", "runner", "animal_face"), 0.5, 1.2),
    "run": Verb("run", "runs", "running", ("gallop", "galloping", "walk", "walking", "jog"), ("runner",), 0.4, 1.3),
    "storm": Verb(
        "storm", "storms", "storming", ("thunder", "thunderstorm", "rage", "lightning"), ("cloud",), 0.35, 1.1
    ),
    "smile": Verb("smile", "smiles", "smiling", ("grin", "laugh", "happy", "look happy"), ("mouth",), 0.0, 1.2),
    "sad": Verb(
        "look sad", "looks sad", "looking sad", ("sad", "frown", "frowning", "cry", "be sad"), ("mouth",), 0.0, 1.2
    ),
    "blink": Verb(
        "blink", "blinks", "blinking", ("wink", "winking", "close the eyes", "blink the eyes"), ("eyes",), 0.0, 1.1
    ),
    "wave": Verb("wave", "waves", "waving", ("wave the hand", "wave hello", "flutter"), ("flag", "hand"), 0.4, 1.1),
    "sway": Verb("sway", "sways", "swaying", ("swing", "swinging", "rock", "rocking"), weight=1.1),
}

VERBS: tuple[str, ...] = tuple(_VERBS)
"""Canonical names, in a fixed order."""


def _phrases(name: str, verb: Verb) -> tuple[str, ...]:
    phrases = (name, verb.base, verb.ing, f"is {verb.ing}", verb.third, f"make it {verb.base}", *verb.extra)
    return tuple(dict.fromkeys(phrases))


SYNONYMS: dict[str, tuple[str, ...]] = {name: _phrases(name, verb) for name, verb in _VERBS.items()}
"""Canonical name -> every phrase without a noun that means it, itself first."""

_CANONICAL = {phrase: name for name, phrases in SYNONYMS.items() for phrase in phrases}


def describe(name: str) -> Verb:
    """The entry of a canonical verb; ValueError for any other word."""
    if name not in _VERBS:
        raise ValueError(f"'{name}' is no verb of the scenes; the verbs are {', '.join(VERBS)}.")
    return _VERBS[name]


def noun_phrases(name: str, noun: str) -> tuple[str, ...]:
    """What a user says who names the object: "the eagle flaps", "make the eagle flap" …"""
    verb = describe(name)
    return f"the {noun} {verb.third}", f"the {noun} is {verb.ing}", f"make the {noun} {verb.base}"


def canonical_verb(prompt: str) -> str | None:
    """The verb that a prompt means, or None: an exact phrase of SYNONYMS, else the longest one that ends the prompt.

    So "the brown dog is running" is "run". Case, spacing and a final full stop do not matter.
    """
    words = re.sub(r"[.!]+$", "", prompt.strip().lower()).split()
    for start in range(len(words)):
        found = _CANONICAL.get(" ".join(words[start:]))
        if found is not None:
            return found
    return None
