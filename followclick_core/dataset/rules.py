"""Motion phrases without a language model: the first verb of motion in a caption, with its particle.

A word list and the neighbours of each word decide; nothing is parsed. So it prefers to say nothing: "running shoes",
"drone flying over", "waves crashing" are the traps. tests/dataset measures its precision on labelled captions.
"""

import json
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path


class _Words:
    """The word lists of words.json; a list says by its place in the rules what it is for."""

    def __init__(self, lists: dict[str, str]):
        self.verbs = lists["verbs"].split()
        self.particles = set(lists["particles"].split())
        # Before a place these say where, not how: "walk in the park". As particles they end a phrase.
        self.place_words = set(lists["place_words"].split())
        # "put on her coat", "take off": here the particle makes the meaning.
        self.phrasal = {tuple(pair.split(":")) for pair in lists["phrasal"].split()}
        self.irregular = dict(pair.split(":") for pair in lists["irregular"].split())  # past form -> verb
        self.body = set(lists["body"].split())
        self.body_verbs = set(lists["body_verbs"].split())
        self.possessives = set(lists["possessives"].split())
        self.camera = set(lists["camera"].split())  # moves itself, not what it sees
        # Second halves of names, "running shoes", and verbs of which such a first half does move, "boiling water".
        self.named_things = set(lists["named_things"].split())
        self.moving_adjectives = set(lists["moving_adjectives"].split())
        self.determiners = set(lists["determiners"].split())
        self.prepositions = set(lists["prepositions"].split())
        self.adverbs = set(lists["adverbs"].split())
        self.plurals = set(lists["plurals"].split())
        self.noun_like = set(lists["noun_like"].split())  # nouns as often as verbs: "waves", "steps"
        self.still_ing = set(lists["still_ing"].split())  # "building", "evening"


WORDS = _Words(json.loads(Path(__file__).with_name("words.json").read_text(encoding="utf-8")))


@dataclass(frozen=True)
class Motion:
    """A phrase such as `walk away`, empty where the caption tells of no motion, and the word that seems to move."""

    phrase: str
    objects: tuple[str, ...] = ()


def extract_motion(caption: str) -> Motion:
    """The first motion that a caption tells of."""
    words = re.findall(r"[a-z]+(?:-[a-z]+)*|[,.;:]", caption.lower().replace("’", "'").replace("'s", ""))
    for index, word in enumerate(words):
        verb, form = _forms().get(word, ("", ""))
        if verb and _is_motion(words, index, verb, form):
            return Motion(_with_particle(words, index, verb), _subject(words, index))
    return Motion("")


def _is_motion(words: list[str], index: int, verb: str, form: str) -> bool:
    before = words[index - 1] if index else ""
    after = words[index + 1] if index + 1 < len(words) else ""
    if any(word in WORDS.camera for word in words[max(0, index - 2) : index]) and before not in (",", "."):
        # "drone flying over", "camera pans across"; what comes behind a comma is another matter.
        return False
    if form == "ing":
        if words[index] in WORDS.still_ing and (
            before in WORDS.determiners or before in WORDS.prepositions or not before
        ):
            return False
        if after in WORDS.named_things:
            return verb in WORDS.moving_adjectives and after in ("water", "light", "oil", "stone", "stones", "hill")
        return before not in WORDS.prepositions
    if form == "s" and words[index] == "lights" and after not in WORDS.determiners:
        return False  # of the city, of the traffic
    if form == "s":
        # Third person: behind a noun, never behind an article or a preposition.
        return (
            bool(before)
            and before not in WORDS.determiners | WORDS.prepositions | {",", "."}
            and not (
                words[index] in WORDS.noun_like
                and (before in WORDS.adverbs - {"and"} or _is_plural(before) or _is_ing(after))
            )
        )
    if form == "base":
        return _is_plural(before) and before not in WORDS.noun_like and after not in (",", ".", "")
    # Past and passive: "milk being poured", "wine poured into"; not "fallen leaves".
    return (
        bool(before)
        and before not in WORDS.determiners
        and (before in ("being", "is", "are") or after in WORDS.prepositions)
    )


def _with_particle(words: list[str], index: int, verb: str) -> str:
    after, second = ([*words[index + 1 : index + 3], "", ""])[:2]
    if verb in WORDS.body_verbs and after in WORDS.possessives and second in WORDS.body:
        return f"{verb} {second}"
    if verb in WORDS.body_verbs and after in WORDS.body:
        return f"{verb} {after}"
    if (verb, after) in WORDS.phrasal:
        return f"{verb} {after}"
    ends = second in ("", ",", ".", "and", "from", "to", "into", "in", "at", "of", "on", "towards", "behind")
    if after in WORDS.particles and (after not in WORDS.place_words or (ends and after not in ("in", "on"))):
        return f"{verb} {after}"
    return verb


def _subject(words: list[str], index: int) -> tuple[str, ...]:
    for word in reversed(words[:index]):
        if word in (",", ".", *WORDS.prepositions):
            return ()
        if word not in WORDS.determiners | WORDS.adverbs | {"is", "are", "being"}:
            return (word,)
    return ()


def _is_plural(word: str) -> bool:
    return word in WORDS.plurals or (len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")))


def _is_ing(word: str) -> bool:
    return word.endswith("ing")


@lru_cache(maxsize=1)
def _forms() -> dict[str, tuple[str, str]]:
    """Every form of every verb -> (verb, ing | s | base | past)."""
    forms: dict[str, tuple[str, str]] = {}
    for verb in WORDS.verbs:
        stem = verb[:-1] if verb.endswith("e") and not verb.endswith(("ee", "ye", "oe")) else verb
        doubled = verb + verb[-1] if re.fullmatch(r"[^aeiou]*[aeiou][^aeiouwxy]", verb) else stem
        doubled = {"travel": "travell", "tie": "ty", "nod": "nodd"}.get(verb, doubled)
        # American spelling too: "traveling".
        for ing in (f"{doubled}ing", f"{stem}ing"):
            forms.setdefault(ing, (verb, "ing"))
        for past in (f"{doubled}ed", f"{stem}ed"):
            forms.setdefault(past, (verb, "past"))
        forms[_third_person(verb)] = (verb, "s")
        forms.setdefault(verb, (verb, "base"))
    for past, verb in WORDS.irregular.items():
        forms[past] = (verb, "past")
    return forms


def _third_person(verb: str) -> str:
    if re.search(r"(s|sh|ch|x|z|o)$", verb):
        return verb + "es"
    return verb[:-1] + "ies" if re.search(r"[^aeiou]y$", verb) else verb + "s"
