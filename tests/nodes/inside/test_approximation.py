"""Approximate accelerations in the host: close to the exact clip, by less work, and nothing kept afterwards."""

import contextlib
import gc
import weakref
from dataclasses import replace

import comfy.samplers
import pytest
import torch
from comfy.controlnet import ControlBase
from comfy_extras.nodes_context_windows import ContextWindowsManualNode
from comfy_extras.nodes_custom_sampler import Guider_DualCFG
from comfy_extras.nodes_freelunch import FreeU_V2

import nodes


@contextlib.contextmanager
def counted(model):
    """How often each block of the UNet's two halves runs, by the first layer of it."""
    unet, calls, handles = model.model.diffusion_model, {}, []
    for half in ("input", "output"):
        for index, block in enumerate(unet.get_submodule(f"{half}_blocks")):
            calls[half, index] = 0

            def count(_layer, _inputs, _output, name=(half, index)):
                calls[name] += 1

            handles.append(block[0].register_forward_hook(count))
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def reusing(pack, model, interval=2, depth=0, **more):
    return pack.run("AccelerateApproximately", model=model, cache_interval=interval, cache_depth=depth, **more)[0]


def apart(found, expected):
    """The root mean square of the difference, over the expected one's deviation."""
    return float((found - expected).pow(2).mean().sqrt() / expected.std())


@pytest.fixture(scope="module")
def clip(pack, graph):
    with torch.inference_mode():
        return pack.sample_graph(graph, steps=6)


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_between_key_steps_only_the_outer_blocks_run(pack, graph, clip, depth):
    model = reusing(pack, graph.model, interval=3, depth=depth)
    with counted(model) as calls:
        found = pack.sample_graph(graph, model=model, steps=6)
    last = max(index for half, index in calls if half == "output")
    outer = {("input", index) for index in range(depth + 1)} | {("output", last - index) for index in range(depth + 1)}
    assert calls == {name: 6 if name in outer else 4 for name in calls}, "the first two, the third and the last"
    assert 0 < apart(found, clip) < 0.5
    assert torch.equal(found, pack.sample_graph(graph, model=model, steps=6)), "nothing of a sampling reaches the next"
    assert torch.equal(pack.sample_graph(graph, steps=6), clip)


def test_an_interval_of_one_is_exact(pack, graph, clip):
    assert torch.equal(pack.sample_graph(graph, model=reusing(pack, graph.model, interval=1), steps=6), clip)


def test_the_closer_key_steps_are_the_closer_is_the_clip(pack, graph):
    exact = pack.sample_graph(graph, steps=12)
    errors = [
        apart(pack.sample_graph(graph, model=reusing(pack, graph.model, interval), steps=12), exact)
        for interval in (2, 6)
    ]
    assert 0 < errors[0] < errors[1]


def test_calls_that_the_host_splits_keep_features_of_their_own(pack, graph, monkeypatch):
    model = reusing(pack, graph.model)
    together = pack.sample_graph(graph, model=model, steps=4)
    free = lambda device=None, torch_free_too=False: (0, 0) if torch_free_too else 0  # noqa: E731
    monkeypatch.setattr("comfy.model_management.get_free_memory", free)
    with counted(model) as calls:
        torch.testing.assert_close(pack.sample_graph(graph, model=model, steps=4), together, rtol=1e-3, atol=1e-3)
    assert calls["input", 0] == 8 and calls["input", 1] == 6


def test_a_batch_that_comes_together_otherwise_is_computed_whole(pack, graph, monkeypatch):
    """Another program takes memory while a clip is sampled: both passes no longer fit together."""
    model, steps = reusing(pack, graph.model, interval=3), []

    def free(device=None, torch_free_too=False):
        left = 10**12 if len(steps) < 2 else 0
        return (left, left) if torch_free_too else left

    def note(apply_model, call):
        steps.append(len(call["cond_or_uncond"]))
        return apply_model(call["input"], call["timestep"], **call["c"])

    model.set_model_unet_function_wrapper(note)
    monkeypatch.setattr("comfy.model_management.get_free_memory", free)
    with counted(model) as calls:
        found = pack.sample_graph(graph, model=model, steps=8)
    assert steps == [2] * 2 + [1] * 12 and torch.isfinite(found).all()
    # Key steps are 0, 1, 4 and 7. What comes alone at 2 and 3 has not been seen at one, at 5 and 6 it has.
    assert calls["input", 1] == 2 + 2 * 4


