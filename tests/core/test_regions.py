"""Which region's prediction counts where."""

import torch

from followclick_core.regions import region_shares


def two_squares() -> torch.Tensor:
    masks = torch.zeros(2, 64, 96)
    masks[0, 20:40, 10:30] = 1
    masks[1, 20:40, 66:86] = 1
    return masks


def test_shares_sum_to_one_everywhere():
    torch.testing.assert_close(region_shares(two_squares()).sum(dim=0), torch.ones(64, 96))


def test_each_region_owns_itself_and_what_lies_nearer_to_it():
    shares = region_shares(two_squares())
    assert shares[0, 20:40, 10:30].min() > 0.999
    assert shares[0, :, :40].min() > 0.98 and shares[0, :, 56:].max() < 0.02
    torch.testing.assert_close(shares[0], shares[1].flip(-1), atol=1e-4, rtol=0)


def test_regions_that_overlap_share_the_overlap():
    masks = two_squares()
    masks[1, 20:40, 10:30] = 1
    torch.testing.assert_close(region_shares(masks)[:, 30, 20], torch.tensor([0.5, 0.5]))


def test_a_faint_mask_counts_where_it_is_strongest():
    masks = two_squares()
    masks[0] *= 0.3
    torch.testing.assert_close(region_shares(masks), region_shares(two_squares()))
