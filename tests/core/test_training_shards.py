"""Training on shards: which samples, what is drawn for them, which weights move, and what a run leaves behind."""

import itertools
import json
import shutil
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from followclick_core.checkpoint import load_safetensors
from followclick_core.dataset.pack import npy_bytes
from followclick_core.diffusion.schedule import NoiseSchedule
from followclick_core.models.autoencoder import load_autoencoder
from followclick_core.models.bundle import load_bundle, weights_path
from followclick_core.models.motion_model import MotionModel, load_motion_model, save_motion_model
from followclick_core.models.text_encoder import END, START, tokenize
from followclick_core.models.unet import load_unet, save_unet
from followclick_core.presets import get_preset
from followclick_core.training import clip_data
from followclick_core.training.clip_data import ClipData, SampleMaker
from followclick_core.training.clip_params import ClipTrainParams, MaskRatio, clip_training
from followclick_core.training.clip_run import Start, train_on_shards
from followclick_core.training.loop import LoopParams
from followclick_core.training.run_dir import RunDir
from followclick_core.training.trainable import SETS

CPU = torch.device("cpu")
CAPTIONS = ("a red square on a wall", "a green square in the evening")  # of the clips 4 and 5, as conftest has them


@pytest.fixture(scope="module")
def autoencoder():
    return load_autoencoder(weights_path("autoencoder")).requires_grad_(False)


# What a run can be told


def test_the_presets_are_the_papers_recipe():
    captions, motion = (clip_training("sd15", text) for text in ("captions", "motion-captions"))
    assert (captions.loop.steps, motion.loop.steps) == (60_000, 30_000)
    for stage in (captions, motion):
        assert (stage.batch_size, stage.loop.learning_rate, stage.mask_ratio.values) == (32, 1e-4, (0.7,))
        assert (stage.size, stage.num_frames, stage.trainable) == (512, 16, "paper")
        assert stage.schedule.zero_terminal_snr and stage.accumulation(8) == 4


def test_a_mask_ratio_is_a_share_a_list_or_a_range():
    def drawn(text):
        generator = torch.Generator().manual_seed(0)
        ratio = MaskRatio.parse(text)
        assert MaskRatio.parse(str(ratio)) == ratio
        return [round(ratio.draw(generator).item(), 4) for _ in range(400)]

    assert set(drawn("0.7")) == {0.7}
    counts = Counter(drawn("0,0.3,0.5,0.7"))
    assert counts.keys() == {0.0, 0.3, 0.5, 0.7} and min(counts.values()) > 60
    uniform = drawn("uniform:0.2,0.6")
    assert 0.2 <= min(uniform) < 0.25 and 0.55 < max(uniform) <= 0.6
    for wrong in ("1.2", "uniform:0.5", "uniform:0.6,0.2", "half", "", "0.1,-0.2", "normal:0,1"):
        with pytest.raises(ValueError, match="The mask ratio .* cannot be; give a share such as 0.7"):
            MaskRatio.parse(wrong)


def test_what_cannot_be_is_refused_by_name():
    loop = LoopParams(1, 1e-4)
    for changes, match in (
        ({"text": "titles"}, "no text 'titles' for training on shards; choose one of captions, motion-captions"),
        ({"layout": "first"}, "no layout 'first'"),
        ({"prediction": "x0"}, "no prediction 'x0'.*v_prediction, epsilon"),
        ({"precision": "fp16"}, "no precision 'fp16'"),
        ({"text_dropout": 1.5}, "text_dropout is 1.5; give a share from 0 to 1"),
        ({"noise_offset": -1.0}, "noise_offset is -1; give 0 or more"),
        ({"micro_batch": 3}, "batch of 32 clips cannot be cut into micro-batches of 3"),
        ({"size": 100}, "16 frames of 100 px cannot be trained on"),
    ):
        with pytest.raises(ValueError, match=match):
            ClipTrainParams(loop, **changes)
    with pytest.raises(ValueError, match="32 clips cannot be shared among 3 processes.*--batch a multiple of 3"):
        ClipTrainParams(loop).accumulation(3)


# Which samples


