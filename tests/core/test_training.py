"""The training loop, its parts and its stages on a tiny preset: losses fall, and resuming changes nothing."""

import functools
import itertools
import json
import math
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from followclick_core.checkpoint import CheckpointError
from followclick_core.data.scenes import SceneGenerator, SceneParams
from followclick_core.diffusion.schedule import NoiseSchedule, ScheduleParams
from followclick_core.models.autoencoder import Autoencoder
from followclick_core.models.text_encoder import END, START, UNKNOWN, tokenize
from followclick_core.models.unet import UNet, UNetParams
from followclick_core.training import loop, run
from followclick_core.training.ema import EMA
from followclick_core.training.loop import Limits, LoopParams, learning_rate, run_stage, step_generator
from followclick_core.training.pool import SamplePool
from followclick_core.training.run_dir import RunDir
from followclick_core.training.stages import (
    AutoencoderStage,
    Generative,
    MotionStage,
    SpatialStage,
    diffuse,
    drop_text,
    roughen_mask,
)

from .tiny_training import LOOP, SIZE, TINY, TRAINING, discs

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def art():
    return discs()


class RememberedScenes(SceneGenerator):
    """Scenes follow from their seed, so that tests which ask for the same ones need not wait for them again."""

    @functools.cache  # noqa: B019
    def sample(self, batch_size, seed):
        return super().sample(batch_size, seed)

    @functools.cache  # noqa: B019
    def sample_stills(self, batch_size, seed):
        return super().sample_stills(batch_size, seed)


@pytest.fixture(scope="module")
def scenes(art):
    return RememberedScenes(art, SceneParams(size=SIZE, drawn=0.0), CPU)


def make_stage(name, scenes):
    torch.manual_seed(0)
    if name == "autoencoder":
        return AutoencoderStage(Autoencoder(), TRAINING.autoencoder, scenes)
    autoencoder, model = Autoencoder().requires_grad_(False), Generative(TINY)
    if name == "spatial":
        return SpatialStage(model, autoencoder, TRAINING.spatial, TINY, scenes)
    return MotionStage(model, autoencoder, TRAINING.motion, TINY, scenes)


class Line:
    """A stage whose optimum is known: y = 3 x - 1 from noisy samples."""

    name = "line"
    replayable = all_bfloat16 = False

    def __init__(self):
        self.module = nn.Linear(1, 1)
        nn.init.zeros_(self.module.weight)
        nn.init.zeros_(self.module.bias)
        self.calls = []

    def prepare(self, step):
        self.calls.append(("prepare", step))

    def prefetch(self, step):
        self.calls.append(("prefetch", step))

    def batch(self, step):
        self.calls.append(("batch", step))
        x = torch.randn((64, 1), generator=step_generator(CPU, step))
        return {"x": x, "y": 3 * x - 1}

    def loss(self, batch):
        error = (self.module(batch["x"]) - batch["y"]).float().square().mean()
        return error, {"error": error.detach()}


# Stages


