"""The held-out phrasings are held out: against every phrase that training can say."""

import pytest

from followclick_core.data.verbs import SYNONYMS, VERBS, canonical_verb, noun_phrases
from followclick_core.evaluation.phrasings import KINDS, unseen_phrasing, unseen_phrasings

TRAINED = {phrase.lower() for verb in VERBS for phrase in (*SYNONYMS[verb], *noun_phrases(verb, "thing"))}
TRAINED_WORDS = {word for phrase in TRAINED for word in phrase.split()}


@pytest.mark.parametrize("verb", VERBS)
def test_no_synonym_shares_a_word_with_any_training_phrase(verb):
    for phrase in unseen_phrasings(verb, "synonym"):
        assert not set(phrase.lower().split()) & TRAINED_WORDS


@pytest.mark.parametrize("verb", VERBS)
def test_rephrasings_hold_the_verb_but_are_no_training_phrase(verb):
    for phrase in unseen_phrasings(verb, "rephrasing"):
        assert phrase.lower() not in TRAINED
        assert canonical_verb(phrase) == verb


def test_no_phrasing_is_said_for_two_verbs():
    said = [phrase for verb in VERBS for kind in KINDS for phrase in unseen_phrasings(verb, kind)]
    assert len(set(said)) == len(said) >= 2 * 2 * len(VERBS)


def test_scenes_take_turns_and_wrong_names_are_named():
    assert {unseen_phrasing("jump", "synonym", index) for index in range(4)} == {"spring", "bound"}
    with pytest.raises(ValueError, match="kind of phrasing 'rhyme'"):
        unseen_phrasings("jump", "rhyme")
    with pytest.raises(ValueError, match="'hop' is no verb"):
        unseen_phrasings("hop", "synonym")