def test_every_epoch_has_every_clip_once_in_an_order_of_its_own(shards, tiny_stage, monkeypatch):
    monkeypatch.setattr(clip_data, "WINDOW", 3)
    data = ClipData(shards, tiny_stage(), workers=0)
    assert list(data.held_out) == [0] and len(data) == 5
    epochs = [[data.index_at(place) for place in range(5 * n, 5 * n + 5)] for n in range(8)]
    assert all(sorted(epoch) == [1, 2, 3, 4, 5] for epoch in epochs) and len({tuple(epoch) for epoch in epochs}) > 3
    again = ClipData(shards, tiny_stage(), workers=0)
    assert [again.index_at(place) for place in range(40)] == list(itertools.chain(*epochs))
    other = ClipData(shards, tiny_stage(seed=1), workers=0)
    assert [other.index_at(place) for place in range(40)] != list(itertools.chain(*epochs))


def test_reading_ahead_changes_nothing(shards, tiny_stage):
    plain, ahead = ClipData(shards, tiny_stage(), workers=0), ClipData(shards, tiny_stage(), workers=2)
    ahead.prefetch(range(6))
    for place in range(6):
        first, second = plain.take(place), ahead.take(place)
        assert torch.equal(first.frames, second.frames) and first.text == second.text


def test_the_stage_chooses_the_text_and_passes_over_what_has_none(write_shards, tiny_stage, tmp_path):
    captions = {0: "", 1: "  "}
    folder = write_shards(
        tmp_path,
        caption=lambda number: captions.get(number, f"clip {number}"),
        motion_prompt=lambda number: "" if number == 3 else f"move {number}",
    )
    data = ClipData(folder, tiny_stage(validation_clips=0), workers=0)
    assert {data.take(place).text for place in range(6)} == {f"clip {number}" for number in (2, 3, 4, 5)}
    assert sorted(data.passed_over.values()) == ["without a text"] * 2
    data = ClipData(folder, tiny_stage("motion-captions", validation_clips=0), workers=0)
    assert {data.take(place).text for place in range(5)} == {f"move {number}" for number in (0, 1, 2, 4, 5)}


def test_damaged_clips_are_passed_over_and_named(write_shards, tiny_stage, tmp_path):
    folder = write_shards(tmp_path / "some", frame_001_jpg=lambda number: b"\xff\xd8no" if number == 2 else None)
    # What is left out of `changed` keeps the good picture.
    data = ClipData(folder, tiny_stage(validation_clips=0), workers=0)
    taken = [data.take(place) for place in range(6)]
    assert len(data.passed_over) == 1 and "damaged picture" in next(iter(data.passed_over.values()))
    assert all(torch.isfinite(sample.frames).all() for sample in taken)
    folder = write_shards(tmp_path / "all", frame_000_jpg=lambda number: b"no picture")
    with pytest.raises(ValueError, match="No clip in .* can be trained on .damaged picture.*build the shards"):
        ClipData(folder, tiny_stage(), workers=0)


def test_another_clip_in_a_damaged_ones_place_is_never_a_held_out_one(write_shards, tiny_stage, tmp_path):
    # In the order of parts: 0, 2, 4, 1, 3, 5; the first two are held out.
    folder = write_shards(
        tmp_path,
        caption=lambda number: f"clip {number}",
        frame_000_jpg=lambda n: b"no picture" if n in (0, 5) else None,
    )
    data = ClipData(folder, tiny_stage(validation_clips=2), workers=0)
    assert {data.take(place).text for place in range(12)} == {"clip 4", "clip 1", "clip 3"}
    assert [sample.text for sample in data.load_held_out()] == ["clip 2"]
    # Nothing is left to hold out: validation shows a clip that is trained on.
    data = ClipData(folder, tiny_stage(validation_clips=1), workers=0)
    assert [sample.text for sample in data.load_held_out()] == ["clip 2"] and list(data.held_out) == [0]


def test_damaged_records_and_latents_are_passed_over(write_shards, tiny_stage, tmp_path):
    records = {0: b'{"key": "cut', 1: b"[]", 2: b'{"mask_rule": "followed"}', 3: b"\xff"}
    folder = write_shards(tmp_path / "records", json=records.get)
    data = ClipData(folder, tiny_stage(validation_clips=0), workers=0)
    assert {data.take(place).caption for place in range(6)} == {CAPTIONS[0], CAPTIONS[1]}
    assert len(data.passed_over) == 4 and all("damaged record" in reason for reason in data.passed_over.values())
    good = npy_bytes(np.zeros((4, 4, 8, 8), np.float16))
    folder = write_shards(
        tmp_path / "latents", latents_npy=lambda number: {0: good[:40], 1: good[:-9], 2: b"no array"}.get(number, good)
    )
    data = ClipData(folder, tiny_stage(validation_clips=0, stored_latents=True), workers=0)
    assert all(data.take(place).latents.shape == (4, 4, 8, 8) for place in range(6))
    assert len(data.passed_over) == 3 and all("damaged latents" in reason for reason in data.passed_over.values())