def test_windows_have_features_of_their_own(pack, demo, graph, picture, square):
    conditioned = pack.first_frame(demo, picture, pack.regions(demo, square), length=6)
    windowed = pack.run("ContextWindows", model=graph.model, context_length=4, context_overlap=2, loop=False)[0]
    exact, model = pack.sample(windowed, *conditioned, steps=4), reusing(pack, windowed)
    with counted(model) as calls:
        found = pack.sample(model, *conditioned, steps=4)
    assert calls["input", 0] == 8 and calls["input", 1] == 6, "two windows a step"
    assert 0 < apart(found, exact) < 0.5
    # Windows that move on from step to step are others each time: nothing could be reused.
    inputs = {"context_stride": 1, "closed_loop": True, "fuse_method": "pyramid", "dim": 0}
    moving = ContextWindowsManualNode.execute(graph.model, 4, 1, "looped_uniform", **inputs).result[0]
    assert torch.isfinite(pack.sample(reusing(pack, moving), *conditioned, steps=4)).all()


def test_tiles_that_somebody_else_cuts_are_not_mixed_up(pack, graph):
    """Tiled sampling calls the model several times a step with the same entries."""

    def tiles(apply_model, call):
        width = call["input"].shape[-1] // 2
        call["c"].pop("first_frame", None)
        halves = [apply_model(part, call["timestep"], **call["c"]) for part in call["input"].split(width, dim=-1)]
        return torch.cat(halves, dim=-1)

    plain, model = graph.model.clone(), reusing(pack, graph.model)
    for each in (plain, model):
        each.set_model_unet_function_wrapper(tiles)
    assert torch.equal(pack.sample_graph(graph, model=model, steps=4), pack.sample_graph(graph, model=plain, steps=4))


@pytest.mark.parametrize("sampler", ["heun", "dpmpp_2m", "uni_pc"])
def test_every_sampler_works(pack, graph, sampler):
    inputs = (0, 4, 3.0, sampler, "simple", graph.positive, graph.negative, graph.latent)
    exact = nodes.KSampler().sample(graph.model, *inputs)[0]["samples"]
    found = nodes.KSampler().sample(reusing(pack, graph.model), *inputs)[0]["samples"]
    assert 0 < apart(found, exact) < 0.7


def test_guiders_that_ask_several_times_a_step_do_not_lose_count(pack, graph):
    model = reusing(pack, graph.model)
    guider = Guider_DualCFG(model)
    guider.set_conds(graph.positive, graph.positive, graph.negative)
    guider.set_cfg(2.0, 3.0)
    latent = graph.latent["samples"]
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(0))
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", 4)
    with counted(model) as calls:
        guider.sample(noise, latent, comfy.samplers.sampler_object("euler"), sigmas, seed=0)
    assert 3 * calls["input", 0] == 4 * calls["input", 1]


class AddsToEveryBlock(ControlBase):
    """A ControlNet's residuals, numbered, for the places of a UNet's skips."""

    def __init__(self, unet):
        super().__init__()
        self.unet = unet

    def get_control(self, x_noisy, *_):
        sizes, h = [], x_noisy
        for block in self.unet.input_blocks:
            down = any(type(layer).__name__ == "Downsample" for layer in block)
            h = torch.nn.functional.avg_pool2d(h, 2) if down else h
            sizes.append(h.shape[-2:])
        outputs = [torch.full((1, 1, *size), 0.05 * (index + 1)) for index, size in enumerate(sizes)]
        return {"input": [], "middle": [torch.full((1, 1, *sizes[-1]), 0.5)], "output": outputs}


@pytest.mark.parametrize("depth", [0, 2])
def test_a_controlnet_reaches_the_blocks_that_run(pack, graph, depth):
    """With the deep features of an exact call at hand, a shallow call is that very call, whatever is added to it."""
    unet = graph.model.model.diffusion_model
    control = AddsToEveryBlock(unet)
    host = pack.module("nodes.host_approximation")
    feature = pack.module("followclick_core.acceleration.feature_reuse").watched_feature
    generator = torch.Generator().manual_seed(0)
    x, context = torch.randn(2, 4, 8, 8, generator=generator), graph.positive[0][0].expand(2, -1, -1)
    times = torch.full((2,), 500.0)

    def scale(h, skip, options):
        return h * (1 + 0.1 * options["block"][1]), skip * 0.9

    patches = {
        "output_block_patch": [scale],
        "input_block_patch": [lambda h, options: h * (1 + 0.1 * options["block"][1])],
        "input_block_patch_after_skip": [lambda h, options: h + 0.1],
        "emb_patch": [lambda emb, width, options: emb * 1.1],
        "attn2_output_patch": [lambda n, options: n * (1 + 0.1 * options["transformer_index"])],
    }
    with feature(unet, depth) as fetch:
        whole = unet(x, times, context, control=control.get_control(x), transformer_options={"patches": patches})
        deep = fetch()
    options = {"patches": patches}
    shallow = host._shallow_call(unet, x, times, context, None, control.get_control(x), options, deep, depth)
    assert torch.equal(shallow, whole)
    bare = host._shallow_call(unet, x, times, context, None, None, {}, deep, depth)
    assert not torch.allclose(bare, whole, atol=1e-2)


