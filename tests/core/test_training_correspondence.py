"""Attention taught where a moved point comes from: the places, their origins, and what the loss asks of one head."""

from dataclasses import replace

import pytest
import torch

from followclick_core.data.scenes import SceneGenerator, SceneParams
from followclick_core.models.autoencoder import Autoencoder
from followclick_core.models.blocks import SpatialTransformer
from followclick_core.models.unet import UNet, UNetParams
from followclick_core.training.correspondence import NOWHERE, CorrespondenceLoss, draw_places
from followclick_core.training.loop import LoopParams
from followclick_core.training.params import MotionTrainParams
from followclick_core.training.stages import Generative, MotionStage
from followclick_core.training.train_step import TrainStep

CPU = torch.device("cpu")
PARAMS = MotionTrainParams(
    LoopParams(steps=20, learning_rate=1e-3), 2, 2, pool_chunks=1, image_batch=1, correspondence_weight=1.0
)


@pytest.fixture(scope="module")
def scenes(art):
    return SceneGenerator(art, SceneParams(size=64, drawn=0.0), CPU)


def test_a_scene_says_where_what_is_seen_was_in_the_first_frame(scenes):
    batch = scenes.sample(4, seed=1, verbs=["move right", "move up", "spin", "grow"])
    seen = batch.origins[:, 0] >= 0
    middles = batch.object_masks[:, :, 4::8, 4::8] > 0
    # Not all: what something hid in the first frame has no origin there.
    assert (seen <= middles).all() and seen.sum() > 0.8 * middles.sum() and seen.flatten(1).any(1).all()
    for clip in range(4):
        frame, row, column = torch.where(seen[clip])
        x, y = batch.origins[clip, :, frame, row, column].floor().long().clamp(0, 63)
        now = batch.frames[clip][:, frame, 8 * row + 4, 8 * column + 4]
        then, elsewhere = batch.frames[clip][:, 0, y, x], batch.frames[clip][:, 0, 8 * row + 4, 8 * column + 4]
        assert (now - then).abs().mean() < 0.6 * (now - elsewhere).abs().mean()


def test_in_the_first_frame_everything_comes_from_where_it_is(scenes):
    origins = scenes.sample(2, seed=3).origins[:, :, 0]
    clip, row, column = torch.where(origins[:, 0] >= 0)
    x, y = origins[clip, :, row, column].unbind(1)
    assert torch.allclose(x, 8 * column + 4.5, atol=0.01) and torch.allclose(y, 8 * row + 4.5, atol=0.01)


def test_places_are_where_the_object_is_seen_and_none_comes_twice():
    origins = torch.full((1, 2, 2, 4, 4), -1.0)
    origins[0, :, 0, 1, 2] = torch.tensor([17.0, 9.0])
    origins[0, :, 0, 3, 3] = torch.tensor([0.0, 31.9])
    origins[0, :, 1, 0, 0] = torch.tensor([33.0, 1.0])  # beyond the right edge of frame 0
    place, origin = draw_places(origins, 8, 5, torch.Generator().manual_seed(0))
    assert place.shape == origin.shape == (1, 2, 5)
    assert dict(zip(place[0, 0].tolist(), origin[0, 0].tolist(), strict=True)).items() >= {6: 6, 15: 12}.items()
    assert (origin[0, 0] == NOWHERE).sum() == 3 and (origin[0, 1] == NOWHERE).all()
    assert len(set(place[0, 1].tolist())) == 5


def test_of_an_object_of_many_cells_other_places_are_drawn_each_time():
    origins = torch.full((1, 2, 1, 8, 8), 20.0)
    draws = {
        tuple(draw_places(origins, 8, 4, torch.Generator().manual_seed(seed))[0].flatten().tolist())
        for seed in range(5)
    }
    assert len(draws) > 1


def watched_unet(num_heads=2):
    torch.manual_seed(0)
    unet = UNet(UNetParams(32, (1, 2), 1, (1, 1), 1, num_heads, 16))
    loss = CorrespondenceLoss(unet)
    loss.recording = True
    unet(torch.randn(3, 4, 6, 8), torch.full((3,), 500), torch.randn(3, 5, 16))
    return loss


