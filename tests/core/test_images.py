import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from followclick_core.images import BACKDROP, MAX_PIXELS, MAX_SIDE, load_image, load_mask, save_mask, to_rgb_uint8


def test_a_png_comes_back_as_it_was_written(tmp_path, photo):
    Image.fromarray(photo).save(tmp_path / "photo.png")
    assert np.array_equal(load_image(tmp_path / "photo.png"), photo)


def test_exif_orientation_is_applied(tmp_path, photo):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: viewers turn the picture by 90 degrees clockwise
    Image.fromarray(photo).save(tmp_path / "phone.png", exif=exif)
    assert np.array_equal(load_image(tmp_path / "phone.png"), np.rot90(photo, k=-1))


def test_transparent_pixels_show_white(tmp_path, photo):
    alpha = np.zeros(photo.shape[:2], dtype=np.uint8)
    alpha[:, 64:] = 255
    Image.fromarray(np.dstack([photo, alpha])).save(tmp_path / "cutout.png")
    image = load_image(tmp_path / "cutout.png")
    assert (image[:, :64] == BACKDROP).all()
    assert np.array_equal(image[:, 64:], photo[:, 64:])
    assert np.array_equal(image, to_rgb_uint8(np.dstack([photo, alpha])))


def test_a_palettes_transparent_colour_shows_white(tmp_path):
    picture = Image.new("P", (32, 32), 0)
    picture.putpalette([10, 20, 30, 200, 100, 50])
    picture.paste(1, (16, 0, 32, 32))
    picture.save(tmp_path / "palette.png", transparency=0)
    image = load_image(tmp_path / "palette.png")
    assert (image[:, :16] == BACKDROP).all() and (image[:, 16:] == [200, 100, 50]).all()


def test_grey_16_bit_and_8_bit_agree(tmp_path, photo):
    grey = photo[..., 0]
    Image.fromarray(grey).save(tmp_path / "8.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "16.png")
    assert np.array_equal(load_image(tmp_path / "8.png"), np.dstack([grey] * 3))
    assert np.array_equal(load_image(tmp_path / "16.png"), np.dstack([grey] * 3))


def test_16_bit_colour_keeps_its_upper_bits(tmp_path, photo):
    cv2 = pytest.importorskip("cv2")
    cv2.imwrite(str(tmp_path / "deep.png"), photo[..., ::-1].astype(np.uint16) * 257)
    assert np.array_equal(load_image(tmp_path / "deep.png"), photo)


def test_float_tiff_is_read_as_0_to_1(tmp_path, photo):
    Image.fromarray(photo[..., 0].astype(np.float32) / 255).save(tmp_path / "float.tiff")
    assert np.array_equal(load_image(tmp_path / "float.tiff")[..., 0], photo[..., 0])
    Image.fromarray(photo[..., 0].astype(np.float32)).save(tmp_path / "levels.tiff")
    with pytest.raises(ValueError, match="outside 0..1"):
        load_image(tmp_path / "levels.tiff")


def test_cmyk_is_read_as_colour(tmp_path):
    Image.new("CMYK", (32, 32), (0, 255, 255, 0)).save(tmp_path / "print.tiff")
    assert load_image(tmp_path / "print.tiff")[0, 0].tolist() == [255, 0, 0]


def test_an_embedded_profile_is_converted_and_a_broken_one_ignored(tmp_path, photo):
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(photo).save(tmp_path / "srgb.png", icc_profile=srgb)
    assert np.abs(load_image(tmp_path / "srgb.png").astype(int) - photo).max() <= 1
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    for profile in (lab, b"no profile at all"):
        Image.fromarray(photo).save(tmp_path / "odd.png", icc_profile=profile)
        assert np.array_equal(load_image(tmp_path / "odd.png"), photo)


def test_of_an_animation_the_first_frame_counts(tmp_path, photo):
    pictures = [Image.fromarray(photo), Image.fromarray(255 - photo)]
    pictures[0].save(tmp_path / "two.webp", save_all=True, append_images=pictures[1:], lossless=True)
    assert np.array_equal(load_image(tmp_path / "two.webp"), photo)


@pytest.mark.parametrize("size", [(1, 1), (15, 400), (400, 15)])
def test_a_tiny_picture_is_refused_with_its_size_and_the_limit(tmp_path, size):
    Image.new("RGB", size).save(tmp_path / "tiny.png")
    with pytest.raises(ValueError, match=rf"{size[0]}x{size[1]} pixels, too small.*at least 16"):
        load_image(tmp_path / "tiny.png")


@pytest.mark.parametrize("size", [(MAX_SIDE + 1, 16), (10_000, 10_000), (20_000, 20_000)])
def test_a_huge_picture_is_refused_before_it_is_decoded(tmp_path, size):
    # Only the header is real: decoding it would fail as damaged, so the message proves that nothing was decoded.
    Image.new("1", (16, 16)).save(tmp_path / "small.png")
    content = bytearray((tmp_path / "small.png").read_bytes())
    content[16:24] = size[0].to_bytes(4, "big") + size[1].to_bytes(4, "big")
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    (tmp_path / "huge.png").write_bytes(content)
    with pytest.raises(ValueError, match=rf"too large.*{MAX_PIXELS // 10**6} megapixels"):
        load_image(tmp_path / "huge.png")


def test_what_is_no_picture_is_said_so(tmp_path, photo):
    with pytest.raises(FileNotFoundError, match="There is no picture"):
        load_image(tmp_path / "missing.png")
    with pytest.raises(ValueError, match="is a folder"):
        load_image(tmp_path)
    (tmp_path / "notes.png").write_text("no picture")
    with pytest.raises(ValueError, match="not a picture"):
        load_image(tmp_path / "notes.png")
    Image.fromarray(photo).save(tmp_path / "whole.jpg")
    (tmp_path / "half.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:1500])
    with pytest.raises(ValueError, match="damaged or cut short"):
        load_image(tmp_path / "half.jpg")


def test_arrays_of_every_kind_become_the_same_picture(photo):
    assert np.array_equal(to_rgb_uint8(photo), photo)
    assert np.array_equal(to_rgb_uint8(photo / np.float32(255)), photo)
    assert np.array_equal(to_rgb_uint8(photo.astype(np.uint16) * 257), photo)
    grey = np.dstack([photo[..., 0]] * 3)
    assert np.array_equal(to_rgb_uint8(photo[..., 0]), grey)
    assert np.array_equal(to_rgb_uint8(photo[..., :1]), grey)
    assert set(np.unique(to_rgb_uint8(photo[..., 0] > 128))) == {0, 255}


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((32, 32, 5), np.uint8), "1 to 4 channels"),
        (np.zeros(32, np.uint8), "1 to 4 channels"),
        (np.zeros((32, 32, 3), np.int64), "not int64"),
        (np.full((32, 32, 3), np.nan), "not finite"),
        (np.full((32, 32, 3), 255.0), "values 0..1, not 255..255"),
        (np.zeros((1, 1, 3), np.uint8), "1x1 pixels, too small"),
    ],
)
def test_other_arrays_are_refused(array, message):
    with pytest.raises(ValueError, match=message):
        to_rgb_uint8(array)


