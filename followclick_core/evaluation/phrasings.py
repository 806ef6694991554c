"""Words for the verbs that training never used: does the model know the motion, or only its own vocabulary?

Two kinds, measured apart. A *synonym* means the verb by words of which training's prompts hold none. A *rephrasing*
says the verb's own word inside a sentence that no training prompt is. A test holds both against training's phrases.
"""

from ..data.verbs import describe

KINDS = ("synonym", "rephrasing")

_SYNONYMS: dict[str, tuple[str, ...]] = {
    "move left": ("travel westwards", "shift leftward"),
    "move right": ("travel eastwards", "shift rightward"),
    "move up": ("ascend", "climb higher"),
    "move down": ("descend", "sag lower"),
    "launch": ("depart skyward", "shoot into space"),
    "fall": ("plummet", "tumble"),
    "jump": ("spring", "bound"),
    "shake": ("quiver", "shudder"),
    "nod": ("agree", "dip forward"),
    "spin": ("whirl", "twirl"),
    "grow": ("enlarge", "swell"),
    "shrink": ("dwindle", "contract"),
    "pulse": ("palpitate", "pump"),
    "flap": ("flit", "fan feathers"),
    "fly": ("glide", "hover"),
    "swim": ("paddle", "dive"),
    "drift": ("waft", "meander"),
    "dance": ("waltz", "shimmy"),
    "run": ("sprint", "race"),
    "storm": ("tempest", "hurricane"),
    "smile": ("beam", "giggle"),
    "sad": ("weep", "mourn"),
    "blink": ("shut eyelids", "bat eyelashes"),
    "wave": ("greet", "billow"),
    "sway": ("lean side-to-side", "oscillate"),
}

_FRAMES = ("please let this {base}", "I want to see this thing {ing}", "watch how this {third}")


def unseen_phrasings(verb: str, kind: str) -> tuple[str, ...]:
    """What a user could also say for a verb of data.verbs.VERBS, and training never did.

    Raises:
        ValueError: There is no such verb or kind.
    """
    words = describe(verb)
    if kind == "synonym":
        return _SYNONYMS[verb]
    if kind == "rephrasing":
        return tuple(frame.format(base=words.base, ing=words.ing, third=words.third) for frame in _FRAMES)
    raise ValueError(f"There is no kind of phrasing {kind!r}; choose {' or '.join(KINDS)}.")


def unseen_phrasing(verb: str, kind: str, index: int) -> str:
    """One of them; scenes of consecutive index take turns."""
    phrasings = unseen_phrasings(verb, kind)
    return phrasings[index % len(phrasings)]
