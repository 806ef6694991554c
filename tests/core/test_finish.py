import numpy as np
import pytest

from followclick_core.finish import crop_region, lock_background, stitch_region
from followclick_core.flow import measure_motion


def mask_of(shape: tuple[int, int], top: int, left: int, bottom: int, right: int) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[top:bottom, left:right] = True
    return mask


def test_a_crop_is_a_square_around_the_region_and_says_where_it_lies(photo):
    mask = mask_of(photo.shape[:2], 40, 50, 56, 70)
    part, part_mask, place = crop_region(photo, mask, context=2.0)
    assert part.shape == (40, 40, 3) and (place.top, place.left) == (28, 40)
    assert np.array_equal(part, photo[28:68, 40:80])
    assert part_mask.sum() == mask.sum() and part_mask[12:28, 10:30].all()


def test_a_crop_stays_within_the_photo_and_holds_all_of_the_region(photo):
    height, width = photo.shape[:2]
    corner = mask_of((height, width), 0, width - 10, 12, width)
    part, part_mask, place = crop_region(photo, corner, context=3.0)
    assert part.shape[:2] == (36, 36) and (place.top, place.left) == (0, width - 36)
    assert part_mask.sum() == corner.sum()
    part, part_mask, _ = crop_region(photo, mask_of((height, width), 5, 5, 90, 120), context=2.0)
    assert part.shape == photo.shape


def test_a_dot_gets_a_crop_that_can_be_animated(photo):
    part, _, _ = crop_region(photo, mask_of(photo.shape[:2], 50, 60, 51, 61))
    assert part.shape == (16, 16, 3)


def test_stitching_the_crop_itself_gives_the_photo_back(photo):
    part, _, place = crop_region(photo, mask_of(photo.shape[:2], 40, 50, 56, 70))
    stitched = stitch_region(np.stack([part, part]), place)
    assert np.array_equal(stitched, np.stack([photo, photo]))


def test_stitched_frames_change_the_crop_alone_and_fade_at_its_sides(photo):
    mask = mask_of(photo.shape[:2], 40, 50, 56, 70)
    _, _, place = crop_region(photo, mask, context=2.0)
    white = np.full((1, 20, 20, 3), 255, np.uint8)  # at half the crop's size
    (frame,) = stitch_region(white, place, feather=4.0)
    outside = np.ones(photo.shape[:2], bool)
    outside[place.window] = False
    assert np.array_equal(frame[outside], photo[outside])
    assert (frame[place.window][6:-6, 6:-6] == 255).all()
    edge = frame[place.window][0, 20].astype(int) - photo[place.window][0, 20]
    assert np.allclose(edge, (255 - photo[place.window][0, 20].astype(int)) / 8, atol=1)


def test_at_the_photos_own_border_nothing_fades(photo):
    _, _, place = crop_region(photo, mask_of(photo.shape[:2], 0, 0, 16, 16), context=2.0)
    (frame,) = stitch_region(np.full((1, 32, 32, 3), 255, np.uint8), place, feather=8.0)
    assert (frame[:20, :20] == 255).all() and not (frame[30, 30] == 255).any()


def test_frames_of_other_proportions_fill_the_middle_of_the_place(photo):
    """The host scales a picture to a model's size and crops it in the middle: so much of the crop was animated."""
    _, _, place = crop_region(photo, mask_of(photo.shape[:2], 40, 50, 56, 70), context=2.0)
    (frame,) = stitch_region(np.full((1, 10, 20, 3), 255, np.uint8), place, feather=0)
    inside = frame[place.window]
    assert (inside[10:30] == 255).all()
    assert np.array_equal(inside[:10], photo[place.window][:10])
    assert np.array_equal(inside[30:], photo[place.window][30:])


def test_a_locked_background_is_the_photos_and_the_object_still_moves(moving_square):
    frames, mask = moving_square
    photo = frames[0]
    noisy = np.clip(frames + np.random.default_rng(2).normal(0, 6, frames.shape), 0, 255).astype(np.uint8)
    locked = lock_background(noisy, photo, mask, feather=2.0)
    before, after = measure_motion(noisy, mask), measure_motion(locked, mask)
    # Beyond the swept region, its margin of 4 pixels, and the seam of 4 + 6.
    far = np.ones(mask.shape, bool)
    far[14:78, 4:98] = False
    assert all(np.array_equal(frame[far], photo[far]) for frame in locked)
    for frame, own in zip(locked, noisy, strict=True):
        assert np.array_equal(frame[34:58, 24:80], own[34:58, 24:80])
    assert after.outside < 0.5 * before.outside  # what is left lies in the seam
    assert after.inside == pytest.approx(before.inside, rel=0.1)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda photo, mask: crop_region(photo, mask & False), "mask is empty"),
        (lambda photo, mask: crop_region(photo, mask[1:]), "resize the mask"),
        (lambda photo, mask: crop_region(photo, mask, context=0.5), "context is 0.5"),
        (lambda photo, mask: crop_region(photo, mask, context=float("nan")), "context is nan"),
        (lambda photo, mask: stitch_region(photo[None], crop_region(photo, mask)[2], -1.0), "feather is -1"),
        (lambda photo, mask: lock_background(np.stack([photo] * 2), photo[1:], mask), "scale it to the clip"),
        (lambda photo, mask: lock_background(photo[None], photo, mask), "at least 2"),
    ],
)
def test_what_cannot_be_done_says_what_is_wrong(photo, unchecked, call, text):
    with pytest.raises(ValueError, match=text):
        call(photo, mask_of(photo.shape[:2], 40, 50, 56, 70))
