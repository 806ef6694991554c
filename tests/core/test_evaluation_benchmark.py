"""A benchmark of one's own photos, and the clicks on the real photos of the art pack."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from followclick_core.__main__ import main
from followclick_core.animator import Animator
from followclick_core.data.art import ArtPack, PhotoInfo
from followclick_core.evaluation.benchmark import evaluate_benchmark, read_entries
from followclick_core.evaluation.features import MobileNetFeatures
from followclick_core.evaluation.perceptual import Extractors
from followclick_core.evaluation.photo_clicks import click_photos, outline_mask, outlined_photos
from followclick_core.evaluation.takes import read_scenes


@pytest.fixture(scope="module")
def animator(untrained_weights):
    return Animator.load(untrained_weights, "cpu")


@pytest.fixture
def benchmark(photo, tmp_path):
    """A folder with one photo, its mask, and an entry of each form."""
    folder = tmp_path / "benchmark"
    folder.mkdir()
    mask = np.zeros(photo.shape[:2], np.uint8)
    mask[20:70, 30:90] = 255
    Image.fromarray(photo).save(folder / "photo.png")
    Image.fromarray(mask).save(folder / "mask.png")
    entry = {"image": "photo.png", "prompt": "run"}
    entries = [
        {**entry, "mask": "mask.png"},
        {**entry, "clicks": [[60, 45, 1], [2, 2, 0]], "prompt": "please behave", "magnitude": 3},
        {**entry, "clicks": [[60, 45, 1]], "mask": "mask.png"},
    ]
    (folder / "benchmark.json").write_text(json.dumps({"clips": entries}))
    return folder


def test_entries_by_mask_and_by_click_are_judged(animator, benchmark, tmp_path):
    from torchvision.models import mobilenet_v2

    mobilenet = MobileNetFeatures(mobilenet_v2(width_mult=0.1))
    evaluation = evaluate_benchmark(
        animator, benchmark, num_frames=3, steps=1, out_dir=tmp_path / "out", extractors=Extractors(mobilenet=mobilenet)
    )
    by_mask, by_click, by_both = evaluation.scenes
    assert (by_mask.click_iou, by_click.click_iou) == (None, None)  # a mask is not held against itself
    assert by_both.click_iou is not None
    assert (by_mask.verb, by_click.verb) == ("run", "")
    assert (by_mask.magnitude_asked, by_click.magnitude_asked) == (6, 3)
    names = [figure.name for figure in evaluation.figures]
    assert "verb recognised, of 1 verbs asked" in names
    assert "MobileNetV2 cosine of the frames to the photo" in names
    assert not any("Fréchet" in name for name in names)  # there are no true clips
    assert (tmp_path / "out/report.md").read_text().startswith("3 scenes (")
    scene = next(read_scenes(tmp_path / "out"))
    assert scene.image.shape[:2] == scene.takes[0].frames.shape[1:3]
    assert scene.image.shape[1] > scene.image.shape[0]  # the photo's aspect
    assert 0.2 < scene.mask.mean() < 0.27  # 50 x 60 of 96 x 128


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": None}, "Clip 1 .* names no image"),
        ({"prompt": " "}, "has no prompt"),
        ({"mask": None}, "neither clicks nor a mask"),
        ({"clicks": [[1, 2]]}, r"give a list of \[x, y, label\]"),
        ({"magnitude": "fast"}, "the magnitude 'fast'"),
    ],
)
def test_what_an_entry_lacks_is_named(benchmark, change, message):
    entry = {"image": "photo.png", "prompt": "run", "mask": "mask.png"} | change
    (benchmark / "benchmark.json").write_text(json.dumps({"clips": [entry]}))
    with pytest.raises(ValueError, match=message):
        read_entries(benchmark)


@pytest.mark.parametrize("content", ["no JSON", "[]", '{"clips": []}'])
def test_a_file_that_is_no_benchmark_is_said_to_be_none(tmp_path, content):
    (tmp_path / "benchmark.json").write_text(content)
    with pytest.raises(ValueError, match="shows its form"):
        read_entries(tmp_path)


def test_a_mask_of_another_size_and_a_missing_file_are_named(animator, benchmark, tmp_path, photo):
    Image.fromarray(np.zeros((40, 40), np.uint8)).save(benchmark / "mask.png")
    with pytest.raises(ValueError, match=r"mask\.png has 40x40 pixels, photo\.png 128x96"):
        evaluate_benchmark(animator, benchmark, out_dir=tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no benchmark\.json"):
        read_entries(tmp_path)


def test_the_command_takes_either_scenes_or_a_benchmark(capsys, tmp_path):
    for options in ([], ["--art=a.zip", "--benchmark=b"]):
        assert main(["evaluate", f"--output={tmp_path}", *options]) == 2
        assert "either --art" in capsys.readouterr().err


def pack_of(names, split="test"):
    photos = [np.full((60, 80, 3), 10 * index, np.uint8) for index in range(len(names))]
    infos = [PhotoInfo(name, "a photo", "nobody", "CC0", split) for name in names]
    empty = np.zeros((0, 16, 64, 64, 4), np.uint8)
    return ArtPack(np.zeros((0, 8, 8, 4), np.uint8), [], empty, [], photos, infos)


def test_clicks_on_real_photos_fall_into_the_outlined_objects():
    pack = pack_of(["flower", "wall", "rocket"])
    masks = {name: mask for name, _, mask in outlined_photos(pack)}
    assert sorted(masks) == ["flower", "rocket"]
    clicked = []

    def segment(image, clicks):
        clicked.append(clicks[0])
        return SimpleNamespace(best=masks["flower"])

    scores = click_photos(SimpleNamespace(segment=segment), pack)
    assert scores["flower"] == 1
    assert scores["rocket"] < 0.2
    for (x, y, label), name in zip(clicked, ("flower", "rocket"), strict=True):
        assert masks[name][y, x]
        assert label == 1


def test_photos_that_training_saw_are_not_clicked():
    assert click_photos(SimpleNamespace(), pack_of(["flower"], split="train")) == {}


def test_an_outline_covers_what_it_encloses():
    square = [[0.25, 0.25], [0.75, 0.25], [0.75, 0.75], [0.25, 0.75]]
    assert outline_mask([square], 80, 40).mean() == pytest.approx(0.25, abs=0.03)
    assert outline_mask([square, [[0, 0], [0.1, 0], [0, 0.1]]], 80, 40)[0, 0]
