"""Evaluation statistics against scipy-free known values."""

import numpy as np
import pytest

from followclick_core.evaluation.metrics import (
    bootstrap_interval,
    edge_distance,
    linear_fit,
    mask_iou,
    mean_absolute_error,
    spearman,
)


def test_spearman_sees_any_growing_relation_as_one():
    x = np.array([2.0, 4.0, 8.0, 16.0])
    assert spearman(x, np.exp(x)) == pytest.approx(1)
    assert spearman(x, -x) == pytest.approx(-1)


def test_spearman_with_ties_has_the_textbook_value():
    # Ranks 1, 2.5, 2.5, 4 against 1, 2, 3, 4: their Pearson correlation is 4.5 / sqrt(4.5 * 5).
    assert spearman(np.array([1, 2, 2, 3]), np.array([10, 20, 30, 40])) == pytest.approx(4.5 / np.sqrt(22.5))


def test_spearman_of_a_constant_is_not_a_number():
    assert np.isnan(spearman(np.array([2.0, 4.0]), np.array([1.0, 1.0])))


def test_a_line_is_recovered_with_all_its_variance():
    asked = np.array([2.0, 4.0, 8.0, 16.0])
    assert linear_fit(asked, 0.5 * asked + 1) == pytest.approx((0.5, 1, 1))


def test_the_mean_absolute_error_counts_either_side():
    assert mean_absolute_error(np.array([2.0, 4.0, 8.0]), np.array([1.0, 6.0, 8.0])) == pytest.approx(1)


def test_the_bootstrap_interval_of_a_mean_is_about_two_standard_errors_wide():
    values = np.random.default_rng(0).normal(10, 2, 400)
    low, high = bootstrap_interval(values, lambda rows: float(rows.mean()))
    assert low < values.mean() < high
    assert high - low == pytest.approx(4 * values.std() / 20, rel=0.15)


def test_the_bootstrap_resamples_whole_rows():
    rows = np.stack([np.arange(20.0), np.arange(20.0)], axis=1)
    assert bootstrap_interval(rows, lambda sample: spearman(sample[:, 0], sample[:, 1])) == pytest.approx((1, 1))


def test_masks_that_share_half_of_each_have_a_third_of_their_union():
    mask, other = np.zeros((2, 4, 4), bool)
    mask[:, :2] = True
    other[:, 1:3] = True
    assert mask_iou(mask, other) == pytest.approx(1 / 3)
    assert mask_iou(~(mask | True), ~(mask | True)) == 1


def test_the_distance_to_the_edge_is_opencvs():
    import cv2

    noise = cv2.GaussianBlur(np.random.default_rng(0).random((50, 70)).astype(np.float32), (0, 0), 4)
    for mask in (noise > 0.5, noise > 0.45, np.ones((9, 7), bool), np.zeros((5, 5), bool)):
        exact = cv2.distanceTransform(np.pad(mask, 1).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
        np.testing.assert_allclose(edge_distance(mask), exact, atol=1e-4)
