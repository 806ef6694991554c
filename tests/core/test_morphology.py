"""Grow, shrink and feather, against distances that can be counted."""

import numpy as np
import pytest

from followclick_core.segment import feather_mask, grow_mask


def square(size=41, start=15, side=11):
    mask = np.zeros((size, size), bool)
    mask[start : start + side, start : start + side] = True
    return mask


def test_growing_adds_every_pixel_within_the_distance():
    point = np.zeros((31, 31), bool)
    point[15, 15] = True
    y, x = np.mgrid[:31, :31]
    np.testing.assert_array_equal(grow_mask(point, 7), np.hypot(x - 15, y - 15) <= 7)


def test_shrinking_takes_away_the_border():
    np.testing.assert_array_equal(grow_mask(square(), -3), square(start=18, side=5))
    assert not grow_mask(square(), -6).any()


def test_shrinking_a_grown_square_gives_the_square_again():
    np.testing.assert_array_equal(grow_mask(grow_mask(square(), 5), -5), square())


def test_a_full_or_an_empty_mask_stays():
    full = np.ones((8, 9), bool)
    for pixels in (-3, 0, 3):
        assert grow_mask(full, pixels).all()
        assert not grow_mask(~full, pixels).any()


def test_the_mask_given_is_not_changed():
    mask = square()
    grow_mask(mask, 0)[:] = True
    np.testing.assert_array_equal(mask, square())


def test_a_feathered_edge_is_half_where_it_was():
    half = np.zeros((40, 60), bool)
    half[:, 30:] = True
    soft = feather_mask(half, 4)
    assert soft.dtype == np.float32 and soft.min() >= 0 and soft.max() <= 1
    assert soft[:, 29:31].mean() == pytest.approx(0.5, abs=1e-4)
    # A Gaussian's integral: one standard deviation inside the edge 84 % are reached.
    assert soft[20, 30 + 4] == pytest.approx(0.84, abs=0.04)
    assert np.ptp(soft, axis=0).max() < 1e-6  # nothing fades at the picture's border


def test_no_feather_keeps_the_mask():
    np.testing.assert_array_equal(feather_mask(square(), 0), square().astype(np.float32))


def test_a_feather_wider_than_the_picture_is_possible():
    soft = feather_mask(square(), 500)
    assert np.isfinite(soft).all()


@pytest.mark.parametrize("pixels", [5000, -5000])
def test_growth_beyond_any_picture_is_refused(pixels):
    with pytest.raises(ValueError, match="give a number from -4096"):
        grow_mask(square(), pixels)


@pytest.mark.parametrize("pixels", [-1, float("nan"), 1e9])
def test_a_feather_that_is_no_width_is_refused(pixels):
    with pytest.raises(ValueError, match="give a number from 0"):
        feather_mask(square(), pixels)


@pytest.mark.parametrize("pixels", [1, 5, -1, -5])
def test_growing_a_part_is_growing_the_whole(pixels):
    """Only the surroundings of the mask are computed; every pixel is as if all of the picture were."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        mask = np.zeros((50, 60), bool)
        for _ in range(rng.integers(1, 4)):
            y, x = rng.integers(0, 45), rng.integers(0, 55)
            mask[y : y + rng.integers(1, 25), x : x + rng.integers(1, 25)] = True
        own, others = np.argwhere(mask), np.argwhere(~mask)
        every = np.argwhere(np.ones_like(mask))
        if pixels > 0:
            expected = (np.linalg.norm(every[:, None] - own, axis=-1).min(axis=1) <= pixels).reshape(mask.shape)
        else:
            expected = (np.linalg.norm(every[:, None] - others, axis=-1).min(axis=1) > -pixels).reshape(mask.shape)
        np.testing.assert_array_equal(grow_mask(mask, pixels), expected)
    assert not grow_mask(np.zeros((5, 6), bool), pixels).any()
    assert grow_mask(np.ones((5, 6), bool), pixels).all()
