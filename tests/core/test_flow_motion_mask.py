"""Equation 2: the literal rule's published degeneration, and the rules that avoid it."""

import numpy as np
import pytest

from followclick_core.flow import motion_mask, motion_regions

SIZE, PAIRS = 128, 15


def disc(area_share=0.06, centre=(48, 64)):
    y, x = np.mgrid[:SIZE, :SIZE]
    return (x - centre[0]) ** 2 + (y - centre[1]) ** 2 < area_share * SIZE**2 / np.pi


def flows_of(noise, object_mask=None, object_step=(4, 0), camera=(0, 0), seed=0):
    flows = np.random.default_rng(seed).normal(0, noise, (PAIRS, SIZE, SIZE, 2)) + np.array(camera)
    if object_mask is not None:
        flows[:, object_mask] += np.array(object_step)
    return flows.astype(np.float32)


def iou(mask, other):
    return (mask & other).sum() / (mask | other).sum()


def test_the_literal_equation_covers_the_whole_frame_of_a_still_noisy_clip():
    # Gaussian noise exceeds its own mean magnitude in 46 % of the pixels, and a union over 15 pairs leaves nothing out.
    flows = flows_of(noise=0.05)
    assert 0.44 < motion_mask(flows[:1], "literal").mean() < 0.48
    assert motion_mask(flows, "literal").mean() > 0.99


def test_the_literal_equation_finds_an_object_in_a_clean_clip():
    flows = np.zeros((PAIRS, SIZE, SIZE, 2), np.float32)
    flows[:, disc()] = (4, 0)
    np.testing.assert_array_equal(motion_mask(flows, "literal"), disc())


@pytest.mark.parametrize("rule", ["union", "majority"])
def test_nothing_moves_in_a_still_noisy_clip_once_there_is_a_floor(rule):
    assert not motion_mask(flows_of(noise=0.05), rule).any()


@pytest.mark.parametrize("rule", ["union", "majority"])
def test_the_floor_keeps_a_small_object_apart_from_noise(rule):
    small = disc(area_share=0.01)
    assert iou(motion_mask(flows_of(0.05, small), rule), small) == 1
    assert iou(motion_mask(flows_of(0.05, small), "literal"), small) < 0.05


def test_majority_stands_noise_that_union_does_not():
    flows = flows_of(0.5, disc())
    assert iou(motion_mask(flows, "majority"), disc()) > 0.99
    assert motion_mask(flows, "union").mean() > 0.5


def test_a_pan_is_no_motion_once_the_median_is_taken_off():
    flows = flows_of(0.05, disc(), camera=(3, 0))
    assert iou(motion_mask(flows, "majority"), disc()) == 1
    still = flows_of(0.05, camera=(3, 0))
    assert not motion_mask(still, "majority").any()
    assert motion_mask(still, "majority", subtract_median=False).any()


def test_union_covers_what_a_moving_object_sweeps_and_majority_what_moves_most_of_the_time():
    flows = np.zeros((4, SIZE, SIZE, 2), np.float32)
    for step, flow in enumerate(flows):
        flow[40:60, 20 + 10 * step : 50 + 10 * step] = (10, 0)
    union, majority = motion_mask(flows, "union"), motion_mask(flows, "majority")
    assert union[40:60, 20:80].all()
    assert union.sum() == 20 * 60
    assert majority.sum() == 20 * 40  # columns 30 to 70 move in two pairs of four or more


def test_a_higher_floor_drops_slower_motion():
    flows = flows_of(0.01, disc(), object_step=(2, 0))
    assert motion_mask(flows, "union", floor_px=1.5).any()
    assert not motion_mask(flows, "union", floor_px=3.0).any()


@pytest.mark.parametrize(
    ("flows", "arguments", "message"),
    [
        (flows_of(0.1), {"rule": "average"}, "no motion mask rule 'average'"),
        (flows_of(0.1), {"floor_px": float("nan")}, "floor"),
        (np.full((2, 8, 8, 2), np.nan, np.float32), {}, "NaN"),
        (np.zeros((0, 8, 8, 2), np.float32), {}, "at least one pair"),
        (np.zeros((8, 8, 2), np.float32), {}, "f h w 2"),
    ],
)
def test_bad_input_is_refused_in_a_sentence(flows, arguments, message):
    with pytest.raises(ValueError, match=message):
        motion_mask(flows, **arguments)


def moving_disc_flows(step):
    """A disc that moves on by `step` px per pair, in forward flow at its place in frame i."""
    flows = np.zeros((PAIRS, SIZE, SIZE, 2), np.float32)
    for index, flow in enumerate(flows):
        flow[disc(area_share=0.02, centre=(24 + step * index, 64))] = (step, 0)
    return flows


def test_followed_is_the_first_frame_s_silhouette_of_an_object_that_moves_on():
    silhouette = disc(area_share=0.02, centre=(24, 64))
    flows = moving_disc_flows(step=5)
    assert iou(motion_mask(flows, "followed"), silhouette) > 0.99
    # The same object sweeps four times its size, and no place is crossed in half of the pairs.
    assert motion_mask(flows, "union").sum() > 3 * silhouette.sum()
    assert not motion_mask(flows, "majority").any()


def test_each_rule_s_magnitude_is_the_mean_flow_in_its_region():
    regions = motion_regions(moving_disc_flows(step=5))
    assert regions["followed"].magnitude == pytest.approx(5, abs=0.01)
    # The swept region moves only where the object is.
    assert regions["union"].magnitude < 2
    assert regions["majority"].magnitude == 0
    still = motion_regions(np.zeros((2, 8, 8, 2), np.float32))
    assert all(not region.mask.any() and region.magnitude == 0 for region in still.values())


def test_followed_pixels_count_only_while_they_are_in_the_picture():
    flows = np.zeros((PAIRS, SIZE, SIZE, 2), np.float32)
    flows[:, :, 96:] = (8, 0)  # leaves by the right side within four pairs
    region = motion_regions(flows, ("followed",), subtract_median=False)["followed"]
    expected = np.zeros((SIZE, SIZE), bool)
    expected[:, 96:] = True
    np.testing.assert_array_equal(region.mask, expected)
    assert region.magnitude == pytest.approx(8)
