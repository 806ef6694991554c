"""What the user selected: clicks, and a mask that was drawn by hand, to one mask per object.

The run and the live mask of the editor both come from `select_objects`, so that they are the same to the pixel.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from ..shapes import Mask
from .clicks import EXCLUDE, Click, check_clicks, clicks_by_object
from .morphology import grow_mask
from .predictor import ImageEmbedding, Proposals

# The object that a drawn mask begins, and to which points of other node packs are added.
FIRST_OBJECT = 1


@runtime_checkable
class Proposer(Protocol):
    """A Segmenter, or what stands before one and remembers its answers."""

    def propose(self, embedding: ImageEmbedding, clicks: Sequence[Click]) -> Proposals: ...

    def pick(self, proposals: Proposals, embedding: ImageEmbedding, candidate: int | None) -> Mask: ...


@dataclass(frozen=True)
class Selection:
    """One object's mask, and the candidates among which it was chosen.

    Args:
        candidate: The rank of the one taken, 0 the best; of a drawn mask that clicks refine, at the last click.
        scores: The segmenter's estimate for each, best first; none where only the drawn mask says what is selected.
        areas: The share of the picture that each covers, 0..1.
    """

    mask: Mask
    candidate: int = 0
    scores: tuple[float, ...] = ()
    areas: tuple[float, ...] = ()


def select_objects(
    segmenter: Proposer,
    embedding: ImageEmbedding,
    clicks: Sequence[Click],
    drawn: Mask | None = None,
    grow: int = 0,
) -> dict[int, Selection]:
    """What is selected of each object, by ascending number.

    Args:
        clicks: Of the candidates, the one that an object's last click names is taken.
        drawn: A mask drawn by hand, of the picture's size. Object 1 begins with it: each including click adds what
            lies under it, each excluding click takes that away, in the order in which they were made.
        grow: Moves every edge outwards by so many pixels, or inwards; see grow_mask.

    Raises:
        ValueError: Nothing is selected, an object has nothing but excluding clicks, a candidate does not exist, or the
            drawn mask has another size.
    """
    by_object = clicks_by_object(clicks)
    selections = {}
    if drawn is not None and drawn.any():
        _check_same_size(drawn, embedding)
        selections[FIRST_OBJECT] = _refine(segmenter, embedding, drawn, by_object.pop(FIRST_OBJECT, []))
    if by_object or not selections:
        check_clicks([click for own in by_object.values() for click in own])
    for number, own in by_object.items():
        selections[number] = _selected(segmenter, embedding, own, own[-1].candidate)
    return {number: _grown(selections[number], grow) for number in sorted(selections)}


def predict_masks(segmenter: Proposer, embedding: ImageEmbedding, clicks: Sequence[Click]) -> dict[int, Mask]:
    """A mask for each object number among the clicks.

    Raises:
        ValueError: As select_objects.
    """
    return {number: found.mask for number, found in select_objects(segmenter, embedding, clicks).items()}


def _refine(segmenter: Proposer, embedding: ImageEmbedding, drawn: Mask, clicks: Sequence[Click]) -> Selection:
    """The drawn mask and, click by click, the objects under them. Each is asked for on its own: all of them together
    would describe one object, and the drawn one need not be any that the segmenter knows."""
    selection = Selection(drawn)
    for click in clicks:
        asked = Click(click.x, click.y, object=click.object)
        found = _selected(segmenter, embedding, [asked], click.candidate)
        joined = selection.mask & ~found.mask if click.label == EXCLUDE else selection.mask | found.mask
        selection = Selection(joined, found.candidate, found.scores, found.areas)
    return selection


def _selected(
    segmenter: Proposer, embedding: ImageEmbedding, clicks: Sequence[Click], candidate: int | None
) -> Selection:
    proposals = segmenter.propose(embedding, clicks)
    mask = segmenter.pick(proposals, embedding, candidate)
    scores = tuple(float(score) for score in proposals.scores)
    return Selection(mask, candidate or 0, scores, tuple(proposals.areas(embedding)))


def _grown(selection: Selection, pixels: int) -> Selection:
    mask = grow_mask(selection.mask, pixels) if pixels else selection.mask
    return Selection(mask, selection.candidate, selection.scores, selection.areas)


def _check_same_size(drawn: np.ndarray, embedding: ImageEmbedding) -> None:
    if drawn.shape != embedding.original_size:
        (height, width), (own_height, own_width) = embedding.original_size, drawn.shape
        raise ValueError(
            f"The drawn mask has {own_width}x{own_height} pixels, the image {width}x{height}; "
            "draw it on this image, or disconnect it."
        )
