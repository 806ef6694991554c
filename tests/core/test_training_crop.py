"""Training on the part around the object: what is cut, and that everything is cut alike."""

import pytest
import torch

from followclick_core.training.correspondence import draw_places
from followclick_core.training.stages import crop_around_object

HEIGHT, WIDTH, SIDE = 20, 24, 8


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def clips(mask):
    """Clips whose every number says where it is from: 1000 times its clip, then row and column."""
    count = len(mask)
    cells = torch.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) + 1000 * torch.arange(count)[:, None, None]
    numbers = cells[:, None].float()
    pixels = 8 * torch.stack(torch.meshgrid(torch.arange(WIDTH), torch.arange(HEIGHT), indexing="xy")) + 4
    return {
        "latents": numbers[:, :, None].expand(-1, 4, 3, -1, -1),
        "mask": mask,
        "swept": numbers,
        "origins": pixels[None, :, None].expand(count, -1, 3, -1, -1).half(),
        "tokens": torch.zeros(count, 77),
    }


def one_cell(*places):
    mask = torch.zeros(len(places), 1, HEIGHT, WIDTH)
    for index, (row, column) in enumerate(places):
        mask[index, 0, row, column] = 1
    return mask


def corners(cropped):
    cell = cropped["swept"][:, 0, 0, 0].long() % 1000
    return cell // WIDTH, cell % WIDTH


@pytest.mark.parametrize("place", [(10, 12), (0, 0), (19, 23), (0, 23)])
def test_the_object_is_in_the_part_and_away_from_its_edge_where_the_picture_allows(place):
    whole = clips(one_cell(*[place] * 100))
    cropped = crop_around_object(whole, SIDE, generator())
    assert cropped["mask"].flatten(1).sum(1).tolist() == [1] * 100
    if place == (10, 12):
        rows, columns = cropped["mask"].nonzero()[:, 2:].unbind(1)
        assert rows.min() == columns.min() == SIDE // 4 and rows.max() == columns.max() == SIDE // 4 + SIDE // 2 - 1


def test_everything_on_the_grid_is_cut_alike_and_the_rest_is_not_touched():
    whole = clips(one_cell((3, 20), (10, 12), (15, 2)))
    cropped = crop_around_object(whole, SIDE, generator())
    assert set(cropped) == {"latents", "mask", "swept", "origins"}
    for index, (top, left) in enumerate(zip(*corners(cropped), strict=True)):
        rows, columns = slice(top, top + SIDE), slice(left, left + SIDE)
        for name in ("latents", "mask", "swept"):
            assert torch.equal(cropped[name][index], whole[name][index, ..., rows, columns]), name


def test_origins_count_from_the_part_s_corner_and_those_outside_it_are_nowhere():
    whole = clips(one_cell((10, 12)))
    whole["origins"] = whole["origins"].clone()
    whole["origins"][:, 0, 1] += 5 * 8  # in frame 1 everything has come from five cells to the right
    cropped = crop_around_object(whole, SIDE, generator())
    place, origin = draw_places(cropped["origins"].float(), 8, SIDE * SIDE, generator())
    assert torch.equal(origin[0, 0], place[0, 0])
    came = place[0, 1] % SIDE + 5
    assert torch.equal(origin[0, 1], torch.where(came < SIDE, place[0, 1] + 5, -1))


def test_parts_differ_and_follow_from_the_generator_alone():
    whole = clips(one_cell(*[(10, 12)] * 50))
    first, again, other = (crop_around_object(whole, SIDE, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first["latents"], again["latents"]) and not torch.equal(first["latents"], other["latents"])
    assert len(set(zip(*(c.tolist() for c in corners(first)), strict=True))) > 10


def test_a_mask_that_is_empty_is_cut_somewhere_and_every_cell_of_a_mask_has_its_turn():
    assert crop_around_object(clips(torch.zeros(2, 1, HEIGHT, WIDTH)), SIDE, generator())["mask"].shape[-1] == SIDE
    mask = one_cell((10, 0)) + one_cell((10, 23))
    left = corners(crop_around_object(clips(mask.expand(200, -1, -1, -1)), SIDE, generator()))[1]
    assert 60 < (left < 8).sum() < 140
