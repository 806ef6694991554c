"""Picture files named from outside: only those of the host's folders, and decoded as Load Image does."""

import os
import warnings

import folder_paths
import numpy as np
import pytest
import torch
from PIL import Image

import nodes

SIZE = (70, 50)


@pytest.fixture
def find(pack):
    return pack.module("nodes.host_pictures").find_picture


def levels(*shape: int, top: int = 256) -> np.ndarray:
    """Smooth in most places, so that lossy formats have something to keep, with every level somewhere."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, top, (5, 7, *shape[2:]))
    return coarse.repeat(10, axis=0).repeat(10, axis=1).astype(np.uint16 if top > 256 else np.uint8)


def colours() -> Image.Image:
    return Image.fromarray(levels(50, 70, 3))


def with_alpha() -> Image.Image:
    return Image.fromarray(levels(50, 70, 4))


def upside_down(picture: Image.Image, path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    picture.save(path, exif=exif, quality=90)


def of_two_frames(path) -> None:
    frames = [colours(), colours().transpose(Image.Transpose.FLIP_LEFT_RIGHT)]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=100)


def of_two_frames_with_alpha(path) -> None:
    frames = [with_alpha(), with_alpha().transpose(Image.Transpose.FLIP_LEFT_RIGHT)]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=100, lossless=True)


def palette_with_hole(path) -> None:
    picture = colours().quantize(16)
    picture.save(path, transparency=3)


def truncated(path) -> None:
    colours().resize((700, 500)).save(path, quality=95)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


WRITERS = {
    "colours.png": lambda path: colours().save(path),
    "photo.jpg": lambda path: colours().save(path, quality=80),
    "turned.jpg": lambda path: upside_down(colours(), path),
    "alpha.png": lambda path: with_alpha().save(path),
    "alpha.webp": lambda path: with_alpha().save(path, lossless=True),
    "grey.png": lambda path: Image.fromarray(levels(50, 70)).save(path),
    "grey_alpha.png": lambda path: Image.fromarray(levels(50, 70, 2), "LA").save(path),
    "deep.png": lambda path: Image.fromarray(levels(50, 70, top=65536)).save(path),
    "deep.tiff": lambda path: Image.fromarray(levels(50, 70, top=65536).astype(np.int32)).save(path),
    "one_bit.png": lambda path: colours().convert("1").save(path),
    "palette.png": palette_with_hole,
    "palette.gif": lambda path: colours().quantize(16).save(path),
    "print.jpg": lambda path: colours().convert("CMYK").save(path),
    "two.gif": of_two_frames,
    "two.webp": of_two_frames,
    "two_alpha.webp": of_two_frames_with_alpha,
    "plain.bmp": lambda path: colours().save(path),
    "cut.jpg": truncated,
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", WRITERS)
def test_a_picture_and_its_mask_are_those_of_load_image(pack, folders, find, name):
    WRITERS[name](folders / "input" / name)
    image, mask = nodes.LoadImage().load_image(name)
    pictures, host = pack.module("nodes.host_pictures"), pack.module("nodes.host")
    file = find(name, "", "input")
    np.testing.assert_array_equal(pictures.picture_pixels(file), host.image_to_array(image))
    drawn, expected = pictures.drawn_pixels(file), host.drawn_mask_of(mask)
    assert (drawn is None) == (expected is None)
    if drawn is not None:
        np.testing.assert_array_equal(drawn, expected)


def test_the_pictures_of_that_test_are_what_their_names_say(folders):
    """Else it would compare less than it seems to."""
    opened = {}
    for name, write in WRITERS.items():
        write(folders / "input" / name)
        with Image.open(folders / "input" / name) as picture:
            opened[name] = (picture.mode, getattr(picture, "n_frames", 1), picture.size)
    assert opened["deep.png"][0] == "I;16" and opened["deep.tiff"][0] == "I"
    assert opened["palette.png"][0] == "P" and opened["grey_alpha.png"][0] == "LA" and opened["print.jpg"][0] == "CMYK"
    assert opened["two.gif"][1] == opened["two.webp"][1] == 2
    assert opened["two_alpha.webp"][:2] == ("RGBA", 2)
    masks = nodes.LoadImage().load_image("two_alpha.webp")[1]
    assert len(masks) == 2 and not torch.equal(*masks)
    assert opened["turned.jpg"][2] == SIZE
    assert nodes.LoadImage().load_image("turned.jpg")[0].shape[1:3] == SIZE


def test_pictures_are_found_in_all_folders_and_below(folders, find):
    (folders / "output" / "a" / "b").mkdir(parents=True)
    for folder, subfolder in (("input", ""), ("output", "a/b"), ("temp", ".")):
        path = folders / folder / subfolder / "photo.png"
        colours().save(path)
        assert find("photo.png", subfolder, folder).path == path.resolve()


def test_a_folder_that_is_itself_a_link_is_the_hosts_folder(folders, find, monkeypatch):
    colours().save(folders / "input" / "photo.png")
    (folders / "elsewhere").symlink_to(folders / "input")
    monkeypatch.setattr(folder_paths, "input_directory", str(folders / "elsewhere"))
    assert find("photo.png", "", "input").path == (folders / "input" / "photo.png").resolve()


@pytest.mark.parametrize(
    ("filename", "subfolder"),
    [
        ("../secret.png", ""),
        ("secret.png", ".."),
        ("secret.png", "a/../.."),
        ("secret.png", "../input-beside"),
        ("..", ""),
        ("a/secret.png", ""),
        ("..\\secret.png", ""),
        ("link.png", ""),
        ("secret.png", "linked"),
        ("absent.png", "linked"),
    ],
)
def test_names_that_lead_out_are_refused_whatever_is_there(pack, folders, find, filename, subfolder):
    (folders / "input-beside").mkdir()
    (folders / "input" / "a").mkdir()
    for place in (folders, folders / "input-beside", folders / "input" / "a"):
        colours().save(place / "secret.png")
    (folders / "input" / "link.png").symlink_to(folders / "secret.png")
    (folders / "input" / "linked").symlink_to(folders)
    with pytest.raises(pack.module("nodes.host_pictures").ForbiddenError):
        find(filename, subfolder, "input")


def test_absolute_names_are_refused(pack, folders, find):
    colours().save(folders / "secret.png")
    colours().save(folders / "input" / "photo.png")
    forbidden = pack.module("nodes.host_pictures").ForbiddenError
    for filename, subfolder in (
        (str(folders / "secret.png"), ""),
        ("secret.png", str(folders)),
        ("photo.png", str(folders / "input")),
    ):
        with pytest.raises(forbidden):
            find(filename, subfolder, "input")


@pytest.mark.parametrize("name", ["", "zero\0.png", "half\ud800.png"])
def test_what_is_no_name_is_refused(find, folders, name):
    with pytest.raises(ValueError, match="empty or no name"):
        find(name, "", "input")
    with pytest.raises(ValueError):
        find("photo.png", name + "\0", "input")


@pytest.mark.parametrize("folder_type", ["", "models", "Input", "../input", "user"])
def test_only_three_folders_hold_pictures(find, folders, folder_type):
    with pytest.raises(ValueError, match="input, output, temp"):
        find("photo.png", "", folder_type)


def test_only_regular_files_are_opened(find, folders):
    (folders / "input" / "folder.png").mkdir()
    os.mkfifo(folders / "input" / "pipe.png")
    (folders / "input" / "circle.png").symlink_to(folders / "input" / "circle.png")
    for name in ("folder.png", "pipe.png", "circle.png", "absent.png", ".", "x" * 300):
        with pytest.raises(FileNotFoundError, match="no picture"):
            find(name, "", "input")


def bomb(width: int, height: int) -> bytes:
    """A PNG that says it is that large; it has hardly any data."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(20_000, 10_000), (16_385, 100), (9_000, 9_000), (60_000, 60_000)])
