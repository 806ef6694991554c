"""The paper's measures: their formulas on known values, and their loaders on tiny models of random weights."""

import json
import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from followclick_core.checkpoint import CheckpointError
from followclick_core.evaluation.features import (
    DREAMSIM_FILES,
    DreamSimDistance,
    I3dLogits,
    load_clip,
    load_dreamsim,
    load_i3d,
    load_mobilenet,
)
from followclick_core.evaluation.perceptual import (
    Extractors,
    JudgedClip,
    consistency,
    frechet_distance,
    perceptual_figures,
)

TINY_CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "patch_size": 16, "head_width": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


def clip_of(seed, frames=3, prompt="run", truth=True):
    pixels = np.random.default_rng(seed).integers(0, 255, (2, frames, 40, 48, 3), dtype=np.uint8)
    return JudgedClip(pixels[0], pixels[0, 0], prompt, pixels[1] if truth else None)


@pytest.fixture(scope="module")
def tiny_clip(tmp_path_factory):
    open_clip = pytest.importorskip("open_clip")
    folder = tmp_path_factory.mktemp("clip")
    (folder / "tiny.json").write_text(json.dumps(TINY_CLIP))
    open_clip.add_model_config(folder / "tiny.json")
    torch.manual_seed(0)
    torch.save(open_clip.create_model("tiny").state_dict(), folder / "tiny.pt")
    return load_clip(folder / "tiny.pt", "tiny")


def test_the_frechet_distance_is_that_of_two_normal_distributions():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(4000, 3))
    assert frechet_distance(rows, rows) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(rows, rows + np.array([3, 0, 4])) == pytest.approx(25)
    assert frechet_distance(rows, 2 * rows) == pytest.approx(3, rel=0.1)  # (2 - 1)² in each of three directions


def test_consistency_is_one_where_nothing_changes_and_less_elsewhere():
    features = np.array([[1.0, 0], [2.0, 0], [0, 1.0]])
    assert consistency(features[:2]) == 1
    assert consistency(features) == pytest.approx(0.5)


def test_clip_measures_pictures_and_words(tiny_clip):
    clip = clip_of(0)
    features = tiny_clip.images(clip.frames)
    assert features.shape == (3, 16)
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, rtol=1e-5)
    assert np.abs(tiny_clip.text("run") - tiny_clip.text("sit down")).max() > 1e-3
    found = {figure.name: figure.value for figure in perceptual_figures(Extractors(clip=tiny_clip), [clip])}
    assert found["Tem-Consis (CLIP)"] == pytest.approx(consistency(features))
    alignment = float((features @ tiny_clip.text("run")).mean())
    assert found["Text-Align (CLIP)"] == pytest.approx(alignment)
    assert found["Text-Align (CLIP), × 2.5"] == pytest.approx(2.5 * max(alignment, 0))


def test_a_still_clip_is_perfectly_consistent(tiny_clip):
    image = clip_of(1).image
    still = JudgedClip(np.repeat(image[None], 3, axis=0), image, "run")
    found = {figure.name: figure.value for figure in perceptual_figures(Extractors(clip=tiny_clip), [still])}
    assert found["Tem-Consis (CLIP)"] == pytest.approx(1)


def test_stand_ins_have_names_of_their_own(tmp_path):
    from torchvision.models import mobilenet_v2

    torch.manual_seed(0)
    torch.save(mobilenet_v2(width_mult=0.1).state_dict(), tmp_path / "mobilenet.pth")
    extractors = Extractors(mobilenet=load_mobilenet(tmp_path / "mobilenet.pth", width=0.1))
    figures = perceptual_figures(extractors, [clip_of(0), clip_of(1)])
    assert [figure.name for figure in figures] == [
        "MobileNetV2 cosine of consecutive frames",
        "MobileNetV2 cosine of the frames to the photo",
        "MobileNetV2 Fréchet distance of frames (2 clips)",
    ]
    assert 0 < figures[0].value < 1
    assert figures[2].value > 0
    with pytest.raises(CheckpointError, match="does not fit"):
        load_mobilenet(tmp_path / "mobilenet.pth")


def test_fvd_compares_clips_with_the_true_ones_by_i3d(tmp_path):
    pytest.importorskip("cdfvd")
    from cdfvd.third_party.i3d.pytorch_i3d import InceptionI3d

    torch.manual_seed(0)
    torch.save(InceptionI3d(400, in_channels=3).state_dict(), tmp_path / "i3d.pt")
    logits = load_i3d(tmp_path / "i3d.pt").clip(clip_of(0, frames=9).frames)
    assert logits.shape == (400,)
    assert np.isfinite(logits).all()

    # The network takes a second per clip, so the figure is tested on one that averages.
    class Mean(torch.nn.Module):
        def forward(self, video):
            return video.mean(dim=(2, 3, 4))

    i3d = I3dLogits(Mean(), lambda videos: torch.from_numpy(videos).permute(0, 4, 1, 2, 3).float())
    clips = [clip_of(seed) for seed in range(4)]
    (figure,) = perceptual_figures(Extractors(i3d=i3d), [*clips, clip_of(9, truth=False)])
    assert figure.name == "FVD (I3D, 4 clips)"
    rows, true_rows = (np.stack([i3d.clip(getattr(clip, side)) for clip in clips]) for side in ("frames", "truth"))
    assert figure.value == pytest.approx(frechet_distance(rows, true_rows))


def test_pic_is_the_mean_likeness_of_the_frames_to_the_photo():
    def preprocess(picture):
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None] / 255

    distance = DreamSimDistance(lambda one, other: (one - other).abs().mean(dim=(1, 2, 3)), preprocess)
    image = np.full((8, 8, 3), 51, np.uint8)
    clip = JudgedClip(np.stack([image, image + 51]), image, "run")  # distances 0 and 0.2
    (figure,) = perceptual_figures(Extractors(dreamsim=distance), [clip])
    assert figure.name == "PIC (DreamSim ensemble)"
    assert figure.value == pytest.approx(0.9)


def test_dreamsim_is_loaded_from_its_folder_and_never_downloaded(tmp_path, monkeypatch):
    asked = []

    def dreamsim(**options):
        asked.append(options)
        return torch.nn.Identity(), torch.nn.Identity()

    monkeypatch.setitem(sys.modules, "dreamsim", SimpleNamespace(dreamsim=dreamsim))
    for name in DREAMSIM_FILES["ensemble"]:
        with pytest.raises(FileNotFoundError, match=re.escape(name)):
            load_dreamsim(tmp_path)
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    assert not asked
    assert load_dreamsim(tmp_path).name == "ensemble"
    assert asked == [{"device": "cpu", "cache_dir": str(tmp_path), "dreamsim_type": "ensemble"}]
    with pytest.raises(ValueError, match="no DreamSim model 'vgg'"):
        load_dreamsim(tmp_path, "vgg")


@pytest.mark.parametrize(
    ("load", "module"), [(load_clip, "open_clip"), (load_i3d, "cdfvd.third_party.i3d.utils"), (load_mobilenet, None)]
)
def test_what_is_missing_is_named(load, module, tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"nothing\.pt"):
        load(tmp_path / "nothing.pt")
    if module:
        (tmp_path / "file.pt").write_bytes(b"")
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(ValueError, match="followclick\\[evaluation\\]"):
            load(tmp_path / "file.pt")


def test_an_unknown_clip_model_is_named(tiny_clip, tmp_path):
    (tmp_path / "file.pt").write_bytes(b"")
    with pytest.raises(ValueError, match="knows no model 'ViT-X'"):
        load_clip(tmp_path / "file.pt", "ViT-X")