def test_controlnet_and_freeu_sample_with_it(pack, graph):
    control = AddsToEveryBlock(graph.model.model.diffusion_model)
    both = [
        [[text, {**options, "control": control}] for text, options in entries]
        for entries in (graph.positive, graph.negative)
    ]
    freed = FreeU_V2().patch(graph.model, 1.3, 1.4, 0.9, 0.2)[0]
    exact = pack.sample(freed, *both, graph.latent, steps=4)
    assert 0 < apart(pack.sample(reusing(pack, freed), *both, graph.latent, steps=4), exact) < 0.5


def test_several_regions_and_compiled_blocks_combine_with_it(pack, demo, graph, picture, square):
    two = pack.regions(demo, square.flip(-1), regions=pack.regions(demo, square), prompt="jump", magnitude=14.0)
    for mode in ("blended", "separate"):
        conditioned = pack.first_frame(demo, picture, two, region_mode=mode)
        exact = pack.sample(graph.model, *conditioned, steps=4)
        assert 0 < apart(pack.sample(reusing(pack, graph.model), *conditioned, steps=4), exact) < 0.5
    faster = pack.run("AccelerateExactly", model=reusing(pack, graph.model), text_keys=True)[0]
    found = pack.sample_graph(graph, model=faster, steps=4)
    assert torch.equal(found, pack.sample_graph(graph, model=reusing(pack, graph.model), steps=4))


def test_features_are_gone_when_a_sampling_ends_or_fails(pack, graph, monkeypatch):
    cache = pack.module("followclick_core.acceleration.feature_reuse").FeatureCache
    kept, keep = [], cache.keep

    def noting(self, name, feature):
        kept.append(weakref.ref(feature))
        keep(self, name, feature)

    monkeypatch.setattr(cache, "keep", noting)
    model = reusing(pack, graph.model)
    pack.sample_graph(graph, model=model, steps=4)

    def fail(apply_model, call):
        if len(kept) == 4:
            raise InterruptedError("cancelled")
        return apply_model(call["input"], call["timestep"], **call["c"])

    model.set_model_unet_function_wrapper(fail)
    with pytest.raises(InterruptedError):
        pack.sample_graph(graph, model=model, steps=4)
    gc.collect()
    assert len(kept) == 4 and not any(reference() is not None for reference in kept)
    hooked = [layer for layer in graph.model.model.diffusion_model.modules() if layer._forward_hooks]
    assert not hooked


def test_what_makes_no_sense_is_refused(pack, graph):
    with pytest.raises(ValueError, match="give at most 4"):
        reusing(pack, graph.model, depth=5)
    with pytest.raises(ValueError, match="from 1, the region alone"):
        pack.sample_graph(graph, model=reusing(pack, graph.model, only_region=True, context=0.5))


def only_region(pack, model, context=2.0, interval=1):
    return reusing(pack, model, interval, only_region=True, context=context)


class Part:
    """A clip of 40 x 40 cells whose region, near the right border, is 6 cells wide and high."""

    # Three times as large, which is 18, and from there up to a multiple of 4; shifted into the picture.
    ROWS, COLUMNS = slice(6, 26), slice(20, 40)

    def __init__(self, pack, demo, picture):
        motion = replace(demo.motion_model, trained_size=320)
        self.pack, self.mask = pack, torch.zeros(1, 320, 320)
        self.mask[:, 104:152, 256:304] = 1
        image = torch.nn.functional.interpolate(picture.movedim(-1, 1), (320, 320)).movedim(1, -1)
        regions = pack.regions(demo, self.mask)
        self.positive, self.negative, self.latent = pack.first_frame(demo, image, regions, motion_model=motion)
        self.model = pack.run("ApplyMotionModel", model=demo.model, motion_model=motion)[0]
        self.photo = self.positive[0][1]["model_conds"]["first_frame"].cond[:1, 1:] / 0.18215

    def sample(self, model, **more):
        inputs = {"positive": self.positive, "negative": self.negative, "latent": self.latent, "steps": 3} | more
        return self.pack.sample(model, **inputs)

    def watched(self, model):
        """A copy of MODEL, and the sizes that its UNet is asked about."""
        sizes, copied = [], model.clone()

        def note(apply_model, call):
            sizes.append(tuple(call["input"].shape[-2:]))
            return apply_model(call["input"], call["timestep"], **call["c"])

        copied.set_model_unet_function_wrapper(note)
        return copied, sizes


@pytest.fixture(scope="module")
def part(pack, demo, picture):
    with torch.inference_mode():
        return Part(pack, demo, picture)


