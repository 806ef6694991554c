"""What the user would type: the short motion prompt, and the caption of the still scene."""

from collections.abc import Sequence

import numpy as np

from .verbs import SYNONYMS, noun_phrases


def with_article(noun: str) -> str:
    """ "an eagle", "a car"; plurals and mass words stay as they are."""
    if noun.endswith("s") and not noun.endswith(("ss", "us", "bus", "glass")):
        return noun
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def motion_prompt(verb: str, noun: str, rng: np.random.Generator) -> str:
    """A phrase for the verb; half of the time its plainest word, sometimes a sentence that names the object."""
    draw = rng.random()
    if draw < 0.4:
        return SYNONYMS[verb][0]
    if draw < 0.75:
        return str(rng.choice(SYNONYMS[verb]))
    return str(rng.choice(noun_phrases(verb, noun)))


def caption(nouns: Sequence[str], place: str) -> str:
    """ "an eagle and a red car, photo of a meadow"; at most three nouns."""
    named = [with_article(noun) for noun in dict.fromkeys(nouns)][:3]
    listed = named[0] if len(named) == 1 else ", ".join(named[:-1]) + " and " + named[-1]
    return f"{listed}, photo of {place}"