@pytest.mark.parametrize("name", ["autoencoder", "spatial", "motion"])
def test_twenty_steps_lower_the_loss_of_a_stage(name, scenes, tmp_path):
    stage = make_stage(name, scenes)
    stage.prepare(0)
    unseen = stage.batch(10_000)

    def loss():
        with torch.no_grad():
            return stage.loss(unseen)[0].item()

    before = loss()
    assert run_stage(stage, LOOP, RunDir(tmp_path), CPU, Limits())
    assert not stage.module.training and loss() < 0.93 * before
    records = [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [5, 10, 15, 20]
    assert records[-1]["loss"] < records[0]["loss"] and all(record["grad_norm"] > 0 for record in records)


@pytest.mark.parametrize("name", ["autoencoder", "spatial", "motion"])
def test_a_killed_and_resumed_stage_ends_bit_by_bit_where_an_uninterrupted_one_does(name, scenes, tmp_path):
    settings = replace(LOOP, steps=4)
    whole = make_stage(name, scenes)
    run_stage(whole, settings, RunDir(tmp_path / "whole"), CPU, Limits())

    killed = make_stage(name, scenes)
    batch = killed.batch

    def die(step):
        if step == 2:
            raise KeyboardInterrupt
        return batch(step)

    killed.batch = die
    with pytest.raises(KeyboardInterrupt):
        run_stage(killed, replace(settings, checkpoint_seconds=0), RunDir(tmp_path / "parts"), CPU, Limits())
    resumed = make_stage(name, scenes)
    for parameter in resumed.module.parameters():
        parameter.data.fill_(7)  # what it begins with may not matter
    seen = []
    batch_again = resumed.batch
    resumed.batch = lambda step: seen.append(step) or batch_again(step)
    run_stage(resumed, settings, RunDir(tmp_path / "parts"), CPU, Limits())
    assert seen == [2, 3]
    for key, value in whole.module.state_dict().items():
        assert torch.equal(resumed.module.state_dict()[key], value), key


def test_the_motion_stage_trains_every_part_of_the_motion_model(scenes):
    stage = make_stage("motion", scenes)
    generator = torch.Generator().manual_seed(0)
    for parameter in stage.module.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    stage.prepare(0)
    stage.loss(stage.batch(0))[0].backward()
    still = [name for name, p in stage.module.named_parameters() if p.grad is None or not p.grad.any()]
    assert still == []


def test_a_motion_batch_is_a_noised_clip_with_its_first_frame_beside_it(scenes):
    stage = make_stage("motion", scenes)
    stage.params = replace(stage.params, masked_share=0.0, text_dropout=0.0, word_dropout=0.0)
    stage.prepare(0)
    batch = stage.batch(0)
    side = SIZE // 8
    assert batch["x_t"].shape == batch["v"].shape == (2, 4, 16, side, side)
    schedule = NoiseSchedule(TINY.motion.schedule)
    clean = schedule.predict_x_0(batch["x_t"], batch["v"], batch["t"])
    # The default layout shows mask and first frame on all frames.
    assert TINY.motion.layout == "repeat"
    for frame in (0, 7, 15):
        torch.testing.assert_close(batch["first_frame"][:, 1:, frame], clean[:, :, 0], atol=1e-3, rtol=1e-3)
        assert torch.equal(batch["first_frame"][:, 0, frame], batch["first_frame"][:, 0, 0])
    mask = batch["first_frame"][:, 0, 0]
    assert mask.min() >= 0 and mask.max() <= 1 and (mask.flatten(1).amax(1) > 0).all()
    assert (batch["swept"][:, 0][mask > 0.99] == 1).all()  # what moves sweeps over where it began


def test_the_first_frame_is_masked_in_the_share_of_samples_and_positions_asked_for(scenes):
    stage = make_stage("motion", scenes)
    latents, mask = torch.ones(400, 4, 8, 8), torch.ones(400, 1, 8, 8)
    shown = stage._condition(latents, mask, torch.Generator().manual_seed(0))[:, 1, 0]
    zeroed = 1 - shown.flatten(1).mean(1)
    masked = zeroed > 0
    assert masked.float().mean().item() == pytest.approx(TRAINING.motion.masked_share, abs=0.1)
    assert zeroed[masked].mean().item() == pytest.approx(TRAINING.motion.mask_ratio, abs=0.02)


def test_diffusing_is_adding_noise_at_random_timesteps():
    schedule = NoiseSchedule(ScheduleParams())
    x_0 = torch.randn((500, 4, 1, 2, 2), generator=torch.Generator().manual_seed(0))
    first, again = (diffuse(x_0, schedule, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first["x_t"], again["x_t"])
    torch.testing.assert_close(schedule.predict_x_0(first["x_t"], first["v"], first["t"]), x_0, atol=1e-4, rtol=1e-4)
    noise = schedule.predict_noise(first["x_t"], first["v"], first["t"])
    assert noise.std().item() == pytest.approx(1, abs=0.05) and abs((noise * x_0).mean().item()) < 0.05
    assert first["t"].min() < 20 and first["t"].max() > 980
    assert first["t"].float().mean().item() == pytest.approx(499.5, abs=40)


def test_some_timesteps_are_drawn_among_the_noisy_ones_only():
    schedule, latents = NoiseSchedule(ScheduleParams()), torch.zeros(4000, 1, 1, 1, 1)
    t = diffuse(latents, schedule, torch.Generator().manual_seed(0), noisy_share=0.5, noisy_from=300)["t"]
    # Half of the samples are uniform, so half of 30 % lie below.
    assert (t < 300).float().mean().item() == pytest.approx(0.15, abs=0.03)
    assert t.max() > 990 and t.min() < 10


def test_weights_without_some_branches_grow_into_a_model_that_computes_the_same():
    smaller, larger = (UNet(UNetParams(32, (1, 2), 1, depth, 1, 2, 16)) for depth in ((0, 1), (1, 1)))
    torch.nn.init.normal_(smaller.out[2].weight)
    x, t, context = torch.randn(2, 4, 8, 8), torch.tensor([3, 400]), torch.randn(2, 5, 16)
    run.grow_into(larger, smaller.state_dict())
    torch.testing.assert_close(larger(x, t, context), smaller(x, t, context))
    assert len(larger.state_dict()) > len(smaller.state_dict())


def test_weights_of_another_architecture_do_not_grow():
    other = UNet(UNetParams(32, (1, 2), 1, (1, 1), 1, 2, 24))
    with pytest.raises(CheckpointError, match="another architecture"):
        run.grow_into(UNet(UNetParams(32, (1, 2), 1, (1, 1), 1, 2, 16)), other.state_dict())


def test_dropped_texts_are_the_empty_prompt_and_dropped_words_the_unknown_one():
    tokens = tokenize(["flap the wings"] * 2000)
    generator = torch.Generator().manual_seed(0)
    dropped = drop_text(tokens, 0.1, 0.0, generator)
    empty = (dropped == tokenize([""])).all(1)
    assert empty.float().mean().item() == pytest.approx(0.1, abs=0.03)
    assert torch.equal(dropped[~empty], tokens[~empty])
    worn = drop_text(tokens, 0.0, 0.03, generator)
    assert (worn[:, 0] == START).all() and (worn[:, 4:] == END).all()
    unknown = worn[:, 1:4] == UNKNOWN
    assert unknown.float().mean().item() == pytest.approx(0.03, abs=0.015)
    assert torch.equal(worn[:, 1:4][~unknown], tokens[:, 1:4][~unknown])
    assert torch.equal(drop_text(tokens, 0.0, 0.0, generator), tokens)


def test_a_roughened_mask_stays_near_its_mask():
    mask = torch.zeros(20, 1, 96, 96)
    mask[..., 24:72, 30:70] = 1
    rough = roughen_mask(mask, torch.Generator().manual_seed(0))
    assert set(rough.unique().tolist()) == {0.0, 1.0}
    changed = (rough != mask).sum((1, 2, 3))
    assert (changed > 0).all() and changed.max() < 0.2 * mask[0].sum()
    assert not rough[..., :21, :].any() and (rough[..., 28:68, 34:66] == 1).all()
    assert len({tuple(row) for row in rough.flatten(1).tolist()}) == 20


# The loop


def test_the_learning_rate_rises_stays_and_falls_to_zero():
    settings = LoopParams(steps=1000, learning_rate=0.01, warmup=100, decay_from=0.6)
    rates = [learning_rate(settings, step, step / 1000) for step in range(1001)]
    assert rates[0] == pytest.approx(0.01 / 100) and rates[49] == pytest.approx(0.005)
    assert rates[99:600] == pytest.approx([0.01] * 501)
    assert rates[800] == pytest.approx(0.005) and rates[1000] == 0
    assert all(later < earlier for earlier, later in itertools.pairwise(rates[601:]))


def test_a_short_stage_does_not_spend_itself_on_the_rise():
    settings = LoopParams(steps=400, learning_rate=0.01, warmup=200, decay_from=1.0)
    rates = [learning_rate(settings, step, step / 400) for step in range(400)]
    assert rates[0] == pytest.approx(0.01 / 200) and rates[20] == pytest.approx(0.005)
    assert rates[40:] == pytest.approx([0.01] * 360)
    # Most of a time budget may be gone before the first step; the optimizer's averages are still empty then.
    late = [learning_rate(settings, step, 0.5) for step in range(40)]
    assert late == pytest.approx([0.01 * min(1, (step + 1) / 20) for step in range(40)])


def test_the_loop_gives_each_step_its_rate_and_finds_the_line(tmp_path, monkeypatch):
    rates = []
    monkeypatch.setattr(loop.TrainStep, "set_learning_rate", recorder(rates, loop.TrainStep.set_learning_rate))
    stage, settings = Line(), LoopParams(steps=400, learning_rate=0.05, warmup=5, weight_decay=0.0, ema_decay=0.9)
    assert run_stage(stage, settings, RunDir(tmp_path), CPU, Limits())
    assert rates == [learning_rate(settings, step, step / 400) for step in range(400)]
    assert stage.module.weight.item() == pytest.approx(3, abs=0.05)
    assert stage.module.bias.item() == pytest.approx(-1, abs=0.05)
    assert stage.calls[0] == ("prepare", 0)
    assert stage.calls[1:5] == [("batch", 0), ("prefetch", 1), ("batch", 1), ("prefetch", 2)]


def recorder(values, method):
    def record(self, value):
        values.append(value)
        method(self, value)

    return record


def test_the_loop_leaves_the_averaged_weights_in_the_module(tmp_path):
    stage = Line()
    settings = LoopParams(steps=6, learning_rate=0.1, warmup=1, ema_decay=0.5)
    run_stage(stage, settings, RunDir(tmp_path), CPU, Limits())
    state = RunDir(tmp_path).load_checkpoint("line", CPU)
    assert stage.module.weight.item() == state["ema"]["weight"].item() != state["module"]["weight"].item()


@pytest.mark.parametrize(("steps", "every"), [(20, None), (9, None), (20, 8)], ids=["log", "end", "checkpoint"])
def test_a_loss_that_is_no_number_is_never_saved(tmp_path, steps, every):
    stage, settings = Line(), LoopParams(steps=steps, learning_rate=0.01, log_every=10, checkpoint_every=every)
    run_stage(stage, replace(settings, steps=6), RunDir(tmp_path), CPU, Limits())
    stage.loss = lambda batch: (stage.module.weight.sum() * math.nan, {})
    with pytest.raises(FloatingPointError, match="line has a loss of nan"):
        run_stage(stage, settings, RunDir(tmp_path), CPU, Limits())
    state = RunDir(tmp_path).load_checkpoint("line", CPU)
    assert state["step"] == 6 and torch.isfinite(state["module"]["weight"]).all()


def test_max_seconds_stops_and_the_next_command_goes_on(tmp_path):
    stage, settings = Line(), LoopParams(steps=10**6, learning_rate=0.01)
    started = time.monotonic()
    assert not run_stage(stage, settings, RunDir(tmp_path), CPU, Limits(max_seconds=0.3))
    assert time.monotonic() - started < 5
    done = RunDir(tmp_path).load_checkpoint("line", CPU)["step"]
    assert 0 < done < 10**6
    again = Line()
    assert not run_stage(again, settings, RunDir(tmp_path), CPU, Limits(max_seconds=0.0))
    assert again.calls[:2] == [("prepare", done), ("batch", done)]


def test_a_time_budget_ends_a_stage_on_a_finished_schedule(tmp_path, monkeypatch):
    rates, ticks = [], itertools.count(0, 0.01)
    # A clock of its own: on a busy machine a single step may take as long as the whole fall of the rate.
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: next(ticks)))
    monkeypatch.setattr(loop.TrainStep, "set_learning_rate", recorder(rates, loop.TrainStep.set_learning_rate))
    settings = LoopParams(steps=10**6, learning_rate=0.01, warmup=1)
    assert run_stage(Line(), settings, RunDir(tmp_path), CPU, Limits(time_budget=0.5))
    assert rates[0] == 0.01 and 0 <= rates[-1] < 0.002
    # It is spent: another command does nothing more.
    again = Line()
    assert run_stage(again, settings, RunDir(tmp_path), CPU, Limits(time_budget=0.5)) and again.calls == []


