"""Training in processes of its own: killed at any moment, shared among ranks, sharded, and told what it cannot do."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from followclick_core.checkpoint import load_safetensors
from followclick_core.training.run_dir import RunDir

ROOT = Path(__file__).resolve().parents[2]
# The command line with the preset `tiny`; one thread per process, as two of them share this machine.
PROGRAM = """
import sys
sys.path.insert(0, {here!r})
from conftest import register_tiny
register_tiny()
from followclick_core.__main__ import main
status = main()
if "torch.distributed" in sys.modules:
    assert not sys.modules["torch.distributed"].is_initialized(), "the ranks were not left"
sys.exit(status)
"""


@pytest.fixture(scope="session")
def program(tmp_path_factory):
    path = tmp_path_factory.mktemp("program") / "followclick_tiny.py"
    path.write_text(PROGRAM.format(here=str(Path(__file__).parent)))
    return path


def start(program, shards, run, *arguments, ranks=1, **environment):
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    command = [*(launch if ranks > 1 else [sys.executable]), str(program)]
    command += ["train", "--preset", "tiny", "--data", str(shards), "--run-dir", str(run), *arguments]
    command += ["--device", "cpu"]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def train(program, shards, run, *arguments, ranks=1, **environment):
    process = start(program, shards, run, *arguments, ranks=ranks, **environment)
    output = output_of(process)
    assert process.returncode == 0, output
    return output


def output_of(process, timeout=240):
    """What a process and those it has started say; they are ended if that takes too long."""
    try:
        return process.communicate(timeout=timeout)[0]
    except BaseException:
        # torchrun puts its ranks into groups of their own, and ends them itself when it is asked to.
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.communicate(timeout=40)
                break
        raise


def processes(run, stage="captions"):
    return json.loads((run / stage / "config.json").read_text())["processes"]


def checkpoint(run, stage="captions"):
    return torch.load(run / stage / "checkpoint.pt", weights_only=True)


def assert_same(first, second):
    """Every tensor of two checkpoints, to the bit."""
    assert first["step"] == second["step"]
    for part in ("module", "ema"):
        assert first[part].keys() == second[part].keys()
        assert all(torch.equal(value, second[part][key]) for key, value in first[part].items())
    for index, entry in first["optimizer"]["state"].items():
        assert all(torch.equal(value, second["optimizer"]["state"][index][key]) for key, value in entry.items())


def assert_equal_but_for_rounding(first, second):
    """AdamW turns the rounding of a gradient that should be zero (a bias before a norm) into a step of a tenth of the
    learning rate, 1e-3; all other weights agree to 1e-5."""
    assert first["step"] == second["step"]
    for part in ("module", "ema"):
        assert first[part].keys() == second[part].keys()
        differences = torch.cat([(value - second[part][key]).abs().flatten() for key, value in first[part].items()])
        assert differences.max() < 1e-3 and (differences > 1e-5).float().mean() < 1e-3


def test_killed_at_any_moment_the_same_command_goes_on_bit_by_bit(program, shards, tmp_path):
    options = ("--stage", "captions", "--steps", "24", "--checkpoint-every", "3", "--validation-every", "8")
    train(program, shards, tmp_path / "whole", *options)
    killed = 0
    for attempt in range(8):
        process = start(program, shards, tmp_path / "killed", *options)
        log = tmp_path / "killed" / "captions" / "log.jsonl"
        begun, deadline = log.stat().st_size if log.is_file() else 0, time.monotonic() + 120
        # A while after it has begun to train, each time another one.
        while process.poll() is None and (not log.is_file() or log.stat().st_size <= begun):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        time.sleep(0.13 * attempt)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        killed += process.returncode == -signal.SIGKILL
        if (tmp_path / "killed" / "weights" / "motion.safetensors").is_file() or killed == 3:
            break
    assert killed >= 2
    train(program, shards, tmp_path / "killed", *options)
    assert_same(checkpoint(tmp_path / "whole"), checkpoint(tmp_path / "killed"))
    for part in ("unet", "motion", "text_encoder"):
        first, second = (
            load_safetensors(tmp_path / run / "weights" / f"{part}.safetensors")[0] for run in ("whole", "killed")
        )
        assert all(torch.equal(value, second[key]) for key, value in first.items())

    def figures(run):
        records = RunDir(tmp_path / run).read_log("captions")
        return [(r["step"], r.get("loss"), r.get("validation_loss")) for r in records]

    assert figures("whole") == figures("killed")


@pytest.fixture(scope="module")
def alone(program, shards, tmp_path_factory):
    """One rank, four micro-batches of one clip a step."""
    run = tmp_path_factory.mktemp("alone")
    train(program, shards, run, "--stage", "captions", "--micro-batch", "1", "--steps", "6")
    return run


def test_two_ranks_train_what_one_does_by_accumulation(program, shards, alone, tmp_path):
    train(program, shards, tmp_path, "--stage", "captions", "--micro-batch", "1", "--steps", "6", ranks=2)
    assert (processes(alone), processes(tmp_path)) == (1, 2)
    assert_equal_but_for_rounding(checkpoint(alone), checkpoint(tmp_path))
    first, second = ([r["loss"] for r in RunDir(run).read_log("captions") if "loss" in r] for run in (alone, tmp_path))
    assert first == pytest.approx(second, abs=2e-4) and len(first) == 6
    assert RunDir(tmp_path).read_log("captions")[-1]["validation_loss"] == pytest.approx(
        RunDir(alone).read_log("captions")[-1]["validation_loss"], rel=1e-3
    )


def test_weights_sharded_over_two_ranks_train_the_same_and_go_on_with_one(program, shards, alone, tmp_path):
    options = ("--stage", "captions", "--micro-batch", "1")
    train(program, shards, tmp_path, *options, "--steps", "4", ranks=2, ACCELERATE_USE_FSDP="true")
    state = checkpoint(tmp_path)
    assert all(type(value) is torch.Tensor for value in state["module"].values())
    # The file is whole, so another number of processes can take it up.
    train(program, shards, tmp_path, *options, "--steps", "6")
    assert_equal_but_for_rounding(checkpoint(alone), checkpoint(tmp_path))
    assert (tmp_path / "weights" / "unet.safetensors").is_file()


def test_accelerates_own_launcher_starts_it(program, shards, tmp_path):
    arguments = ["train", "--preset", "tiny", "--data", str(shards), "--run", str(tmp_path), "--device", "cpu"]
    # On CPUs it starts one process on a machine, whatever it is told.
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1", str(program)]
    process = subprocess.Popen(
        [*launch, *arguments, "--steps", "2", "--stage", "captions"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    output = output_of(process)
    assert process.returncode == 0, output
    assert processes(tmp_path) == 1 and checkpoint(tmp_path)["step"] == 2


def test_both_stages_follow_each_other_on_two_ranks(program, shards, tmp_path):
    output = train(program, shards, tmp_path, "--steps", "2", ranks=2)
    # Only one of the two speaks.
    assert output.count("is finished") == 1
    assert processes(tmp_path, "captions") == processes(tmp_path, "motion-captions") == 2
    assert checkpoint(tmp_path, "captions")["step"] == checkpoint(tmp_path, "motion-captions")["step"] == 2


def test_a_time_limit_ends_all_ranks_together(program, shards, tmp_path):
    output = train(program, shards, tmp_path, "--steps", "100000", "--max-seconds", "2", ranks=2)
    assert "is not finished; the same command goes on with it" in output
    assert 0 < checkpoint(tmp_path)["step"] < 100_000


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--micro-batch", "3"], "A batch of 4 clips cannot be cut into micro-batches of 3"),
        (["--mask-ratio", "most"], "The mask ratio"),
        (["--stage", "titles"], "There is no stage 'titles' for training on shards; choose one of captions"),
        (["--train", "everything"], "There is no set of weights 'everything'"),
        (["--train", "motion-lora", "--base", "demo"], "demo is not of the preset tiny"),
        (["--art", "art.zip"], "Give --art to train on generated scenes or --data to train on shards"),
        (["--compile"], "--compile is for training on generated scenes"),
        (["--prediction", "noise"], "There is no prediction 'noise'"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(program, shards, tmp_path, arguments, sentence):
    process = start(program, shards, tmp_path / "run", *arguments)
    output = output_of(process, 120)
    assert process.returncode == 2 and output.startswith("followclick: ") and sentence in output, output
    assert not (tmp_path / "run" / "captions" / "checkpoint.pt").is_file()


def test_options_of_shards_are_refused_on_scenes(program, tmp_path):
    command = [sys.executable, str(program), "train", "--preset", "nano", "--art", "x.zip", "--run", str(tmp_path)]
    answer = subprocess.run([*command, "--mask-ratio", "0.5"], cwd=ROOT, capture_output=True, text=True)
    assert answer.returncode == 2 and "--mask-ratio is for training on shards; leave it out" in answer.stderr