def test_a_run_names_the_clips_that_it_passes_over_once(write_shards, tiny_stage, tmp_path):
    folder = write_shards(
        tmp_path / "data",
        caption=lambda number: "" if number == 4 else f"clip {number}",
        frame_001_jpg=lambda number: b"no picture" if number == 3 else None,
    )
    for steps in (4, 6):
        assert train_on_shards("tiny", folder, tmp_path / "run", [tiny_stage(steps=steps)], Start(), device="cpu")
    lines = (tmp_path / "run" / "captions" / "passed_over.jsonl").read_text().splitlines()
    reasons = {record["clip"]: record["reason"] for record in map(json.loads, lines)}
    assert len(lines) == 2 and reasons.keys() == {"000000-0004-000", "000001-0003-000"}
    assert reasons["000000-0004-000"] == "without a text" and "damaged picture" in reasons["000001-0003-000"]


def test_clips_that_do_not_fit_are_refused(shards, write_shards, tiny_stage, tmp_path):
    with pytest.raises(ValueError, match="are 64 px wide, and training wants 128; build them larger"):
        ClipData(shards, tiny_stage(size=128), workers=0)
    with pytest.raises(ValueError, match="can be trained on .only 4 frames, not 16"):
        ClipData(shards, tiny_stage(num_frames=16), workers=0)
    with pytest.raises(FileNotFoundError, match="no shards with clips in"):
        ClipData(tmp_path, tiny_stage(), workers=0)
    with pytest.raises(ValueError, match="holds no latents; leave --stored-latents out"):
        ClipData(shards, tiny_stage(stored_latents=True), workers=0)


def test_stored_latents_serve_if_this_autoencoder_made_them(shards, write_shards, tiny_stage, tmp_path, autoencoder):
    params = tiny_stage(validation_clips=0)
    plain = ClipData(shards, params, workers=0)
    # A clip's number is its place in the order of parts: 0, 2, 4, then 1, 3, 5.
    order = [0, 2, 4, 1, 3, 5]
    maker = SampleMaker(autoencoder, params, CPU)
    made = {number: maker.latents([plain.load(index)])[0].numpy() for index, number in enumerate(order)}
    stored = write_shards(tmp_path / "own", latents_npy=lambda number: npy_bytes(made[number].astype(np.float16)))
    params = replace(params, stored_latents=True)
    data, maker = ClipData(stored, params, workers=0), SampleMaker(autoencoder, params, CPU)
    for index, number in enumerate(order):
        sample = data.load(index)
        maker.check_latents(sample)
        assert np.abs(maker.latents([sample])[0].numpy() - made[number]).max() < 2e-3
    foreign = write_shards(tmp_path / "foreign", latents_npy=lambda number: npy_bytes(-made[number]))
    with pytest.raises(ValueError, match=r"made by another autoencoder .they differ by 200%"):
        maker.check_latents(ClipData(foreign, params, workers=0).load(0))
    small = write_shards(tmp_path / "small", latents_npy=lambda number: npy_bytes(np.zeros((4, 4, 4, 4), np.float16)))
    with pytest.raises(ValueError, match="are 4 cells wide, not 8"):
        ClipData(small, params, workers=0)


# What is drawn for a sample


@pytest.fixture
def make_batch(shards, tiny_stage, autoencoder):
    def make(places=(0, 1, 2), timesteps=None, **changes):
        params = tiny_stage(**({"text_dropout": 0.0, "mask_ratio": MaskRatio("fixed", (0.0,))} | changes))
        data = ClipData(shards, params, workers=0)
        samples = [data.take(place) for place in places]
        return samples, SampleMaker(autoencoder, params, CPU).batch(samples, places, timesteps)

    return make


def test_a_sample_depends_on_its_place_alone(make_batch):
    together = make_batch((4, 9))[1]
    alone = make_batch((9,))[1]
    other = make_batch((10,))[1]
    for key, value in alone.items():
        assert torch.allclose(together[key][1:], value, atol=1e-6), key
    assert not torch.equal(other["x_t"], alone["x_t"])


