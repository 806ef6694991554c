"""The still gate taught what stands still: which cells do, and that the motion stage asks and logs it."""

from dataclasses import replace

import pytest
import torch

from followclick_core.data.scenes import SceneGenerator, SceneParams
from followclick_core.models.autoencoder import Autoencoder
from followclick_core.presets import Preset, get_preset
from followclick_core.training.loop import LoopParams
from followclick_core.training.params import MotionTrainParams
from followclick_core.training.stages import Generative, MotionStage
from followclick_core.training.still_loss import still_cells
from followclick_core.training.train_step import TrainStep

CPU = torch.device("cpu")
PARAMS = MotionTrainParams(LoopParams(steps=20, learning_rate=1e-2), 2, 2, pool_chunks=1, image_batch=1)


def test_cells_stand_still_where_they_are_those_of_the_first_frame():
    latents = torch.randn(2, 4, 1, 3, 3, generator=torch.Generator().manual_seed(0)).expand(-1, -1, 5, -1, -1).clone()
    latents[1, 2, 3, 0, 1] += 0.2  # one channel of one cell: 0.04 / 4 of mean square
    latents[0, :, 4] += 0.01
    still = still_cells(latents)
    assert still.shape == (2, 1, 5, 3, 3)
    moved = torch.where(still == 0)
    assert [int(each) for each in moved] == [1, 0, 3, 0, 1]


@pytest.fixture(scope="module")
def nano() -> Preset:
    nano = get_preset("nano")
    assert nano.motion.still_gate
    return replace(nano, size=64)


def stage_of(art, preset, params=PARAMS) -> MotionStage:
    torch.manual_seed(0)
    scenes = SceneGenerator(art, SceneParams(size=preset.size, drawn=0.0), CPU)
    stage = MotionStage(Generative(preset), Autoencoder().requires_grad_(False), params, preset, scenes)
    stage.prepare(0)
    return stage


def test_a_motion_stage_learns_it(art, nano):
    stage = stage_of(art, nano)
    step, batch = TrainStep(stage, 1e-2, 0.0, 1.0, CPU), stage.batch(0)
    assert set(batch["unchanged"].unique().tolist()) <= {0.0, 1.0} and (batch["unchanged"][:, :, 0] == 1).all()
    figures = [float(step(batch)["still"]) for _ in range(8)]
    assert figures[-1] < 0.5 * figures[0]


def test_without_its_weight_or_the_gate_nothing_is_asked(art, nano):
    for preset, params in (
        (nano, replace(PARAMS, still_weight=0.0)),
        (replace(nano, motion=replace(nano.motion, still_gate=False)), PARAMS),
    ):
        stage = stage_of(art, preset, params)
        batch = stage.batch(0)
        assert "unchanged" not in batch
        assert "still" not in stage.loss(batch)[1]
