"""Approximate sampling by the core, and the parts of exact acceleration that need no host."""

import logging
from dataclasses import replace

import pytest
import torch
from torch import nn

from followclick_core.acceleration.crop import LatentBox, box_share, latent_box
from followclick_core.acceleration.feature_reuse import (
    FeatureCache,
    ReuseParams,
    shallow_call,
    watched_feature,
)
from followclick_core.acceleration.forwards import exchanged_forwards, has_inner_hooks
from followclick_core.acceleration.memory_format import channels_last
from followclick_core.acceleration.recorded import CALLS_BEFORE_RECORDING, RecordedCalls
from followclick_core.generate import SamplingParams, generate_latents
from followclick_core.models.bundle import ModelBundle
from followclick_core.models.motion_model import MotionModel, MotionParams
from followclick_core.models.text_encoder import TextEncoder, TextEncoderParams
from followclick_core.models.unet import UNet, UNetParams
from followclick_core.presets import Preset

PARAMS = SamplingParams(num_frames=3, steps=6, guidance_scale=3.0)
UNRELATED = 0.8  # of random weights, whose features change much from step to step; clips of other seeds are 1.4 apart


def randomised(module):
    generator = torch.Generator().manual_seed(1)
    for parameter in module.parameters():
        parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator) + (parameter.data.mean() == 1)
    return module.eval()


class Pooled(nn.Module):
    """Means of 8x8 pixels in place of an autoencoder's latents."""

    def encode(self, pixels):
        small = nn.functional.avg_pool2d(pixels, 8)
        return torch.cat([small, small[:, :1]], dim=1) * 2 - 1


@pytest.fixture(scope="module")
def bundle():
    unet, text = UNetParams(32, (1, 2), 1, (0, 1), 1, 2, 16), TextEncoderParams(16, 1, 2)
    preset = Preset("tiny", 320, unet, MotionParams(32, (1, 2), 1, 2, 16), text)
    parts = {"unet": UNet(unet), "motion": MotionModel(preset.motion), "text": TextEncoder(text)}
    bundle = object.__new__(ModelBundle)  # with an autoencoder of another class
    for name, part in {"preset": preset, "autoencoder": Pooled(), **parts}.items():
        object.__setattr__(bundle, name, randomised(part) if name in parts else part)
    return bundle


@pytest.fixture
def sample(bundle):
    """Latents of two clips whose regions are 6 cells wide and high; large ones are of 40 x 40 cells, others of 10."""
    pictures = torch.rand((2, 3, 320, 320), generator=torch.Generator().manual_seed(0))
    masks = torch.zeros(2, 1, 320, 320)
    masks[0, :, 104:152, 256:304] = 1
    masks[1, :, 16:64, 160:208] = 1

    def call(clips=slice(0, 1), several=False, large=False, **changed):
        regions, prompts, magnitudes = masks[clips], ["run", "jump"][clips], [4.0, 9.0][clips]
        if several:
            regions, prompts, magnitudes = torch.cat([masks[:1], masks[1:]], dim=1), [["run", "jump"]], [[4.0, 9.0]]
        images, seeds = pictures[clips], list(range(len(prompts)))
        if not large:
            images, regions = (nn.functional.avg_pool2d(each, 4) for each in (images, regions))
        return generate_latents(bundle, images, regions, prompts, magnitudes, seeds, replace(PARAMS, **changed))

    return call


class Calls:
    """How often each block of the UNet runs, and at which sizes."""

    def __init__(self, unet):
        self.counts, self.sizes, self.handles = {}, set(), []
        for half in ("input", "output"):
            for index, block in enumerate(unet.get_submodule(f"{half}_blocks")):
                self.counts[half, index] = 0
                self.handles.append(block.register_forward_hook(self._counting((half, index))))

    def _counting(self, name):
        def count(_block, inputs, _output):
            self.counts[name] += 1
            if name == ("input", 0):
                self.sizes.add(tuple(inputs[0].shape[-2:]))

        return count

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for handle in self.handles:
            handle.remove()


def apart(found, expected):
    return float((found - expected).square().mean().sqrt() / expected.std())


@pytest.mark.parametrize("depth", [0, 1])
def test_between_key_steps_only_the_outer_blocks_run(bundle, sample, depth):
    exact = sample()
    with Calls(bundle.unet) as calls:
        found = sample(reuse=ReuseParams(2, depth))
    outer = {("input", index) for index in range(depth + 1)} | {("output", 3 - index) for index in range(depth + 1)}
    assert calls.counts == {name: 6 if name in outer else 4 for name in calls.counts}
    assert 0 < apart(found, exact) < UNRELATED
    assert torch.equal(sample(reuse=ReuseParams(1)), exact)
    assert torch.equal(sample(), exact)