@pytest.mark.parametrize("prediction", ["v_prediction", "epsilon"])
def test_the_noise_is_the_one_that_the_target_names(make_batch, autoencoder, prediction):
    samples, batch = make_batch(prediction=prediction)
    params = clip_training("sd15", "captions")
    schedule = NoiseSchedule(replace(params, prediction=prediction).schedule)
    latents = torch.stack([autoencoder.encode(sample.frames.transpose(0, 1)).transpose(0, 1) for sample in samples])
    v = schedule.as_velocity(batch["target"], batch["x_t"], batch["t"])
    assert torch.allclose(schedule.predict_x_0(batch["x_t"], v, batch["t"]), latents, atol=2e-2)


def test_the_first_frame_goes_in_as_the_layout_says(make_batch, autoencoder):
    for layout, mask_frames, latent_frames in (("paper", 1, 4), ("release", 4, 1), ("repeat", 4, 4)):
        samples, batch = make_batch(layout=layout)
        condition = batch["first_frame"]
        first = autoencoder.encode(samples[0].frames[None, :, 0])[0]
        assert torch.allclose(condition[0, 1:, 0], first, atol=1e-4)
        assert [bool(frame.any()) for frame in condition[0, 0]] == [True] * mask_frames + [False] * (4 - mask_frames)
        assert [bool(f.any()) for f in condition[0, 1]] == [True] * latent_frames + [False] * (4 - latent_frames)


def test_masking_dropouts_and_stills_do_what_their_shares_say(make_batch):
    _, batch = make_batch(range(40), mask_ratio=MaskRatio("fixed", (0.7,)))
    hidden = (batch["first_frame"][:, 1:, 0] == 0).all(dim=1).float().mean()
    assert 0.66 < hidden < 0.74
    _, batch = make_batch(range(40), condition_dropout=0.5, text_dropout=0.25)
    without = (batch["first_frame"] == 0).flatten(1).all(dim=1).float().mean()
    empty = torch.tensor([START] + [END] * 76)
    assert 0.3 < without < 0.7 and 0.1 < (batch["tokens"] == empty).all(dim=1).float().mean() < 0.45
    samples, batch = make_batch(range(8), still_share=1.0, text="motion-captions")
    assert not batch["magnitude"].any() and not batch["swept"].any() and not batch["first_frame"][:, 0].any()
    assert torch.equal(batch["tokens"], tokenize([sample.caption for sample in samples]))
    x_t, target, t = batch["x_t"], batch["target"], batch["t"]
    still = NoiseSchedule(clip_training("sd15", "captions").schedule).predict_x_0(x_t, target, t)
    assert torch.allclose(still, still[:, :, :1].expand_as(still), atol=1e-2)


def test_remedies_against_a_leaking_condition(make_batch):
    plain = make_batch(range(12), prediction="epsilon")[1]
    offset = make_batch(range(12), prediction="epsilon", noise_offset=0.5)[1]
    added = offset["target"] - plain["target"]
    # A constant per clip and channel.
    assert torch.allclose(added, added[:, :, :1, :1, :1].expand_as(added), atol=1e-5)
    assert 0.3 < added[:, :, 0, 0, 0].std() < 0.7
    noisy = make_batch(range(12), condition_noise=1.0)[1]
    difference = (noisy["first_frame"] - make_batch(range(12))[1]["first_frame"])[:, 1:, 0].flatten(1).std(dim=1)
    assert torch.allclose(difference, noisy["t"] / 999, rtol=0.2, atol=0.02)


def test_validation_has_neither_dropouts_nor_chance(make_batch):
    changes = {"condition_dropout": 1.0, "still_share": 1.0, "text_dropout": 1.0, "condition_noise": 3.0}
    samples, batch = make_batch((0, 1), timesteps=300, **changes)
    assert batch["t"].tolist() == [300, 300] and batch["first_frame"].any() and batch["magnitude"].all()
    assert torch.equal(batch["tokens"], tokenize([sample.text for sample in samples]))


# Which weights move


def weights_of(folder):
    files = ("unet", "motion", "text_encoder")
    return {
        (file, key): value
        for file in files
        for key, value in load_safetensors(folder / f"{file}.safetensors")[0].items()
    }


