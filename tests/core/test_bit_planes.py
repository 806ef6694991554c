"""Several masks in one picture: they come out of the PNG as they went in."""

import io

import numpy as np
import pytest
from PIL import Image

from followclick_core.segment.bit_planes import nearest, pack_masks, packed_png


def random_masks(number: int, height: int = 13, width: int = 21) -> list[np.ndarray]:
    return list(np.random.default_rng(0).random((number, height, width)) < 0.5)


@pytest.mark.parametrize("number", [1, 3, 8])
def test_each_mask_is_a_bit_of_the_png(number):
    masks = random_masks(number)
    with Image.open(io.BytesIO(packed_png(pack_masks(masks)))) as picture:
        assert picture.format == "PNG" and picture.mode == "L"
        packed = np.asarray(picture)
    for plane, mask in enumerate(masks):
        np.testing.assert_array_equal(packed >> plane & 1, mask)
    assert (packed >> number == 0).all()


@pytest.mark.parametrize("number", [0, 9])
def test_a_byte_has_room_for_one_to_eight_masks(number):
    with pytest.raises(ValueError, match=f"1 to 8 masks.*not {number}"):
        pack_masks(random_masks(number))


@pytest.mark.parametrize("size", [(21, 13), (10, 6), (42, 26), (5, 40), (1, 1)])
def test_another_size_takes_the_pixel_in_which_each_centre_lies(size):
    packed = pack_masks(random_masks(4))
    found = nearest(packed, size)
    assert found.shape == size[::-1]
    for y in range(size[1]):
        for x in range(size[0]):
            assert found[y, x] == packed[(2 * y + 1) * 13 // (2 * size[1]), (2 * x + 1) * 21 // (2 * size[0])]
