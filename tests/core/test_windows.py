"""Context windows: every frame is covered, in order, and later windows continue."""

import itertools

import pytest
import torch

from followclick_core.conditioning import first_frame_condition
from followclick_core.windows import (
    blend_windows,
    context_windows,
    continued_condition,
    followed_mask,
    window_weights,
)


@pytest.mark.parametrize("loop", [False, True])
@pytest.mark.parametrize(
    ("num_frames", "length", "overlap"), [(1, 16, 4), (16, 16, 4), (17, 16, 4), (48, 16, 6), (100, 8, 3), (5, 2, 1)]
)
def test_windows_cover_every_frame_and_overlap_as_asked(num_frames, length, overlap, loop):
    windows = context_windows(num_frames, length, overlap, loop)
    assert windows[0][0] == 0 and {len(window) for window in windows} == {min(length, num_frames)}
    assert {frame for window in windows for frame in window} == set(range(num_frames))
    half = len(windows) // 2
    ways = [windows[:half], windows[half:]] if loop and num_frames > 1 else [windows]
    for way in ways:
        assert way[0][0] == 0  # both set out from the photo
        for before, after in itertools.pairwise(way):
            assert len(set(before) & set(after)) >= overlap
            # Where a window begins, the one before has something to continue from.
            assert after[0] in before
    assert all(window == list(range(window[0], window[-1] + 1)) for window in ways[0])
    assert [[-frame % num_frames for frame in window] for window in ways[-1]] == ways[0] or len(ways) == 1
    # Every frame counts.
    total = torch.zeros(num_frames)
    for window in windows:
        total[window] += torch.tensor(window_weights(window, num_frames, overlap, loop))
    assert total.min() > 0


@pytest.mark.parametrize("num_frames", [4, 9, 16, 40])
def test_each_half_of_a_loop_is_the_way_that_leaves_the_photo_there(num_frames):
    windows = context_windows(num_frames, 16, 4, loop=True)
    weights = [window_weights(window, num_frames, 4, loop=True) for window in windows]
    forwards = [
        torch.tensor([float(-f % num_frames if i >= len(windows) // 2 else f) for f in w])
        for i, w in enumerate(windows)
    ]
    distance = blend_windows(forwards, windows, weights, num_frames, dim=0)
    # Frames before the last are as far from the photo as those after the first: out, and back.
    torch.testing.assert_close(distance[1:], distance[1:].flip(0))
    assert distance[0] == 0 and distance[1] == distance[-1] == pytest.approx(1, abs=0.01 if num_frames > 8 else 1)
    assert distance.diff().abs().max() < 1.6


@pytest.mark.parametrize(("length", "overlap"), [(0, 0), (1, 0), (4, 4), (4, 0), (4, -1)])
def test_windows_that_make_no_sense_are_refused(length, overlap):
    with pytest.raises(ValueError, match=r"context window has [01]|cannot overlap by"):
        context_windows(10, length, overlap)


def test_a_clip_that_fits_in_one_window_needs_no_overlap():
    assert context_windows(4, 4, 0) == [[0, 1, 2, 3]] and context_windows(1, 1, 0) == [[0]]


def test_blending_keeps_what_windows_agree_on_and_weighs_the_middle_most():
    assert window_weights(list(range(5)), 9) == [1, 2, 3, 2, 1] and window_weights(list(range(5, 9)), 9) == [1, 2, 2, 1]
    windows = context_windows(10, 6, 2)
    whole = torch.randn((2, 3, 10, 4), generator=torch.Generator().manual_seed(0))
    weights = [window_weights(window, 10) for window in windows]
    torch.testing.assert_close(blend_windows([whole[:, :, w] for w in windows], windows, weights, 10, dim=2), whole)
    parts = [torch.full((6,), float(index)) for index in range(2)]
    blended = blend_windows(parts, windows, weights, 10, dim=0)
    torch.testing.assert_close(blended, torch.tensor([0, 0, 0, 0, 1 / 3, 2 / 3, 1, 1, 1, 1]))


@pytest.mark.parametrize("layout", ["paper", "release", "repeat"])
@pytest.mark.parametrize("shift", [(0, 0), (2, -3), (-1, 4)])
def test_a_later_window_begins_with_the_object_where_it_is(layout, shift):
    generator = torch.Generator().manual_seed(0)
    photo = torch.randn((2, 4, 12, 14), generator=generator)
    mask = torch.zeros(2, 1, 12, 14)
    mask[:, :, 4:7, 5:9] = 1
    later = photo.clone()
    later[0] = torch.where(mask[0].roll(shift, (1, 2)).bool(), photo[0].roll(shift, (1, 2)), photo[0] * (1 - mask[0]))
    whole = first_frame_condition(photo, mask, 20, layout)
    found = continued_condition(whole, list(range(7, 15)), later, layout)
    moved = torch.stack([mask[0].roll(shift, (1, 2)), mask[1]])
    torch.testing.assert_close(found, first_frame_condition(later, moved, 8, layout))


def test_a_blur_leaves_the_mask_where_it_was():
    photo = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(1, 1, 8, 8)
    mask[:, :, 2:5, 2:5] = 1
    assert torch.equal(followed_mask(mask, photo, photo * 0), mask)