def test_a_finished_stage_is_not_trained_again(tmp_path):
    settings = LoopParams(steps=4, learning_rate=0.01)
    first, again = Line(), Line()
    run_stage(first, settings, RunDir(tmp_path), CPU, Limits())
    assert run_stage(again, settings, RunDir(tmp_path), CPU, Limits())
    assert again.calls == [] and torch.equal(again.module.weight, first.module.weight)


def test_random_numbers_of_a_step_depend_on_the_step_and_its_salt():
    def draw(step, salt):
        return torch.rand(4, generator=step_generator(CPU, step, salt)).tolist()

    assert draw(5, 0) == draw(5, 0)
    assert len({tuple(draw(step, salt)) for step in range(50) for salt in range(4)}) == 200


# EMA, pool, run directory


def test_the_average_is_its_closed_form():
    module = nn.Linear(1, 1, bias=False)
    values = [2.0, -1.0, 4.0, 0.5, 3.0]
    module.weight.data.fill_(values[0])
    ema = EMA(module, decay=0.3)
    expected = values[0]
    for step, value in enumerate(values[1:]):
        module.weight.data.fill_(value)
        ema.update(step)
        decay = min(0.3, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
    assert ema.averages["weight"].item() == pytest.approx(expected)
    # Early steps count more: the first decays are 1/10 and 2/11, not 0.3.
    weights = [0.1 * (2 / 11) * 0.25 * 0.3, 0.9 * (2 / 11) * 0.25 * 0.3, (9 / 11) * 0.25 * 0.3, 0.75 * 0.3, 0.7]
    assert expected == pytest.approx(sum(w * v for w, v in zip(weights, values, strict=True)), rel=0.05)
    other = EMA(nn.Linear(1, 1, bias=False), 0.3)
    other.load_state_dict(ema.state_dict())
    other.copy_to(module)
    assert module.weight.item() == pytest.approx(expected)


def test_what_a_pool_holds_depends_on_the_step_alone():
    def chunk(seed):
        return {"seed": torch.tensor([seed, seed]), "noise": torch.rand(2, generator=step_generator(CPU, seed))}

    walked, jumped = SamplePool(chunk, 4, CPU), SamplePool(chunk, 4, CPU)
    walked.refill(0)
    for step in range(1, 11):
        walked.advance(step)
    jumped.refill(10)
    for step in (10, 11, 12):
        first, second = walked.draw(6, step), jumped.draw(6, step)
        assert torch.equal(first["seed"], second["seed"]) and torch.equal(first["noise"], second["noise"])
        walked.advance(step + 1)
        jumped.advance(step + 1)
    # The last four chunks, each sample once, its tensors together.
    everything = walked.draw(8, 13)
    seeds = everything["seed"].tolist()
    assert sorted(seeds) == sorted([*range(min(seeds), min(seeds) + 4)] * 2)
    assert all(value in chunk(seed)["noise"] for seed, value in zip(seeds, everything["noise"], strict=True))
    assert walked.draw(8, 13)["seed"].tolist() == seeds != walked.draw(8, 14)["seed"].tolist()


def test_every_step_makes_one_new_chunk():
    made = []
    pool = SamplePool(lambda seed: made.append(seed) or {"x": torch.tensor([seed])}, 4, CPU)
    pool.refill(0)
    assert len(made) == 4
    pool.advance(1)
    assert len(made) == len(set(made)) == 5 and max(made) not in made[:4]


def test_a_run_folder_keeps_configuration_log_and_the_newest_state(tmp_path):
    folder = RunDir(tmp_path / "run")
    folder.save_config({"preset": "tiny", "steps": 3})
    folder.log("motion", {"step": 50, "loss": 0.5})
    folder.log("motion", {"step": 100, "loss": 0.25})
    assert folder.load_checkpoint("motion", CPU) is None
    for step in (1, 2):
        folder.save_checkpoint("motion", {"step": step, "module": {"w": torch.full((2,), float(step))}})
    assert json.loads((tmp_path / "run" / "config.json").read_text()) == {"preset": "tiny", "steps": 3}
    lines = [json.loads(line) for line in (tmp_path / "run" / "motion" / "log.jsonl").read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in lines] == [(50, 0.5), (100, 0.25)]
    state = RunDir(tmp_path / "run").load_checkpoint("motion", CPU)
    assert state["step"] == 2 and state["module"]["w"].tolist() == [2, 2]
    assert sorted(path.name for path in (tmp_path / "run" / "motion").iterdir()) == ["checkpoint.pt", "log.jsonl"]


def test_an_interrupted_save_keeps_the_checkpoint_before(tmp_path, monkeypatch):
    folder = RunDir(tmp_path)
    folder.save_checkpoint("motion", {"step": 1})

    def interrupted(_state, path):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        folder.save_checkpoint("motion", {"step": 2})
    assert folder.load_checkpoint("motion", CPU) == {"step": 1}
    assert [path.name for path in (tmp_path / "motion").iterdir()] == ["checkpoint.pt"]