def test_windows_and_separate_regions_have_features_of_their_own(bundle, sample):
    windows = {"num_frames": 5, "context_length": 3, "context_overlap": 1}
    with Calls(bundle.unet) as calls:
        found = sample(reuse=ReuseParams(2), **windows)
    assert calls.counts["input", 0] == 12 and calls.counts["input", 1] == 8
    assert 0 < apart(found, sample(**windows)) < UNRELATED
    for mode, per_step in (("separate", 2), ("blended", 1)):
        with Calls(bundle.unet) as calls:
            found = sample(several=True, region_mode=mode, reuse=ReuseParams(2))
        assert calls.counts["input", 0] == 6 * per_step and calls.counts["input", 1] == 4 * per_step
        assert 0 < apart(found, sample(several=True, region_mode=mode)) < UNRELATED


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_with_its_own_deep_feature_a_shallow_call_is_the_whole_one(bundle, depth):
    generator = torch.Generator().manual_seed(3)
    x, context = torch.randn(2, 4, 10, 6, generator=generator), torch.randn(2, 5, 16, generator=generator)
    inputs = (x, torch.tensor([7, 900]), context)
    with torch.inference_mode(), watched_feature(bundle.unet, depth) as fetch:
        whole = bundle.unet(*inputs)
        feature = fetch()
        assert torch.equal(shallow_call(bundle.unet, *inputs, feature, depth), whole)
        assert not torch.allclose(shallow_call(bundle.unet, *inputs, 0 * feature, depth), whole, atol=1e-3)


def test_what_makes_no_sense_is_refused(sample):
    with pytest.raises(ValueError, match="interval of 0 steps"):
        ReuseParams(0)
    with pytest.raises(ValueError, match="give at most 2"):
        sample(reuse=ReuseParams(2, depth=3))
    with pytest.raises(ValueError, match="from 1, the region alone, to 16"):
        sample(crop_context=float("nan"))


def constant(value):
    return torch.full((1, 1, 1, 1), float(value))


def test_the_first_two_evaluations_and_the_last_are_whole_and_between_key_steps_features_go_on_in_a_line():
    cache, whole, guessed = FeatureCache(ReuseParams(4), evaluations=11), [], {}
    for index in range(11):
        cache.next_evaluation()
        feature = cache.recall("a")
        if feature is None:
            whole.append(index)
            cache.keep("a", constant(3 * index + 1))
        else:
            guessed[index] = float(feature)
    assert whole == [0, 1, 2, 6, 10]
    assert guessed == {index: 3 * index + 1 for index in (3, 4, 5, 7, 8, 9)}


def test_what_was_not_asked_at_the_last_key_step_is_computed_whole():
    cache = FeatureCache(ReuseParams(3), evaluations=10)  # key steps 0, 1, 3, 6, 9
    for _ in range(3):
        cache.next_evaluation()
        cache.keep("a", constant(1))
    assert float(cache.recall("a")) == 1 and cache.recall("b") is None
    cache.next_evaluation()
    cache.keep("b", constant(2))
    cache.next_evaluation()
    assert cache.recall("a") is None
    assert float(cache.recall("b")) == 2, "of one key step alone it is taken over"


def test_calls_that_cannot_be_told_apart_end_the_reuse():
    cache = FeatureCache(ReuseParams(4), evaluations=9)
    cache.next_evaluation()
    for _ in range(2):
        cache.keep("tile", constant(1))
    for _ in range(2):
        cache.next_evaluation()
        cache.keep("tile", constant(1))
    assert cache.recall("tile") is None


def test_only_the_part_around_each_clips_region_is_sampled(bundle, sample):
    both, photo = slice(0, 2), sample(slice(0, 2), steps=1, large=True, crop_context=3.0, num_frames=1)
    with Calls(bundle.unet) as calls:
        found = sample(both, steps=1, large=True, crop_context=3.0)
    assert calls.sizes == {(18, 18)}, "three times six cells, an even number"
    for clip, first, (rows, columns) in zip(
        found, photo, [(slice(7, 25), slice(22, 40)), (slice(0, 18), slice(14, 32))], strict=True
    ):
        outside = torch.ones(40, 40, dtype=torch.bool)
        outside[rows, columns] = False
        assert torch.equal(clip[..., outside], first[..., outside].expand(-1, 3, -1))
        assert (clip[:, 1:] != first)[..., rows, columns].all()
    whole = sample(steps=1, large=True)
    assert torch.equal(sample(steps=1, large=True, crop_context=8.0), whole), (
        "nearly the whole picture: not worth a seam"
    )


def test_a_part_is_told_a_magnitude_of_the_whole_clips_pixels(bundle, sample):
    seen = []
    embedding = bundle.motion.motion_embedding
    handle = embedding.register_forward_pre_hook(lambda _layer, inputs: seen.append(inputs[0]))
    try:
        sample(steps=1, large=True)
        sample(steps=1, large=True, crop_context=3.0)
    finally:
        handle.remove()
    assert torch.equal(*seen)


