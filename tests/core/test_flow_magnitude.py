"""Motion of an object: against known steps, on clips of several sizes, with a leak, and with nothing moving."""

import json

import numpy as np
import pytest

from followclick_core.flow import follow, measure_motion
from followclick_core.flow.magnitude import psnr


def texture(height, width, grain, seed):
    import cv2

    noise = np.random.default_rng(seed).random((height, width, 3)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), grain)
    return (255 * (smooth - smooth.min()) / (smooth.max() - smooth.min())).astype(np.uint8)


def moving_square(step=(4, 0), size=128, side=40, num_frames=6, start=(24, 40), camera=(0, 0)):
    """A textured square that goes `step` px per frame over a still (or panning) texture, and its first-frame mask."""
    background, square = texture(size, size, 3, seed=0) // 2, texture(side, side, 1.5, seed=1)
    frames, masks = [], []
    for index in range(num_frames):
        frame = np.roll(background, (camera[1] * index, camera[0] * index), axis=(0, 1))
        mask = np.zeros((size, size), bool)
        x, y = start[0] + step[0] * index, start[1] + step[1] * index
        mask[y : y + side, x : x + side] = True
        frame[mask] = square[:, : max(0, size - x)].reshape(-1, 3)  # what has left to the right is cut off
        frames.append(frame)
        masks.append(mask)
    return np.stack(frames), np.stack(masks)


def test_a_step_of_four_pixels_at_128_wide_is_sixteen_at_512():
    frames, masks = moving_square(step=(4, 0))
    report = measure_motion(frames, masks[0])
    assert report.inside == pytest.approx(16, rel=0.05)
    assert report.per_frame_inside == pytest.approx([16] * 5, rel=0.1)
    assert report.outside < 0.5


def test_the_same_motion_in_a_picture_twice_as_large_has_the_same_magnitude():
    small, masks = moving_square(step=(4, 2), size=128)
    large = small.repeat(2, axis=1).repeat(2, axis=2)
    large_mask = masks[0].repeat(2, axis=0).repeat(2, axis=1)
    assert measure_motion(large, large_mask).inside == pytest.approx(measure_motion(small, masks[0]).inside, rel=0.05)


def test_the_object_is_measured_where_it_went_not_where_it_was():
    frames, masks = moving_square(step=(9, 0), num_frames=7)  # it leaves its first silhouette after five frames
    report = measure_motion(frames, masks[0])
    assert report.per_frame_inside[-1] == pytest.approx(36, rel=0.1)


def test_the_swept_region_holds_every_place_of_the_object_and_little_more():
    frames, masks = moving_square(step=(6, 3))
    swept = measure_motion(frames, masks[0]).swept
    covered = masks.any(axis=0)
    assert swept[covered].mean() > 0.98
    assert swept.sum() < 1.35 * covered.sum()


def test_energy_and_background_say_that_only_the_object_moved():
    frames, masks = moving_square()
    report = measure_motion(frames, masks[0])
    assert report.energy_share > 0.95
    assert report.background_psnr == 99
    assert len(report.per_frame_background_psnr) == 5


def test_a_panning_background_shows_as_leak():
    frames, masks = moving_square(step=(4, 0), camera=(2, 0))
    report = measure_motion(frames, masks[0])
    assert report.outside == pytest.approx(8, rel=0.15)
    assert report.energy_share < 0.7
    assert report.background_psnr < 30


def test_a_still_clip_has_no_magnitude_and_no_energy():
    frames, masks = moving_square(step=(0, 0))
    report = measure_motion(frames, masks[0])
    assert report.inside < 0.02
    assert (report.outside, report.energy_share) == (0, 0)


def test_an_object_that_left_the_picture_counts_only_while_it_was_there():
    frames, masks = moving_square(step=(12, 0), size=128, start=(80, 40), num_frames=6)
    report = measure_motion(frames, masks[0])
    assert report.per_frame_inside[0] > 20
    assert report.per_frame_inside[-1] == 0
    assert report.inside > 20


def test_an_object_without_any_background_has_no_background_figure():
    frames, _ = moving_square()
    report = measure_motion(frames, np.ones((128, 128), bool))
    assert report.background_psnr is None
    assert report.outside == 0


def test_the_report_is_json():
    frames, masks = moving_square(num_frames=3)
    content = json.loads(json.dumps(measure_motion(frames, masks[0]).to_dict(), allow_nan=False))
    assert content["unit"] == "px/frame at 512 px of width"
    assert 0 < content["swept_share"] < 0.5
    assert len(content["per_frame_outside"]) == 2


def test_any_flow_estimator_can_measure():
    frames, masks = moving_square(num_frames=3)
    sizes = []

    def still(first, second):
        sizes.append(first.shape[:2])
        return np.zeros((*first.shape[:2], 2), np.float32)

    report = measure_motion(frames, masks[0], still)
    assert (report.inside, report.energy_share) == (0, 0)
    assert sizes.count((128, 128)) == 2  # once per pair; the others are cut-outs of the object


def test_followed_points_end_where_the_object_ends():
    frames, masks = moving_square(step=(5, -2), start=(20, 60))
    tracks = follow(frames, masks[0])
    travelled = np.median(tracks.points[-1] - tracks.points[0], axis=0)
    np.testing.assert_allclose(travelled, [25, -10], atol=0.5)
    assert tracks.inside.all()


def test_psnr_of_a_known_error():
    black = np.zeros((4, 4, 3), np.uint8)
    assert psnr(black + 255, black) == pytest.approx(0)
    assert psnr(black + 1, black) == pytest.approx(48.13, abs=0.01)


FRAMES, MASKS = moving_square(num_frames=2)


@pytest.mark.parametrize(
    ("frames", "mask", "message"),
    [
        (FRAMES[:1], MASKS[0], "at least 2"),
        (FRAMES / 255, MASKS[0], "uint8"),
        (np.full((2, 128, 128, 3), np.nan), MASKS[0], "uint8"),
        (FRAMES[..., :1], MASKS[0], "RGB"),
        (FRAMES, np.zeros((128, 128), bool), "empty"),
        (FRAMES, MASKS[0][:64], "128x64 and the frames are 128x128"),
        (FRAMES, MASKS[0].astype(np.float32), "bool"),
    ],
)
def test_bad_input_is_refused_in_a_sentence(frames, mask, message):
    with pytest.raises(ValueError, match=message):
        measure_motion(frames, mask)


def test_an_estimator_that_gives_nan_is_refused():
    with pytest.raises(RuntimeError, match="NaN"):
        measure_motion(FRAMES, MASKS[0], lambda first, second: np.full((*first.shape[:2], 2), np.nan, np.float32))
