"""The motion stage shown what a click really gives: which masks, when, and that the run's own segmenter makes them."""

from dataclasses import replace

import pytest
import torch

from followclick_core.checkpoint import WEIGHTS_DIR, load_tensors
from followclick_core.data.scenes import SceneGenerator, SceneParams
from followclick_core.models.autoencoder import Autoencoder
from followclick_core.segment.params import SmallSamParams
from followclick_core.segment.small_sam import build_small_sam, load_small_sam, save_small_sam
from followclick_core.training import run as training_run
from followclick_core.training.click_masks import LEAST_IOU, ClickMasks
from followclick_core.training.stages import Generative, MotionStage

from .tiny_training import SIZE, TINY, TRAINING, discs

CPU = torch.device("cpu")
TINY_SAM = SmallSamParams(image_size=SIZE, embed_dim=32, num_heads=2, mlp_dim=32, iou_hidden_dim=16, trunk_width=0.25)


@pytest.fixture(scope="module")
def embedded():
    tensors, metadata = load_tensors(WEIGHTS_DIR / "segmenter.safetensors")
    return load_small_sam(tensors, metadata, "segmenter", 256)


@pytest.fixture(scope="module")
def scenes():
    """Eight pictures with a disc to click on."""
    generator = SceneGenerator(discs(), SceneParams(size=256, drawn=0.0), CPU)
    batch = generator.sample_stills(8, seed=3)
    return batch.frames[:, :, 0], batch.mask


def masks(sam, scenes, share, otherwise=None, seed=0):
    pixels, mask = scenes
    otherwise = torch.zeros_like(mask) if otherwise is None else otherwise
    return ClickMasks(sam, share)(pixels, mask, otherwise, torch.Generator().manual_seed(seed))


def iou_of(found, mask):
    both = (found * mask).sum(dim=(1, 2, 3))
    return both / (found + mask - found * mask).sum(dim=(1, 2, 3))


def test_they_are_the_segmenters_where_it_finds_the_object(embedded, scenes):
    found = masks(embedded, scenes, share=1.0)
    assert set(found.unique().tolist()) <= {0.0, 1.0}
    iou = iou_of(found, scenes[1])
    assert (iou > 0.7).sum() >= 6
    assert not torch.equal(found, scenes[1])


def test_what_is_not_the_object_is_not_taken(embedded, scenes):
    """The same pictures with the masks of others: what the segmenter finds there is hardly ever what was meant."""
    pixels, mask = scenes
    moved = mask.roll(1, dims=0)
    found = masks(embedded, (pixels, moved), share=1.0)
    taken = found.sum(dim=(1, 2, 3)) > 0
    assert not taken.all()
    assert (iou_of(found, moved)[taken] >= LEAST_IOU).all()


def test_only_a_share_is_replaced_the_same_for_the_same_random_numbers(embedded, scenes):
    otherwise = torch.full_like(scenes[1], 0.5)
    assert torch.equal(masks(embedded, scenes, 0.0, otherwise), otherwise)
    half = masks(embedded, scenes, 0.5, otherwise, seed=1)
    kept = (half == 0.5).flatten(1).all(dim=1)
    assert 0 < kept.sum() < len(kept)
    assert torch.equal(half, masks(embedded, scenes, 0.5, otherwise, seed=1))


def test_a_motion_stage_is_given_them():
    class Nothing(ClickMasks):
        def __call__(self, pixels, mask, otherwise, generator):
            assert pixels.shape == (len(mask), 3, SIZE, SIZE)
            return torch.zeros_like(mask)

    params = TRAINING.motion
    source = SceneGenerator(discs(), SceneParams(size=SIZE, drawn=0.0), CPU)
    stages = [
        MotionStage(Generative(TINY), Autoencoder().requires_grad_(False), params, TINY, source, masks)
        for masks in (None, Nothing(build_small_sam(TINY_SAM), 1.0))
    ]
    for stage in stages:
        stage.prepare(0)
    without, given = (stage.batch(0) for stage in stages)
    assert torch.equal(without["swept"], given["swept"])
    layout_mask = [batch["first_frame"][:, 0] for batch in (without, given)]
    assert layout_mask[0].any()
    assert not layout_mask[1].any()


def test_a_run_takes_its_own_segmenter_and_says_when_there_is_none(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(training_run.TRAINING, TINY.name, replace(TRAINING))
    run = training_run.RunDir(tmp_path)
    trainer = object.__new__(training_run.Trainer)
    trainer.run_dir, trainer.preset, trainer.device = run, TINY, CPU
    assert trainer._click_masks(0.0) is None
    assert not caplog.records
    assert trainer._click_masks(0.6) is None
    assert "silhouettes only" in caplog.text
    save_small_sam(run.weights / "segmenter.safetensors", build_small_sam(TINY_SAM), TINY_SAM)
    assert isinstance(trainer._click_masks(0.6), ClickMasks)
