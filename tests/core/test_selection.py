"""From clicks and a drawn mask to a mask per object: the one function behind the run and the live mask."""

import numpy as np
import pytest
import torch

from followclick_core.segment import Click, Segmenter, grow_mask, load_segmenter, predict_masks, select_objects
from followclick_core.segment.params import SmallSamParams
from followclick_core.segment.small_sam import build_small_sam

TINY = SmallSamParams(image_size=64, embed_dim=32, num_heads=2, mlp_dim=32, iou_hidden_dim=16, trunk_width=0.25)
LEFT, RIGHT = Click(0.3, 0.6), Click(0.8, 0.2, object=2)


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    torch.manual_seed(3)
    sam = build_small_sam(TINY)
    for parameter in sam.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    return Segmenter(sam)


@pytest.fixture
def embedding(segmenter, photo):
    return segmenter.embed(photo)


@pytest.fixture
def drawn(photo) -> np.ndarray:
    mask = np.zeros(photo.shape[:2], bool)
    mask[10:40, 15:60] = True
    return mask


def single(segmenter, embedding, click: Click, candidate: int | None = None) -> np.ndarray:
    return segmenter.predict(embedding, [Click(click.x, click.y)]).pick(candidate)


def test_each_object_has_the_mask_that_its_clicks_predict(segmenter, embedding):
    clicks = [LEFT, RIGHT, Click(0.1, 0.9, 0)]
    found = select_objects(segmenter, embedding, clicks)
    assert list(found) == [1, 2]
    np.testing.assert_array_equal(found[1].mask, segmenter.predict(embedding, [LEFT, clicks[2]]).best)
    np.testing.assert_array_equal(found[2].mask, single(segmenter, embedding, RIGHT))
    masks = predict_masks(segmenter, embedding, clicks)
    assert all(np.array_equal(masks[number], found[number].mask) for number in (1, 2))


def test_a_selection_tells_of_the_candidates(segmenter, embedding):
    candidates = segmenter.predict(embedding, [LEFT])
    for rank in (None, 0, 1, 2):
        found = select_objects(segmenter, embedding, [Click(LEFT.x, LEFT.y, candidate=rank)])[1]
        assert found.candidate == (rank or 0)
        np.testing.assert_allclose(found.scores, candidates.scores)
        np.testing.assert_array_equal(found.mask, candidates.masks[rank or 0])


def test_areas_are_those_of_the_masks(photo):
    """With the shipped weights, whose masks are no noise at the resolution of the logits."""
    trained = load_segmenter("demo", "cpu")
    tall = np.ascontiguousarray(np.kron(photo, np.ones((4, 2, 1), np.uint8)))
    embedding = trained.embed(tall)
    found = select_objects(trained, embedding, [Click(0.5, 0.5)])[1]
    shares = trained.predict(embedding, [Click(0.5, 0.5)]).masks.mean(axis=(1, 2))
    assert len(found.areas) == 3 and max(shares) > 0.02
    np.testing.assert_allclose(found.areas, shares, atol=0.02)


def test_the_candidate_is_that_of_the_last_click(segmenter, embedding):
    """A choice among three does not count any more once a second click has left only one."""
    clicks = [Click(0.3, 0.6, candidate=2), Click(0.5, 0.5)]
    found = select_objects(segmenter, embedding, clicks)[1]
    assert found.candidate == 0 and len(found.scores) == 1
    with pytest.raises(ValueError, match="candidate 2 was asked for, but there are 1"):
        select_objects(segmenter, embedding, clicks[::-1])


def test_growing_moves_every_edge(segmenter, embedding, drawn):
    for pixels in (3, -3):
        plain = select_objects(segmenter, embedding, [LEFT, RIGHT], drawn)
        grown = select_objects(segmenter, embedding, [LEFT, RIGHT], drawn, pixels)
        for number in (1, 2):
            np.testing.assert_array_equal(grown[number].mask, grow_mask(plain[number].mask, pixels))


def test_a_drawn_mask_alone_is_object_1(segmenter, embedding, drawn):
    found = select_objects(segmenter, embedding, [], drawn)
    assert list(found) == [1] and found[1].scores == ()
    np.testing.assert_array_equal(found[1].mask, drawn)


def test_clicks_add_to_a_drawn_mask_and_take_away_from_it(segmenter, embedding, drawn):
    under = single(segmenter, embedding, LEFT)
    added = select_objects(segmenter, embedding, [LEFT], drawn)[1].mask
    np.testing.assert_array_equal(added, drawn | under)
    taken = select_objects(segmenter, embedding, [Click(LEFT.x, LEFT.y, 0)], drawn)[1].mask
    np.testing.assert_array_equal(taken, drawn & ~under)
    assert added.sum() > drawn.sum() > taken.sum()


def test_later_clicks_on_a_drawn_mask_have_the_last_word(segmenter, embedding, drawn):
    under = single(segmenter, embedding, LEFT)
    away = Click(LEFT.x, LEFT.y, 0)
    np.testing.assert_array_equal(
        select_objects(segmenter, embedding, [away, LEFT], drawn)[1].mask, (drawn & ~under) | under
    )
    np.testing.assert_array_equal(select_objects(segmenter, embedding, [LEFT, away], drawn)[1].mask, drawn & ~under)


def test_every_click_on_a_drawn_mask_has_candidates_of_its_own(segmenter, embedding, drawn):
    clicks = [Click(0.3, 0.6, candidate=1), Click(0.8, 0.2, 0, candidate=2)]
    found = select_objects(segmenter, embedding, clicks, drawn)[1]
    expected = (drawn | single(segmenter, embedding, clicks[0], 1)) & ~single(segmenter, embedding, clicks[1], 2)
    np.testing.assert_array_equal(found.mask, expected)
    assert found.candidate == 2
    np.testing.assert_allclose(found.scores, segmenter.predict(embedding, [Click(0.8, 0.2)]).scores)


def test_a_drawn_mask_leaves_the_other_objects_alone(segmenter, embedding, drawn):
    found = select_objects(segmenter, embedding, [RIGHT], drawn)
    assert list(found) == [1, 2]
    np.testing.assert_array_equal(found[1].mask, drawn)
    np.testing.assert_array_equal(found[2].mask, single(segmenter, embedding, RIGHT))


def test_where_nothing_is_drawn_the_clicks_alone_count(segmenter, embedding):
    """Load Image gives 64 x 64 zeros for a picture without a mask, whatever its size."""
    nothing = np.zeros((64, 64), bool)
    np.testing.assert_array_equal(
        select_objects(segmenter, embedding, [LEFT], nothing)[1].mask, single(segmenter, embedding, LEFT)
    )


def test_what_selects_nothing_is_refused(segmenter, embedding, drawn):
    with pytest.raises(ValueError, match="no click"):
        select_objects(segmenter, embedding, [])
    with pytest.raises(ValueError, match="no click"):
        select_objects(segmenter, embedding, [], np.zeros_like(drawn))
    with pytest.raises(ValueError, match="only excluding clicks"):
        select_objects(segmenter, embedding, [Click(0.5, 0.5, 0, object=2)], drawn)
    with pytest.raises(ValueError, match="has 64x40 pixels, the image 128x96"):
        select_objects(segmenter, embedding, [LEFT], np.ones((40, 64), bool))
