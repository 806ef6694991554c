"""Several processes that train one model on generated scenes: they stay the same, and learn from all their clips."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from followclick_core.models.unet import load_unet
from followclick_core.training.ema import EMA
from followclick_core.training.ranks import Ranks, join_ranks
from followclick_core.training.run_dir import RunDir
from followclick_core.training.train_step import TrainStep

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
STEPS = 3

LINE = """
import sys
sys.path.insert(0, {here!r})
import torch
from followclick_core.training.ranks import join_ranks
from test_training_ranks import Line, walk
ranks, _ = join_ranks(torch.device("cpu"))
told = [ranks.agree(10.0 + ranks.rank), ranks.union(torch.tensor([ranks.rank == 0, ranks.rank == 1, False]))]
torch.save([told, walk(Line(), ranks)], f"{{sys.argv[1]}}/{{ranks.rank}}.pt")
ranks.leave()
"""

TRAIN = """
import sys
import torch
sys.path.insert(0, {here!r})
from conftest import TINY, register_tiny
from followclick_core.__main__ import main
from followclick_core.training import params
register_tiny()
loop = params.LoopParams(4, 1e-3, warmup=1, log_every=1)
still = params.AutoencoderParams(loop, batch_size=2, chunk_size=1)
spatial = params.SpatialParams(loop, batch_size=4, chunk_size=1)
motion = params.MotionTrainParams(loop, batch_size=1, chunk_size=1, pool_chunks=2, image_batch=1)
params.TRAINING["tiny"] = params.TrainParams(still, spatial, motion, still)
status = main()
assert not torch.distributed.is_initialized(), "the ranks were not left"
sys.exit(status)
"""


class Line(nn.Module):
    """A stage that fits a line; which points it sees follows from the step."""

    name, replayable, all_bfloat16 = "line", False, False

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(3, 1)
        self.register_buffer("seen", torch.zeros(64, dtype=torch.bool))

    @property
    def module(self):
        return self

    def batch(self, step):
        self.seen[step] = True
        points = torch.randn(8, 3, generator=torch.Generator().manual_seed(step))
        # Even steps pull one way and odd ones, more, the other: each process by itself would go elsewhere.
        return {"x": points, "y": (-3 if step % 2 else 1) * points.sum(1, keepdim=True)}

    def loss(self, batch):
        return (self.linear(batch["x"]) - batch["y"]).square().mean(), {}


class BothBatches(Line):
    """What two processes see together, seen by one."""

    def batch(self, step):
        return [super(BothBatches, self).batch(number) for number in (2 * step, 2 * step + 1)]

    def loss(self, batch):
        return sum(Line.loss(self, part)[0] for part in batch) / 2, {}


def walk(stage, ranks):
    """The weights after each step, and the words met."""
    step = TrainStep(stage, 0.05, 0.0, 1.0, CPU, ranks)
    weights = []
    for index in range(STEPS):
        step(stage.batch(step.own(index)))
        weights.append(stage.linear.weight.detach().clone())
    return weights, step.state(EMA(stage, 0.5))["module"]["seen"].clone()


def in_two_processes(program, tmp_path, *arguments):
    script = tmp_path / "program.py"
    script.write_text(program.format(here=str(Path(__file__).parent)))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launch, str(script), *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_two_processes_learn_what_one_would_from_all_their_batches(tmp_path):
    in_two_processes(LINE, tmp_path, tmp_path)
    (first_told, (first, first_seen)), (second_told, (second, second_seen)) = (
        torch.load(tmp_path / f"{rank}.pt") for rank in range(2)
    )
    assert all(torch.equal(one, two) for one, two in zip(first, second, strict=True))
    alone, seen = walk(BothBatches(), Ranks())
    assert all(torch.allclose(one, two, atol=2e-3) for one, two in zip(first, alone, strict=True))
    assert not torch.allclose(walk(Line(), Ranks())[0][-1], alone[-1], atol=1e-2)
    assert torch.equal(first_seen, seen) and torch.equal(second_seen, seen) and seen.sum() == 2 * STEPS
    for told, flags in (first_told, second_told):
        assert told == 10.0 and flags.tolist() == [True, True, False]


def test_the_command_trains_all_stages_in_two_processes_and_goes_on(art, tmp_path):
    art.save(tmp_path / "art.zip")
    run = tmp_path / "run"
    stages = [part for name in ("autoencoder", "spatial", "motion") for part in ("--stage", name)]
    arguments = ["train", "--preset", "tiny", "--art", tmp_path / "art.zip", "--run-dir", run, *stages]
    output = in_two_processes(TRAIN, tmp_path, *arguments, "--steps", 2, "--device", "cpu")
    assert output.count("is finished") == 1
    assert RunDir(run).load_checkpoint("motion", CPU)["step"] == 2
    in_two_processes(TRAIN, tmp_path, *arguments, "--steps", 3, "--device", "cpu")
    assert RunDir(run).load_checkpoint("motion", CPU)["step"] == 3
    assert [record["step"] for record in RunDir(run).read_log("motion")] == [1, 2, 3]
    unet = load_unet(run / "weights" / "unet.safetensors").state_dict()
    averages = RunDir(run).load_checkpoint("motion", CPU)["ema"]
    assert all(torch.equal(value, averages[f"unet.{key}"].half().float()) for key, value in unet.items())


def test_alone_a_process_is_the_first_of_one(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    ranks, device = join_ranks(CPU)
    assert ranks.is_main and (ranks.rank, ranks.count, device) == (0, 1, CPU)
    gradients = [torch.ones(3)]
    ranks.average(gradients)
    assert torch.equal(gradients[0], torch.ones(3)) and ranks.agree(2.5) == 2.5


@pytest.mark.parametrize("count", [1, 2, 3])
def test_no_two_processes_ever_share_a_number(count):
    numbers = [replace(Ranks(), rank=rank, count=count).own(step) for step in range(5) for rank in range(count)]
    assert sorted(numbers) == list(range(5 * count))
