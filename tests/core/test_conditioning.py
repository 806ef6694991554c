"""The five extra channels, in each layout, and first-frame masking."""

import pytest
import torch

from followclick_core.conditioning import first_frame_condition, mask_first_frame, resize_mask

FRAMES = 5


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def latents():
    return noise(2, 4, 4, 6)


@pytest.fixture
def mask():
    """Two masks in pixels; the first covers the left half of the latents' columns 1 and 4 exactly."""
    mask = torch.zeros(2, 1, 32, 48)
    mask[0, :, 8:24, 8:32] = 1
    mask[1, :, 0:4, :] = 1
    return mask


@pytest.mark.parametrize(
    ("layout", "mask_frames", "latent_frames"),
    [("paper", [0], range(FRAMES)), ("release", range(FRAMES), [0]), ("repeat", range(FRAMES), range(FRAMES))],
)
def test_mask_and_latents_are_on_the_frames_that_the_layout_says(latents, mask, layout, mask_frames, latent_frames):
    condition = first_frame_condition(latents, mask, FRAMES, layout)
    small = resize_mask(mask, (4, 6))
    assert condition.shape == (2, 5, FRAMES, 4, 6)
    for frame in range(FRAMES):
        expected_mask = small if frame in mask_frames else torch.zeros_like(small)
        expected_latents = latents if frame in latent_frames else torch.zeros_like(latents)
        assert torch.equal(condition[:, :1, frame], expected_mask), frame
        assert torch.equal(condition[:, 1:, frame], expected_latents), frame


def test_an_unknown_layout_is_refused(latents, mask):
    with pytest.raises(ValueError, match="no first-frame layout 'all'; choose paper, release or repeat"):
        first_frame_condition(latents, mask, FRAMES, "all")


def test_a_small_mask_is_the_mean_of_the_pixels_that_a_cell_covers(mask):
    small = resize_mask(mask, (4, 6))
    assert torch.equal(small, mask.reshape(2, 1, 4, 8, 6, 8).mean((3, 5)))
    assert small[1, 0, 0].tolist() == [0.5] * 6 and not small[1, 0, 1:].any()
    assert small.mean() == mask.mean()


def test_a_mask_of_one_pixel_does_not_vanish():
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., 37, 11] = 1
    small = resize_mask(mask, (8, 8))
    assert small[0, 0, 4, 1] == 1 / 64 and small.count_nonzero() == 1


def test_a_mask_larger_or_smaller_than_the_latents_by_no_whole_factor_keeps_its_place():
    mask = torch.zeros(1, 1, 45, 70)
    mask[..., 35:] = 1
    small = resize_mask(mask, (6, 10))
    assert (small[..., :5] == 0).all() and (small[..., 5:] == 1).all()


@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.7, 1.0])
def test_first_frame_masking_zeroes_the_asked_share_of_positions(ratio):
    latents = noise(2, 4, 60, 60) + 10
    masked = mask_first_frame(latents, torch.full((2,), ratio), torch.Generator().manual_seed(0))
    kept = masked != 0
    assert (kept == kept[:, :1]).all()  # all channels of a position together
    assert torch.equal(masked[kept], latents[kept])
    share = 1 - kept[:, 0].float().mean((1, 2))
    deviation = (ratio * (1 - ratio) / 3600) ** 0.5
    assert ((share - ratio).abs() <= 4 * deviation).all()


def test_each_sample_is_masked_by_its_own_ratio_and_places():
    latents = torch.ones(3, 4, 40, 40)
    masked = mask_first_frame(latents, torch.tensor([0.0, 0.5, 0.5]), torch.Generator().manual_seed(0))
    assert torch.equal(masked[0], latents[0])
    assert 0.3 < (masked[1] != masked[2]).float().mean() < 0.7
    again = mask_first_frame(latents, torch.tensor([0.0, 0.5, 0.5]), torch.Generator().manual_seed(0))
    assert torch.equal(masked, again)
