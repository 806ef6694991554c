"""The command train on generated scenes: all stages, what they leave behind, and what the command line changes."""

import json

import pytest
import torch

from followclick_core import presets
from followclick_core.__main__ import main
from followclick_core.models.autoencoder import load_autoencoder
from followclick_core.models.bundle import load_bundle
from followclick_core.models.text_encoder import UNKNOWN, tokenize
from followclick_core.segment.params import SmallSamParams
from followclick_core.training import params, segmenter
from followclick_core.training.run import train
from followclick_core.training.run_dir import RunDir

from .tiny_training import SIZE, TINY, TRAINING, discs

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def art_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("art") / "art.zip"
    discs().save(path)
    return path


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setitem(presets.PRESETS, "tiny", TINY)
    monkeypatch.setitem(params.TRAINING, "tiny", TRAINING)


@pytest.mark.usefixtures("tiny")
def test_all_stages_one_after_the_other_write_weights_that_load_again(art_file, tmp_path):
    stages = ("motion", "autoencoder", "spatial")  # run in their own order
    assert train("tiny", art_file, tmp_path, stages, steps=2, device="cpu")
    bundle = load_bundle(tmp_path / "weights")
    assert bundle.preset == TINY and bundle.unet.params == TINY.unet and bundle.motion.params == TINY.motion
    names = sorted(path.name for path in (tmp_path / "weights").iterdir())
    assert names == [f"{part}.safetensors" for part in ("autoencoder", "motion", "text_encoder", "unet")]
    averages = RunDir(tmp_path).load_checkpoint("motion", CPU)["ema"]
    for part, module in (("unet", bundle.unet), ("motion", bundle.motion)):
        for key, value in module.named_parameters():
            assert torch.equal(value, averages[f"{part}.{key}"].half().float()), key
    own = RunDir(tmp_path).load_checkpoint("autoencoder", CPU)["ema"]
    assert torch.equal(
        load_autoencoder(tmp_path / "weights" / "autoencoder.safetensors").taesd_encoder[0].weight,
        own["taesd_encoder.0.weight"].half().float(),
    )
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["preset"]["size"] == SIZE and config["training"]["motion"]["mask_ratio"] == 0.7
    # Words that training met keep their embeddings; the others share one.
    table = bundle.text.text_model.embeddings.token_embedding.weight
    met = tokenize(["a wall"])[0, 2]
    assert not torch.equal(table[met], table[UNKNOWN]) and torch.equal(table[40_000], table[UNKNOWN])


@pytest.mark.usefixtures("tiny")
def test_the_decoder_is_trained_on_alone(art_file, tmp_path):
    path = tmp_path / "weights" / "autoencoder.safetensors"
    train("tiny", art_file, tmp_path, ("autoencoder",), steps=1, device="cpu")
    before = load_autoencoder(path).state_dict()
    train("tiny", art_file, tmp_path, ("decoder",), steps=2, device="cpu")
    after = load_autoencoder(path).state_dict()
    changed = {key for key, value in before.items() if not torch.equal(value, after[key])}
    assert changed and all(key.startswith("taesd_decoder.") for key in changed)


@pytest.mark.usefixtures("tiny")
def test_the_same_command_in_two_folders_trains_the_same_weights(art_file, tmp_path):
    for folder in ("one", "two"):
        torch.manual_seed(hash(folder) % 1000)
        train("tiny", art_file, tmp_path / folder, ("autoencoder",), steps=1, device="cpu")
    one, two = (
        load_autoencoder(tmp_path / folder / "weights" / "autoencoder.safetensors") for folder in ("one", "two")
    )
    for key, value in one.state_dict().items():
        assert torch.equal(two.state_dict()[key], value), key


@pytest.mark.usefixtures("tiny")
def test_a_command_out_of_time_says_that_it_is_not_finished(art_file, tmp_path):
    assert not train("tiny", art_file, tmp_path, ("autoencoder", "spatial"), 1, 5.2, device="cpu")
    assert (tmp_path / "weights" / "autoencoder.safetensors").is_file()
    assert not (tmp_path / "weights" / "unet.safetensors").is_file()


def test_what_cannot_be_trained_is_refused(art_file, tmp_path):
    with pytest.raises(ValueError, match="Preset sd15 cannot be trained from nothing; choose one of demo"):
        train("sd15", art_file, tmp_path / "run")
    with pytest.raises(
        ValueError, match="no training stage vae; choose from autoencoder, segmenter, spatial, motion, decoder"
    ):
        train("nano", art_file, tmp_path / "run", ("vae",))
    with pytest.raises(FileNotFoundError, match="no art pack at .*nowhere.zip"):
        train("nano", tmp_path / "nowhere.zip", tmp_path / "run", device="cpu")
    with pytest.raises(ValueError, match="no preset 'x'"):
        train("x", art_file, tmp_path / "run")
    with pytest.raises(ValueError, match="which are not to run; leave --batch"):
        train("nano", art_file, tmp_path / "run", ("spatial",), batch_size=2, device="cpu")
    with pytest.raises(ValueError, match="which is not to run; leave --crop out"):
        train("nano", art_file, tmp_path / "run", ("segmenter",), crop=32, device="cpu")


@pytest.mark.usefixtures("tiny")
def test_a_folder_without_weights_is_nothing_to_start_from(art_file, tmp_path):
    with pytest.raises(FileNotFoundError, match="no weights of unet, motion, autoencoder, text_encoder in .* to start"):
        train("tiny", art_file, tmp_path / "run", ("motion",), device="cpu", start_from=tmp_path)