def test_the_loss_is_the_entropy_of_the_first_heads_true_weights():
    place, origin = torch.tensor([[[9, 20], [3, 30], [0, 47]]]), torch.tensor([[[40, 2], [3, 17], [5, NOWHERE]]])
    loss = watched_unet()
    expected = []
    for attention, scale in loss._watched:
        x = loss._inputs[attention]
        q, k = (linear(x)[..., : x.shape[-1] // 2] for linear in (attention.to_q, attention.to_k))
        weights = (q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).softmax(-1)
        for frame in range(3):
            for at, to in zip(place[0, frame].tolist(), origin[0, frame].tolist(), strict=True):
                if to != NOWHERE:
                    at, to = ((cell // 8 // scale) * (8 // scale) + cell % 8 // scale for cell in (at, to))
                    expected.append(-weights[frame, at, to].log())
    assert len(expected) == 4 * 5  # two output blocks at each of two levels
    assert torch.allclose(loss(place, origin, 8), torch.stack(expected).mean(), atol=1e-5)


def test_other_heads_are_left_free():
    loss = watched_unet()
    loss(torch.tensor([[[9], [3], [0]]]), torch.tensor([[[40], [3], [5]]]), 8).backward()
    for attention, _ in loss._watched:
        for weight in (attention.to_q.weight, attention.to_k.weight):
            half = len(weight) // 2
            assert weight.grad[:half].any() and not weight.grad[half:].any()


def test_where_nothing_is_known_the_loss_is_nothing():
    loss = watched_unet()
    nowhere = torch.full((1, 3, 4), NOWHERE)
    assert loss(torch.zeros_like(nowhere), nowhere, 8) == 0


def test_training_teaches_it_and_leaves_the_model_as_it_is_built(scenes, monkeypatch, tiny_stage):
    from followclick_core.presets import get_preset

    preset = get_preset("tiny")
    preset = replace(preset, unet=replace(preset.unet, transformer_depth=(1, 1)))
    torch.manual_seed(0)
    model = Generative(preset)
    names = set(model.state_dict())
    stage = MotionStage(model, Autoencoder().requires_grad_(False), PARAMS, preset, scenes)
    step = TrainStep(stage, 2e-3, 0.0, 1.0, CPU)
    stage.prepare(0)
    batch = stage.batch(0)  # always the same: that it can be learned at all
    figures = [float(step(batch)["correspondence"]) for _ in range(12)]
    assert figures[-1] < 0.9 * figures[0]
    assert set(model.state_dict()) == names


def test_compiled_attentions_that_are_watched_run_as_written():
    unet = UNet(UNetParams(32, (1, 2), 1, (1, 1), 1, 2, 16))
    attentions = [module for module in unet.modules() if isinstance(module, SpatialTransformer)]
    for module in attentions:
        module.forward = torch.compile(module.forward, backend="eager")
    CorrespondenceLoss(unet)
    assert sum("forward" not in vars(module) for module in attentions) == 4


def test_what_something_hides_in_the_first_frame_comes_from_nowhere(scenes):
    for seed in range(4):
        batch = scenes.sample(3, seed=seed)
        clip, frame, row, column = torch.where(batch.origins[:, 0] >= 0)
        x, y = batch.origins[clip, :, frame, row, column].floor().long().unbind(1)
        inside = (x < 64) & (y < 64)
        # Half a pixel of the warp's own rounding is forgiven at the outline.
        grown = torch.nn.functional.max_pool2d(batch.mask, 3, 1, 1)[:, 0]
        assert grown[clip[inside], y[inside], x[inside]].all()


def test_a_unet_without_attention_there_is_refused():
    with pytest.raises(ValueError, match="correspondence_weight to 0"):
        CorrespondenceLoss(UNet(UNetParams(32, (1, 1, 2), 1, (0, 0, 1), 1, 2, 16)))