@pytest.mark.parametrize("name", SETS)
def test_a_set_trains_exactly_what_it_says(name, shards, tiny_stage, tiny_weights, tmp_path):
    stage = tiny_stage(trainable=name, lora_rank=2, steps=2, learning_rate=0.02)
    assert train_on_shards("tiny", shards, tmp_path, [stage], Start(str(tiny_weights)), device="cpu")
    before, after = weights_of(tiny_weights), weights_of(tmp_path / "weights")
    assert before.keys() == after.keys()
    moved = {key for key, value in before.items() if not torch.equal(value, after[key])}

    def expected(file, key):
        motion, unet, text = file == "motion", file == "unet", file == "text_encoder"
        temporal = motion and any(f"attention_blocks.{i}.to_" in key for i in (0, 1)) and not key.endswith("bias")
        attention = unet and (".attn1.to_" in key or ".attn2.to_" in key) and not key.endswith("bias")
        augmented = motion and ("attention_blocks.2." in key or "norms.2." in key or "motion_embedding." in key)
        wanted = {
            "paper": motion,
            "all": motion or unet,
            "scratch": motion or unet or (text and not key.endswith(".known")),
            "spatial-lora": motion or attention,
            "ma": augmented,
            "motion-lora": temporal,
        }
        return wanted[name]

    assert moved == {key for key in before if expected(*key)}


def test_a_model_that_sees_no_first_frame_cannot_have_only_its_attention_trained(shards, tiny_stage, tmp_path):
    stage = tiny_stage(trainable="ma")
    save_motion_model(tmp_path / "new.safetensors", MotionModel(replace(get_preset("tiny").motion, trained_frames=4)))
    (tmp_path / "base").mkdir()
    with pytest.raises(ValueError, match="The set ma is trained on top of a model; name one by --base"):
        train_on_shards("tiny", shards, tmp_path / "run", [stage], Start(None), device="cpu")


# What a run leaves behind


def test_two_stages_leave_a_whole_model_and_all_that_shows_how_it_went(shards, tiny_stage, tmp_path):
    stages = [tiny_stage(), tiny_stage("motion-captions")]
    assert train_on_shards("tiny", shards, tmp_path, stages, Start(), device="cpu")
    bundle = load_bundle(tmp_path / "weights")
    assert bundle.motion.params.trained_frames == 4 and bundle.motion.layout == "repeat"
    averages = torch.load(tmp_path / "motion-captions" / "checkpoint.pt", weights_only=True)["ema"]
    for key, value in load_motion_model(tmp_path / "weights" / "motion.safetensors").named_parameters():
        assert torch.equal(value, averages[f"motion.{key}"].half().float()), key
    for text in ("captions", "motion-captions"):
        folder = tmp_path / text
        config = json.loads((folder / "config.json").read_text())
        assert config["text"] == text and config["mask_ratio"] == {"kind": "fixed", "values": [0.7]}
        assert (config["clips"], config["clips_held_out"]) == (5, 1)
        records = RunDir(tmp_path).read_log(text)
        assert [r["step"] for r in records if "loss" in r] == [1, 2, 3, 4]
        assert [r["step"] for r in records if "validation_loss" in r] == [4]
        # The held-out clip above the model's, four frames of 64 px each.
        assert Image.open(folder / "validation" / "step-000004.png").size == (256, 128)
        assert Image.open(folder / "losses.png").size[0] > 500
        assert len(list((folder / "tensorboard").glob("events.*"))) == 1
    # The second stage began where the first had ended.
    first = load_motion_model(tmp_path / "motion-captions" / "start" / "motion.safetensors").state_dict()
    end = torch.load(tmp_path / "captions" / "checkpoint.pt", weights_only=True)["ema"]
    assert all(
        torch.equal(first[key.removeprefix("motion.")], v.half().float())
        for key, v in end.items()
        if key[:7] == "motion."
    )


def test_a_finished_run_s_command_again_changes_no_weights(shards, tiny_stage, tmp_path):
    stages = [tiny_stage(), tiny_stage("motion-captions")]
    train_on_shards("tiny", shards, tmp_path, stages, Start(), device="cpu")
    made = weights_of(tmp_path / "weights")
    # Also between its stages, where a kill may leave it.
    assert train_on_shards("tiny", shards, tmp_path, stages[:1], Start(), device="cpu")
    for _ in range(2):
        again = weights_of(tmp_path / "weights")
        assert all(torch.equal(value, again[key]) for key, value in made.items())
        assert train_on_shards("tiny", shards, tmp_path, stages, Start(), device="cpu")


