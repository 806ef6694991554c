"""The grid at a micro budget: runs learn, are scored and resume, and need nothing that a GPU machine may lack."""

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from followclick_core.ablations.clips import make_clips
from followclick_core.ablations.grid import Grid, run_grid
from followclick_core.ablations.runs import RunParams, Workshop, frozen_autoencoder, result_path
from followclick_core.ablations.scenes import ClipParams
from followclick_core.ablations.scoring import ScoringParams
from followclick_core.ablations.variants import BASE, VARIANTS, find_variants

CPU = torch.device("cpu")
CLIPS = ClipParams(num_frames=4, train=16, held_out=2, sweep=1, pairs=4)
PARAMS = RunParams(batch_size=2, image_batch=1, scoring=ScoringParams(timesteps=(500,), steps=1))


@pytest.fixture(scope="module")
def art(art_pack, tmp_path_factory):
    path = tmp_path_factory.mktemp("art") / "art.zip"
    art_pack.save(path)
    return path


@pytest.fixture
def grid(tiny_weights, tmp_path):
    return Grid(tmp_path / "out", tiny_weights, find_variants(["base", "fps"]), 2, CLIPS, PARAMS, steps=2)


@pytest.fixture(scope="module")
def workshop(tiny_weights, art_pack, tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    make_clips(art_pack, frozen_autoencoder(tiny_weights, CPU), CLIPS, folder, 0, time.monotonic() + 600)
    return Workshop(tiny_weights, folder, CLIPS, PARAMS, CPU)


@pytest.fixture
def runs(monkeypatch):
    """What would have been trained, as (variant, seed, steps), in its order; each leaves an empty result."""
    began = []

    def run(self, variant, seed, steps, folder, max_seconds):
        began.append((variant.name, seed, steps))
        result_path(folder, variant, seed).write_text("{}")
        return True

    monkeypatch.setattr(Workshop, "run", run)
    return began


def test_the_grid_runs_all_of_a_seed_before_the_next_and_takes_up_what_is_left(grid, art, runs):
    assert not run_grid(grid, art, CPU, max_seconds=0) and not runs
    assert run_grid(grid, art, CPU)
    assert runs == [("base", 0, 2), ("fps", 0, 2), ("base", 1, 2), ("fps", 1, 2)]
    result_path(grid.folder, grid.variants[1], 0).unlink()
    runs.clear()
    assert run_grid(grid, art, CPU) and runs == [("fps", 0, 2)]
    with pytest.raises(ValueError, match="other settings"):
        run_grid(replace(grid, params=replace(PARAMS, batch_size=3)), art, CPU)


def test_a_failed_run_is_told_and_does_not_stop_the_others(grid, art, runs, monkeypatch):
    run = Workshop.run

    def fail_once(self, variant, seed, *rest):
        if (variant.name, seed) == ("base", 0):
            raise RuntimeError("no memory")
        return run(self, variant, seed, *rest)

    monkeypatch.setattr(Workshop, "run", fail_once)
    with pytest.raises(RuntimeError, match="1 runs of the grid failed"):
        run_grid(grid, art, CPU)
    assert [(variant.name, seed) for variant, seed in grid.missing()] == [("base", 0)]


def test_the_number_of_steps_is_measured_once_and_kept(grid, art, runs, monkeypatch):
    monkeypatch.setattr(Workshop, "seconds_per_step", lambda self, variant: 2.0)
    timed = replace(grid, steps=None, seconds_per_run=6.0, seeds=1, variants=(BASE,))
    assert run_grid(timed, art, CPU)
    monkeypatch.setattr(Workshop, "seconds_per_step", lambda self, variant: pytest.fail("measured again"))
    assert run_grid(replace(timed, seeds=2), art, CPU)
    assert runs == [("base", 0, 3), ("base", 1, 3)]
    with pytest.raises(ValueError, match="take 3 steps, not 4"):
        run_grid(replace(timed, seeds=3, steps=4), art, CPU)


def test_a_run_that_is_cut_short_ends_as_an_uninterrupted_one(workshop, tmp_path):
    for name in ("whole", "cut"):
        (tmp_path / name / "runs").mkdir(parents=True)
    assert workshop.run(BASE, 0, 3, tmp_path / "whole", 1e9)
    assert not workshop.run(BASE, 0, 3, tmp_path / "cut", 0)
    assert not workshop.run(BASE, 0, 3, tmp_path / "cut", 0)
    assert workshop.run(BASE, 0, 3, tmp_path / "cut", 1e9)
    whole, cut = (json.loads(result_path(tmp_path / name, BASE, 0).read_text()) for name in ("whole", "cut"))
    assert whole["scores"] == cut["scores"] and whole["variant"]["name"] == "base" and whole["steps"] == 3
    scores = whole["scores"]
    assert len(scores["obeys"]) == 2 and len(scores["sweep"]) == 1 and len(scores["sweep"][0]) == 4
    assert all(len(scores[f"pairs_{name}"]) == len(scores["pairs_clip"]) for name in ("separate", "joined"))
    assert not list((tmp_path / "cut" / "unfinished").iterdir())


def test_every_variant_trains_and_begins_like_the_others(workshop):
    beginnings = {}
    for variant in VARIANTS:
        stage, _ = workshop.stage(variant, 0, 2)
        loss, _ = stage.loss(stage.batch(0))
        loss.backward()
        assert torch.isfinite(loss)
        assert stage.module.motion.first_frame_conv.weight.grad.abs().sum() > 0
        stage.attachment.detach()
        beginnings[variant.name] = stage.module.state_dict()
    assert not any("attention_blocks.2" in key for key in beginnings["no-ma"])
    for key, value in beginnings["base"].items():
        if key.startswith(("unet.", "text.")):
            assert all(torch.equal(value, other[key]) for other in beginnings.values()), key
        assert torch.equal(value, beginnings["union"][key])
    other_seed, _ = workshop.stage(BASE, 1, 2)
    other_seed.attachment.detach()
    key = "motion.down_blocks.0.motion_modules.0.temporal_transformer.proj_in.weight"
    assert not torch.equal(other_seed.module.state_dict()[key], beginnings["base"][key])


def test_the_speed_of_a_step_is_measured(workshop):
    assert 0 < workshop.seconds_per_step(BASE, steps=1) < 60


def test_the_command_runs_in_processes_of_its_own_without_opencv_pyav_and_matplotlib(tiny_weights, art, tmp_path):
    code = (
        "import sys\n"
        "for name in ('cv2', 'av', 'matplotlib', 'torchvision'): sys.modules[name] = None\n"
        "from followclick_core.__main__ import main\n"
        "if __name__ == '__main__': sys.exit(main(sys.argv[1:]))\n"
    )
    script = tmp_path / "without.py"
    script.write_text(code)
    options = "--device cpu --steps 1 --seeds 1 --clips 16 --scenes 2 --batch 2 --frames 4 --workers 2 --variant base"
    command = [sys.executable, str(script), "ablate", "--art", str(art), "--out", str(tmp_path / "out")]
    root = str(Path(__file__).parents[3])
    done = subprocess.run(
        [*command, "--model", str(tiny_weights), *options.split(), "--variant", "no-captions"],
        capture_output=True,
        text=True,
        cwd=root,
        env={"PYTHONPATH": root, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert "are finished" in done.stdout
    assert sorted(path.name for path in (tmp_path / "out" / "runs").iterdir()) == ["base-0.json", "no-captions-0.json"]