@pytest.mark.usefixtures("tiny")
def test_a_folder_that_lacks_a_part_is_refused_rather_than_begun_anew(art_file, tmp_path):
    train("tiny", art_file, tmp_path / "base", ("autoencoder", "spatial"), steps=1, device="cpu")
    (tmp_path / "base" / "weights" / "motion.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="no weights of motion in .* to start from"):
        train("tiny", art_file, tmp_path / "run", ("motion",), 1, device="cpu", start_from=tmp_path / "base/weights")


@pytest.mark.usefixtures("tiny")
def test_a_motion_stage_goes_on_as_it_was_begun_or_not_at_all(art_file, tmp_path):
    train("tiny", art_file, tmp_path, ("autoencoder", "spatial"), steps=1, device="cpu")
    train("tiny", art_file, tmp_path, ("motion",), steps=1, device="cpu", learning_rate=0.25, crop=16)
    with pytest.raises(ValueError, match="was begun with --learning-rate 0.25, --crop 16; give the same"):
        train("tiny", art_file, tmp_path, ("motion",), steps=2, device="cpu")
    assert train("tiny", art_file, tmp_path, ("motion",), steps=2, device="cpu", learning_rate=0.25, crop=16)
    assert RunDir(tmp_path).load_checkpoint("motion", CPU)["step"] == 2


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("crop", [12, 48])
def test_a_part_that_the_unet_cannot_take_is_refused(art_file, tmp_path, crop):
    with pytest.raises(ValueError, match=f"{crop} px cannot be trained on; give --crop a multiple of 16 up to 32"):
        train("tiny", art_file, tmp_path, steps=1, device="cpu", crop=crop)
    assert not list(tmp_path.iterdir()), "it began before it was refused"


# Another batch


def test_another_batch_is_the_same_recipe_in_other_portions():
    recipe = params.TRAINING["demo"].motion
    half = recipe.with_batch(recipe.batch_size // 2)
    assert (half.batch_size, half.chunk_size, half.image_batch) == (16, 2, 16)
    assert half.chunk_size * half.pool_chunks == params.POOLED_BATCHES * half.batch_size
    assert recipe.with_batch(recipe.batch_size) == recipe


@pytest.mark.parametrize("name", ["demo", "small", "nano"])
def test_a_batch_of_one_clip_still_has_a_picture_and_a_pool_to_draw_from(name):
    one = params.TRAINING[name].motion.with_batch(1)
    assert one.batch_size == one.chunk_size == one.image_batch == 1 and one.pool_chunks >= 8


def test_a_batch_of_no_clip_is_refused():
    with pytest.raises(ValueError, match="A batch of 0 clips"):
        params.TRAINING["demo"].motion.with_batch(0)


@pytest.mark.usefixtures("tiny")
def test_the_command_line_s_batch_and_rate_are_the_motion_stage_s(art_file, tmp_path):
    train("tiny", art_file, tmp_path / "base", ("autoencoder", "spatial"), steps=1, device="cpu")
    command = ["train", "--preset", "tiny", "--art", str(art_file), "--run", str(tmp_path / "run"), "--device", "cpu"]
    command += ["--stage", "motion", "--steps", "1", "--start-from", str(tmp_path / "base" / "weights")]
    assert main([*command, "--batch", "3", "--learning-rate", "0.25", "--crop", "16", "--quiet"]) == 0
    told = json.loads((tmp_path / "run" / "config.json").read_text())["training"]
    assert told["motion"]["crop"] == 16 and told["motion"]["batch_size"] == 3
    assert told["motion"]["loop"]["learning_rate"] == 0.25
    assert told["spatial"]["batch_size"] == TRAINING.spatial.batch_size
    assert not (tmp_path / "run" / "weights" / "segmenter.safetensors").exists()  # nor had the base one
    # AdamW's first step moves a weight by the rate, or not at all: so the rate was not only written down.
    before, after = (load_bundle(tmp_path / name / "weights").unet.state_dict() for name in ("base", "run"))
    moved = torch.cat([(after[key] - before[key]).abs().flatten() for key in before])
    assert moved.max() > 0.05


@pytest.mark.usefixtures("tiny")
def test_the_segmenter_too_takes_another_batch_and_rate_and_sees_objects_that_fill_the_picture(
    monkeypatch, art_file, tmp_path
):
    model = SmallSamParams(embed_dim=32, num_heads=2, mlp_dim=32, iou_hidden_dim=16, trunk_width=0.25)
    small = segmenter.SegmenterTrainParams(model=model, trunk_weights="random", scales=(0.9, 1.0))
    monkeypatch.setitem(segmenter.SEGMENTER_TRAINING, "tiny", small)
    areas, make = [], segmenter.SegmenterStage._make_chunk

    def make_chunk(stage, seed):
        chunk = make(stage, seed)
        areas.append(chunk["mask"].float().mean((1, 2, 3)))
        return chunk

    monkeypatch.setattr(segmenter.SegmenterStage, "_make_chunk", make_chunk)
    assert train("tiny", art_file, tmp_path, ("segmenter",), 1, device="cpu", batch_size=4, learning_rate=0.01)
    assert {len(area) for area in areas} == {1}, "a quarter of a batch is new"
    assert torch.cat(areas).max() > 0.45, "the discs are no larger than in the scenes of the other stages"
    assert json.loads((tmp_path / "segmenter" / "options.json").read_text()) == {"batch": 4, "learning-rate": 0.01}
    with pytest.raises(ValueError, match="segmenter of .* was begun with --batch 4, --learning-rate 0.01"):
        train("tiny", art_file, tmp_path, ("segmenter",), 2, device="cpu")
