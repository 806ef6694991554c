"""Measure Motion, Lock Background, Crop Region and Stitch Region."""

import pytest
import torch


@pytest.fixture
def clip(picture, square) -> torch.Tensor:
    """Eight frames at half the picture's size in which the square's content slides right by 2 pixels a frame."""
    small = torch.nn.functional.interpolate(picture.movedim(-1, 1), scale_factor=0.5).movedim(1, -1)
    frames = small.repeat(8, 1, 1, 1)
    patch = torch.rand(20, 20, 3, generator=torch.Generator().manual_seed(3))
    for index in range(8):
        frames[index, 15:35, 10 + 2 * index : 30 + 2 * index] = patch
    return frames


def test_measure_motion_gives_the_number_that_was_moved_by(pack, clip, square):
    magnitude, leak, plot = pack.run("MeasureMotion", frames=clip, mask=square)
    assert magnitude == pytest.approx(2 * 512 / 64, rel=0.1) and leak < 0.1 * magnitude
    assert plot.ndim == 4 and plot.shape[-1] == 3


def test_lock_background_brings_the_photo_back_where_nothing_comes(pack, clip, square):
    photo = clip[:1] * 0.5 + 0.2
    (locked,) = pack.run("LockBackground", frames=clip, image=photo, mask=square, feather=1.0)
    assert locked.shape == clip.shape
    assert (locked[:, :6] - photo[:, :6]).abs().max() < 0.01
    assert (locked[5, 18:32, 24:36] - clip[5, 18:32, 24:36]).abs().max() < 0.01


def test_a_crop_of_a_large_photo_comes_back_to_its_place(pack):
    photo = torch.rand(1, 300, 400, 3, generator=torch.Generator().manual_seed(4))
    mask = torch.zeros(2, 300, 400)
    mask[0, 100:140, 200:240] = 1
    part, part_mask, place = pack.run("CropRegion", image=photo, mask=mask, context=2.0)
    assert part.shape == (1, 80, 80, 3) and part_mask.shape == (1, 80, 80) and part_mask.sum() == 1600
    frames = torch.zeros(3, 32, 32, 3)
    (stitched,) = pack.run("StitchRegion", frames=frames, place=place, feather=4.0)
    assert stitched.shape == (3, 300, 400, 3)
    assert (stitched[:, :80] - photo[:, :80]).abs().max() < 0.01
    assert stitched[:, 90:150, 190:250].max() == 0


def test_an_empty_mask_is_answered_by_a_sentence(pack, clip, square):
    for name, inputs in (
        ("MeasureMotion", {"frames": clip}),
        ("LockBackground", {"frames": clip, "image": clip, "feather": 0.0}),
        ("CropRegion", {"image": clip, "context": 2.0}),
    ):
        with pytest.raises(ValueError, match="mask is empty"):
            pack.run(name, mask=square * 0, **inputs)


def test_stitched_frames_can_be_saved_as_a_video_whatever_the_photos_size(pack):
    photo, mask = torch.rand(1, 61, 75, 3), torch.zeros(1, 61, 75)
    mask[0, 20:40, 20:40] = 1
    place = pack.run("CropRegion", image=photo, mask=mask, context=1.5)[2]
    frames = torch.zeros(2, 32, 32, 3)
    assert pack.run("StitchRegion", frames=frames, place=place, feather=2.0)[0].shape == (2, 60, 74, 3)
    whole = pack.run("StitchRegion", frames=frames, place=place, feather=2.0, even_size=False)[0]
    assert whole.shape == (2, 61, 75, 3)