def test_a_mask_comes_back_as_it_was_written(tmp_path):
    mask = np.zeros((40, 60), dtype=bool)
    mask[5:20, 30:50] = True
    save_mask(tmp_path / "mask.png", mask)
    assert np.array_equal(load_mask(tmp_path / "mask.png"), mask)
    assert [path.name for path in tmp_path.iterdir()] == ["mask.png"]


def test_a_soft_mask_keeps_its_edge(tmp_path):
    soft = np.linspace(0, 1, 64, dtype=np.float32)[None].repeat(32, axis=0)
    save_mask(tmp_path / "soft.png", soft)
    levels = np.asarray(Image.open(tmp_path / "soft.png"))
    assert np.abs(levels / 255 - soft).max() < 1 / 255
    assert np.array_equal(load_mask(tmp_path / "soft.png"), soft > 0.5)


def test_a_region_painted_on_an_empty_layer_is_a_mask(tmp_path):
    layer = np.zeros((32, 32, 4), dtype=np.uint8)
    layer[8:16, 8:16] = 255
    Image.fromarray(layer).save(tmp_path / "layer.png")
    assert load_mask(tmp_path / "layer.png").sum() == 64


def test_a_mask_is_not_written_with_loss_nor_where_there_is_no_folder(tmp_path):
    mask = np.ones((32, 32), dtype=bool)
    with pytest.raises(ValueError, match=r"end in \.png"):
        save_mask(tmp_path / "mask.jpg", mask)
    with pytest.raises(FileNotFoundError, match="no folder"):
        save_mask(tmp_path / "nowhere" / "mask.png", mask)
    (tmp_path / "taken.png").mkdir()
    with pytest.raises(ValueError, match="cannot be written"):
        save_mask(tmp_path / "taken.png", mask)
    assert not list(tmp_path.glob(".*"))