@pytest.mark.parametrize(
    ("cells", "context", "multiple", "box"),
    [
        ((slice(20, 24), slice(20, 24)), 5.0, 4, LatentBox(12, 12, 20, 20)),
        ((slice(20, 24), slice(20, 24)), 1.0, 4, LatentBox(18, 18, 8, 8)),  # no side below 8
        ((slice(0, 2), slice(38, 40)), 10.0, 8, LatentBox(0, 16, 24, 24)),  # shifted into the picture
        ((slice(4, 36), slice(18, 22)), 2.0, 4, LatentBox(0, 16, 40, 8)),  # as high as the picture
        ((slice(4, 36), slice(4, 36)), 2.0, 4, None),
        ((slice(0, 0), slice(0, 0)), 2.0, 4, None),
    ],
)
def test_a_part_holds_its_region_and_lies_in_the_picture(cells, context, multiple, box):
    masks = torch.zeros(1, 1, 40, 40)
    masks[..., cells[0], cells[1]] = 0.25
    assert latent_box(masks, context, multiple) == box


def test_a_part_fades_inwards_but_not_to_the_pictures_own_sides():
    share = box_share(LatentBox(0, 3, 8, 6), (10, 10), feather=2)
    assert share[0, 5] == 1 and share.shape == (10, 10)
    torch.testing.assert_close(share[2, 2:], torch.tensor([0, 1 / 3, 2 / 3, 1, 1, 2 / 3, 1 / 3, 0]))
    torch.testing.assert_close(share[5:10, 5], torch.tensor([1, 2 / 3, 1 / 3, 0, 0]))


def recording(made):
    """A recorder for machines without a GPU: it replays by running the function on what it was recorded with."""

    def record(function, inputs):
        made.append(inputs)
        return lambda: function(inputs)

    return record


def test_calls_are_recorded_once_for_each_kind_and_told_everything_anew():
    made, runs = [], []
    calls = RecordedCalls(recording(made))

    def double(tensors):
        runs.append(len(tensors))
        return 2 * tensors[0]

    for number in range(5):
        assert torch.equal(calls("a", double, [torch.full((2,), float(number)), None]), torch.full((2,), 2.0 * number))
    assert len(made) == 1
    for number in range(5):
        assert torch.equal(calls("a", double, [torch.full((3,), float(number)), None]), torch.full((3,), 2.0 * number))
    assert len(made) == 2, "another size"
    first = calls("a", double, [torch.ones(2), None])
    second = calls("a", double, [torch.zeros(2), None])
    assert torch.equal(first, 2 * torch.ones(2)) and torch.equal(second, torch.zeros(2)), "results are the caller's own"
    calls.clear()
    before = len(made)
    for _ in range(CALLS_BEFORE_RECORDING):
        calls("a", double, [torch.ones(2), None])
    assert len(made) == before


def test_what_cannot_be_recorded_goes_on_as_it_is(caplog):
    def record(_function, _inputs):
        raise RuntimeError("operation not permitted when stream is capturing")

    calls = RecordedCalls(record)
    with caplog.at_level(logging.WARNING, "followclick"):
        found = [calls("a", lambda tensors: tensors[0] + 1, [torch.ones(1)]) for _ in range(5)]
    assert all(torch.equal(each, torch.full((1,), 2.0)) for each in found)
    assert len(caplog.records) == 1 and "without CUDA graphs: operation not permitted" in caplog.text


def test_forwards_are_exchanged_only_inside_and_hooks_still_run():
    layer, seen = nn.Linear(2, 2), []
    layer.register_forward_hook(lambda _layer, _inputs, output: seen.append(float(output.sum())))
    with pytest.raises(InterruptedError), exchanged_forwards([(layer, lambda x: x + 1), (layer, lambda x: x + 2)]):
        assert torch.equal(layer(torch.zeros(1, 2)), torch.full((1, 2), 2.0))
        raise InterruptedError
    assert seen == [4.0] and "forward" not in vars(layer)
    assert torch.equal(layer(torch.zeros(1, 2))[0], layer.bias)


def test_hooks_inside_a_block_are_found_but_not_those_on_it():
    block = nn.Sequential(nn.Sequential(nn.Linear(1, 1)))
    block.register_forward_hook(lambda *_: None)
    assert not has_inner_hooks(block)
    handle = block[0][0].register_forward_pre_hook(lambda *_: None)
    assert has_inner_hooks(block)
    handle.remove()
    assert not has_inner_hooks(block)


@pytest.mark.parametrize("made_in", [False, True])
@pytest.mark.parametrize("used_in", [False, True])
def test_weights_lie_channels_last_only_inside_and_can_still_be_trained(made_in, used_in):
    with torch.inference_mode(made_in):
        model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.Linear(2, 2))
    weight = model[0].weight
    before = weight.detach().clone()
    with torch.inference_mode(used_in), channels_last(model):
        assert weight.stride()[1] == 1 and torch.equal(weight, before) and model[0].weight is weight
    assert weight.is_contiguous() and torch.equal(weight, before) and not weight.is_inference()