def test_weights_that_a_kill_has_kept_from_being_written_come_with_the_next_command(shards, tiny_stage, tmp_path):
    train_on_shards("tiny", shards, tmp_path, [tiny_stage()], Start(), device="cpu")
    made = weights_of(tmp_path / "weights")
    (tmp_path / "weights" / "motion.safetensors").unlink()
    train_on_shards("tiny", shards, tmp_path, [tiny_stage()], Start(), device="cpu")
    again = weights_of(tmp_path / "weights")
    assert all(torch.equal(value, again[key]) for key, value in made.items())


def test_tensorboard_gets_what_the_log_has(tiny_stage, shards, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train_on_shards("tiny", shards, tmp_path, [tiny_stage()], Start(), device="cpu")
    events = EventAccumulator(str(tmp_path / "captions" / "tensorboard")).Reload()
    logged = {r["step"]: r["loss"] for r in RunDir(tmp_path).read_log("captions") if "loss" in r}
    assert {e.step: pytest.approx(e.value) for e in events.Scalars("loss")} == logged


def test_the_loss_falls(shards, tiny_stage, tmp_path):
    stage = tiny_stage(steps=30, learning_rate=3e-3, validation_every=1000, mask_ratio=MaskRatio("fixed", (0.0,)))
    train_on_shards("tiny", shards, tmp_path, [stage], Start(), device="cpu")
    losses = [r["loss"] for r in RunDir(tmp_path).read_log("captions") if "loss" in r]
    assert sum(losses[-8:]) < 0.9 * sum(losses[:8])


def test_other_settings_in_the_same_folder_are_refused(shards, tiny_stage, tmp_path):
    assert not train_on_shards("tiny", shards, tmp_path, [tiny_stage()], Start(), 0.0, "cpu")
    with pytest.raises(ValueError, match=r"was begun with batch_size=4, learning_rate=0.001; give the same settings"):
        train_on_shards("tiny", shards, tmp_path, [tiny_stage(batch_size=2, learning_rate=0.1)], Start(), device="cpu")
    # More steps are the same training, longer.
    assert train_on_shards("tiny", shards, tmp_path, [tiny_stage(steps=5)], Start(), device="cpu")


def test_other_files_and_other_clips_in_the_same_folder_are_refused(
    shards, write_shards, tiny_stage, tiny_weights, tmp_path
):
    def go_on(base, data, motion=None):
        return train_on_shards("tiny", data, run, [tiny_stage()], Start(str(base), motion), device="cpu")

    run = tmp_path / "run"
    assert not train_on_shards("tiny", shards, run, [tiny_stage()], Start(str(tiny_weights)), 0.0, "cpu")
    other, moved = tmp_path / "other", tmp_path / "moved"
    for folder in (other, moved):
        shutil.copytree(tiny_weights, folder)
    unet = load_unet(other / "unet.safetensors")
    torch.nn.init.ones_(next(unet.parameters()))
    save_unet(other / "unet.safetensors", unet, {"preset": "tiny"})
    motion = MotionModel(replace(get_preset("tiny").motion, trained_frames=4))
    save_motion_model(tmp_path / "motion.safetensors", motion, {"preset": "tiny"})
    with pytest.raises(ValueError, match="--base or --motion has other contents; give the same, or another --run"):
        go_on(other, shards)
    with pytest.raises(ValueError, match="--base or --motion has other contents"):
        go_on(tiny_weights, shards, str(tmp_path / "motion.safetensors"))
    with pytest.raises(ValueError, match="--data holds other clips; give the same"):
        go_on(tiny_weights, write_shards(tmp_path / "fewer", clips=4))
    # Where the same files lie does not matter.
    assert go_on(moved, shutil.copytree(shards, tmp_path / "shards"))


def test_files_that_do_not_belong_together_are_refused(shards, tiny_stage, tiny_weights, tmp_path):
    stage = tiny_stage()
    for preset, start, match in (
        ("sd15", Start(), "sd15 is trained on top of Stable Diffusion 1.5; name its checkpoint by --base"),
        ("nano", Start(str(tiny_weights)), "is not of the preset nano"),
        ("tiny", Start(str(tmp_path / "no.ckpt")), "There is no .*no.ckpt; name a checkpoint"),
        ("tiny", Start(None, str(weights_path("motion"))), "motion.safetensors is not for the UNet of the preset tiny"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=match):
            train_on_shards(preset, shards, tmp_path / "run", [stage], start, device="cpu")
    with pytest.raises(ValueError, match="no set of weights 'some'; choose one of paper, all"):
        train_on_shards("tiny", shards, tmp_path / "run", [replace(stage, trainable="some")], Start(), device="cpu")