def test_huge_pictures_are_refused_by_their_header(pack, folders, find, size, monkeypatch):
    (folders / "input" / "huge.png").write_bytes(bomb(*size))
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("decoded"))
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda *_: pytest.fail("decoded"))
    with pytest.raises(ValueError, match="too large"):
        pack.module("nodes.host_pictures").picture_pixels(find("huge.png", "", "input"))


@pytest.mark.parametrize("action", ["error", "default"])
def test_the_filters_of_warnings_are_left_alone(pack, folders, find, monkeypatch, action):
    """They are the whole process's, and the host's worker runs in another thread."""
    (folders / "input" / "huge.png").write_bytes(bomb(10_000, 9_000))  # Pillow warns of it
    monkeypatch.setattr(warnings, "catch_warnings", lambda *_: pytest.fail("filtered"))
    warnings.simplefilter(action)  # until the end of the test: pytest restores them
    with pytest.raises(ValueError, match="too large"):
        pack.module("nodes.host_pictures").picture_pixels(find("huge.png", "", "input"))


@pytest.mark.parametrize("content", [b"", b"no picture", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\n"])
def test_what_is_no_picture_is_refused(pack, folders, find, content):
    (folders / "input" / "some.png").write_bytes(content)
    with pytest.raises(ValueError, match=r"some.png is damaged, or no picture"):
        pack.module("nodes.host_pictures").picture_pixels(find("some.png", "", "input"))


@pytest.mark.filterwarnings("ignore")
def test_damage_of_every_kind_is_said_in_a_sentence(pack, folders, find):
    """Bytes changed at random all over a file: Pillow's decoders raise whatever they like."""
    rng = np.random.default_rng(0)
    read = pack.module("nodes.host_pictures").picture_pixels
    refused = 0
    for name in ("colours.png", "photo.jpg", "two.gif", "deep.tiff", "alpha.webp"):
        path = folders / "input" / name
        WRITERS[name](path)
        whole = np.frombuffer(path.read_bytes(), np.uint8)
        for _ in range(40):
            damaged = whole.copy()
            damaged[rng.integers(0, min(len(whole), 300), 6)] = rng.integers(0, 256, 6)
            path.write_bytes(damaged.tobytes())
            try:
                read(find(name, "", "input"))
            except ValueError as error:
                refused += 1
                assert str(error).startswith(name) and "\n" not in str(error)
    assert refused > 50


def test_the_frame_that_a_node_received_is_kept_to_the_pixel(pack, folders, find, picture):
    host = pack.module("nodes.host")
    array = host.image_to_array(picture)
    (named,) = host.temporary_frame(array)["followclick_frame"]
    assert named["type"] == "temp" and os.listdir(folders / "temp") == [named["filename"]]
    file = find(named["filename"], named["subfolder"], named["type"])
    np.testing.assert_array_equal(pack.module("nodes.host_pictures").picture_pixels(file), array)
    before = file.path.stat().st_mtime_ns
    assert host.temporary_frame(array)["followclick_frame"] == [named]
    assert file.path.stat().st_mtime_ns == before
    assert host.temporary_frame(255 - array)["followclick_frame"] != [named]


def test_a_drawn_mask_is_what_is_at_least_half_opaque(pack):
    read = pack.module("nodes.host").drawn_mask_of
    assert read(None) is None and read(torch.zeros(1, 64, 64)) is None and read(torch.full((1, 4, 4), 0.49)) is None
    two = torch.zeros(2, 3, 4)
    two[0, 0, 0], two[1, 2, 3], two[0, 1, 1] = 1.0, 0.5, 0.4
    assert np.argwhere(read(two)).tolist() == [[0, 0]] and np.argwhere(read(two[1:])).tolist() == [[2, 3]]
    assert read(two[:0]) is None
    assert read(torch.ones(5, 7)).shape == (5, 7)
