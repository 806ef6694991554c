"""data/art.py, art_build.py and sprite_names.py: the pack survives its file, and the split cannot leak."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from followclick_core.data import sprite_names
from followclick_core.data.art import SPRITE_SIZE, AnimationInfo, ArtPack, PhotoInfo, SpriteInfo
from followclick_core.data.art_build import build_art_pack


def disc(size, width, colour):
    y, x = (np.mgrid[:size, :size] + 0.5) / size * 2 - 1
    inside = (x / width) ** 2 + y**2 < 0.8
    return np.concatenate([np.broadcast_to(colour, (size, size, 3)), inside[..., None] * 255], -1).astype(np.uint8)


def small_pack():
    rows = np.linspace(0, 255, 40).astype(np.uint8)
    photo = np.broadcast_to(rows[:, None, None], (40, 60, 3)).copy()
    frames = np.stack([disc(64, 0.3 + 0.03 * i, (200, 40, 40)) for i in range(16)])
    return ArtPack(
        sprites=np.stack([disc(SPRITE_SIZE, 0.5, (250, 200, 20)), disc(SPRITE_SIZE, 1.0, (20, 90, 200))]),
        sprite_infos=[
            SpriteInfo("1f600", "face", "train", ("eyes", "face"), {"eye_x": 0.3}),
            SpriteInfo("1f415", "dog", "test", ("runner",)),
        ],
        animations=frames[None],
        animation_infos=[AnimationInfo("1f985", "eagle", "flap", 0.03)],
        photos=[photo],
        photo_infos=[PhotoInfo("ramp", "a grey wall", "this test", "CC0")],
        credits=["drawn by a test"],
    )


def test_a_pack_comes_back_from_its_file(tmp_path):
    pack = small_pack()
    pack.save(tmp_path / "art.zip")
    again = ArtPack.load(tmp_path / "art.zip")
    for name in ("sprite_infos", "animation_infos", "photo_infos", "credits"):
        assert list(getattr(again, name)) == list(getattr(pack, name))
    assert again.sprites.shape == pack.sprites.shape and again.animations.shape == pack.animations.shape
    assert np.abs(again.sprites[..., 3].astype(int) - pack.sprites[..., 3]).mean() < 2
    assert np.abs(again.photos[0].astype(int) - pack.photos[0]).mean() < 4
    assert [path.name for path in tmp_path.iterdir()] == ["art.zip"]


def test_a_missing_pack_and_a_file_that_is_none_are_told_apart(tmp_path):
    with pytest.raises(FileNotFoundError, match="build-art"):
        ArtPack.load(tmp_path / "art.zip")
    (tmp_path / "art.zip").write_bytes(b"not a zip")
    with pytest.raises(ValueError, match="is no art pack"):
        ArtPack.load(tmp_path / "art.zip")


def test_a_truncated_pack_is_no_art_pack(tmp_path):
    small_pack().save(tmp_path / "art.zip")
    whole = (tmp_path / "art.zip").read_bytes()
    (tmp_path / "art.zip").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="is no art pack"):
        ArtPack.load(tmp_path / "art.zip")


def test_the_split_holds_out_a_part_of_every_group_and_does_not_depend_on_order():
    codes = [f"{point:x}" for point in range(0x1F400, 0x1F64F) if sprite_names.is_object(f"{point:x}")]
    split = sprite_names.split_codes(codes)
    assert split == sprite_names.split_codes(codes[::-1])
    held_out = [code for code in codes if split[code] == "test"]
    assert 0.06 < len(held_out) / len(codes) < 0.2
    assert any("wing" in sprite_names.tags(code) for code in held_out)
    assert any("face" in sprite_names.tags(code) for code in held_out)


def test_variants_of_one_emoji_share_their_base():
    assert sprite_names.base_code("1f3c3-1f3fb-200d-2640-fe0f") == sprite_names.base_code("1f3c3") == "1f3c3"


def test_nouns_are_short_plain_words_and_signs_are_no_objects():
    assert sprite_names.noun("1f985") == "eagle"
    assert sprite_names.noun("1f35e") == "bread"
    assert sprite_names.noun("1f600") == "face"
    assert not sprite_names.is_object("1f192") and not sprite_names.is_object("264b")
    assert sprite_names.is_object("1f680")


def test_a_pack_is_built_from_installed_packages(tmp_path):
    assets = tmp_path / "node_modules" / "fluent-emoji-3d" / "assets"
    assets.mkdir(parents=True)
    for name in ("1f415", "1f985", "2601-fe0f", "1f192"):
        Image.fromarray(disc(256, 0.6, (90, 120, 200))).save(assets / f"{name}.webp")
    photos = tmp_path / "photos"
    photos.mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (300, 1500, 3), np.uint8)).save(
        photos / "GreenMeadow.jpg"
    )

    pack = build_art_pack([tmp_path / "node_modules"], tmp_path / "art.zip", [photos], noto_font=None)

    assert sorted(info.noun for info in pack.sprite_infos) == ["cloud", "dog", "eagle"]
    meadow = [info.name for info in pack.photo_infos].index("GreenMeadow")
    assert max(pack.photos[meadow].shape) == 1024
    drawn = pack.sprites[0, ..., 3] > 127
    assert drawn.any(1).sum() == SPRITE_SIZE - 4  # the longer side fills the square up to the border
    assert dataclasses.asdict(ArtPack.load(tmp_path / "art.zip").sprite_infos[0]) == dataclasses.asdict(
        pack.sprite_infos[0]
    )


def test_without_sprites_there_is_no_pack(tmp_path):
    with pytest.raises(FileNotFoundError, match="Found 0 sprites"):
        build_art_pack([tmp_path], tmp_path / "art.zip", [tmp_path], noto_font=None)
    assert not (tmp_path / "art.zip").exists()