def test_only_the_part_around_the_region_is_sampled(pack, part):
    exact = part.sample(part.model)
    model, sizes = part.watched(only_region(pack, part.model, context=3.0))
    found = part.sample(model)
    assert sizes == [(20, 20)] * 3
    outside = torch.ones(40, 40, dtype=torch.bool)
    outside[part.ROWS, part.COLUMNS] = False
    photo = part.photo.expand_as(found)
    torch.testing.assert_close(found[..., outside], photo[..., outside], rtol=1e-4, atol=1e-4)
    inside = (found - photo)[..., part.ROWS, part.COLUMNS]
    assert (inside.abs().amax((0, 1)) > 1e-2).all()
    assert torch.equal(part.sample(part.model), exact), "conditioning and latent of the graph are as they were"


def test_the_part_is_told_what_the_whole_would_be(pack, demo, part):
    """Its own piece of the first frame and of the start, and a magnitude that counts the whole clip's pixels."""
    motion = demo.motion_model.model
    seen = {"condition": [], "magnitude": [], "start": []}
    unet = part.model.model.diffusion_model
    handles = [
        layer.register_forward_pre_hook(lambda _l, inputs, name=name: seen[name].append(inputs[0].clone()))
        for name, layer in (
            ("condition", motion.first_frame_conv),
            ("magnitude", motion.motion_embedding),
            ("start", unet.input_blocks[0][0]),
        )
    ]
    try:
        part.sample(part.model, steps=1)
        part.sample(only_region(pack, part.model, context=3.0), steps=1)
    finally:
        for handle in handles:
            handle.remove()
    whole, cut = seen["condition"]
    assert torch.equal(cut, whole[..., part.ROWS, part.COLUMNS])
    assert torch.equal(*seen["magnitude"])
    whole, cut = (start[..., 2:-2, 2:] for start in (seen["start"][0][..., part.ROWS, part.COLUMNS], seen["start"][1]))
    torch.testing.assert_close(cut, whole)  # but for where it fades into the photo


def test_a_region_as_large_as_the_picture_is_sampled_exactly(pack, part):
    assert torch.equal(part.sample(only_region(pack, part.model, context=7.0)), part.sample(part.model))


class Hinted(ControlBase):
    """Notes the hints that it gets, and the size that they are for."""

    def __init__(self, hints):
        super().__init__()
        self.cond_hint_original, self.seen = hints, []

    def get_control(self, x_noisy, *_):
        self.seen.append((tuple(x_noisy.shape[-2:]), self.cond_hint_original))
        return {"input": [], "middle": [torch.ones(1, 1, 1, 1)], "output": []}


def test_controlnets_see_the_part_of_their_hints(pack, part):
    hints = torch.rand(1, 3, 160, 160)
    control, before = Hinted(hints), Hinted(hints + 1)
    control.set_previous_controlnet(before)
    both = [[[t, {**o, "control": control}] for t, o in entries] for entries in (part.positive, part.negative)]
    part.sample(only_region(pack, part.model, context=3.0), positive=both[0], negative=both[1], steps=1)
    ((size, hint),) = control.seen
    assert size == (20, 20) and torch.equal(hint, hints[..., 24:104, 80:160])
    assert control.cond_hint_original is hints and before.cond_hint_original.shape == hints.shape


def test_windows_regions_and_reuse_combine_with_it(pack, demo, part):
    windowed = pack.run("ContextWindows", model=part.model, context_length=2, context_overlap=1, loop=False)[0]
    model, sizes = part.watched(reusing(pack, windowed, only_region=True, context=3.0))
    with counted(model) as calls:
        assert torch.isfinite(part.sample(model, steps=4)).all()
    assert set(sizes) == {(20, 20)} and 3 * calls["input", 0] == 4 * calls["input", 1]
    motion = replace(demo.motion_model, trained_size=320)
    two = pack.regions(demo, part.mask.roll(-64, -1), regions=pack.regions(demo, part.mask), prompt="jump")
    image = torch.rand(1, 320, 320, 3)
    for mode in ("blended", "separate"):
        conditioned = pack.first_frame(demo, image, two, motion_model=motion, region_mode=mode)
        model, sizes = part.watched(only_region(pack, part.model, context=1.5))
        assert torch.isfinite(pack.sample(model, *conditioned)).all()
        assert set(sizes) == {(12, 24)}, "both regions lie in it"


def test_a_noise_mask_tells_the_region_where_no_first_frame_does(pack, demo, part):
    samples = torch.randn(2, 4, 40, 40)
    latent = {"samples": samples, "noise_mask": part.mask}
    text = pack.text(demo, "run")
    model, sizes = part.watched(only_region(pack, demo.model, context=3.0))
    found = pack.sample(model, text, text, latent)
    assert set(sizes) == {(20, 20)}
    held = torch.nn.functional.interpolate(part.mask[None], (40, 40))[0, 0] == 0
    torch.testing.assert_close(found[..., held], samples[..., held], rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="Nothing tells which part of the picture moves"):
        pack.sample(model, text, text, {"samples": samples})
