"""Several regions in one pass, and clips in windows, inside the host's samplers: the same numbers as the core's."""

import contextlib

import comfy.sample
import comfy.samplers
import pytest
import torch
from comfy.controlnet import ControlBase
from comfy_api.torch_helpers import set_torch_compile_wrapper
from comfy_extras.nodes_context_windows import ContextWindowsManualNode
from comfy_extras.nodes_custom_sampler import Guider_DualCFG

import nodes

RIGHT = {"prompt": "jump", "magnitude": 14.0}


@pytest.fixture(scope="module")
def two(pack, demo, square) -> tuple:
    """Two regions, each with its own prompt and magnitude."""
    with torch.inference_mode():
        return pack.regions(demo, square.flip(-1), regions=pack.regions(demo, square), **RIGHT)


def sample_both(pack, demo, graph, picture, masks, conditioned, model=None, cfg=5.0, **params):
    """The clip by the host's sampler, and by the core, from the same noise."""
    core = pack.module("followclick_core.generate")
    bundle = pack.module("followclick_core.models.bundle").load_bundle()
    positive, negative, latent = conditioned
    length, _, height, width = latent["samples"].shape
    fit, size = pack.module("nodes.host").fit, (8 * width, 8 * height)
    several = len(masks) > 1
    expected = core.generate_latents(
        bundle,
        fit(picture.movedim(-1, 1), size),
        torch.cat([fit(mask[:, None], size) for mask in masks], dim=1),
        [["run", "jump"]] if several else ["run"],
        [[6.0, 14.0]] if several else [6.0],
        [3],
        core.SamplingParams(length, steps=3, guidance_scale=cfg, **params),
    )
    model = model or graph.model
    noise = core.initial_noise((4, length, height, width), [3])[0].movedim(1, 0)
    sigmas = pack.run("MotionSchedule", model=model, steps=3)[0]
    euler = comfy.samplers.sampler_object("euler")
    found = comfy.sample.sample_custom(model, noise, cfg, euler, sigmas, positive, negative, noise * 0)
    return found * 0.18215, expected[0].movedim(1, 0)


@pytest.mark.parametrize("mode", ["blended", "separate"])
@pytest.mark.parametrize("cfg", [5.0, 1.0])
def test_two_regions_are_what_the_core_makes_of_them(pack, demo, graph, picture, square, two, mode, cfg):
    conditioned = pack.first_frame(demo, picture, two, region_mode=mode)
    assert len(conditioned[0]) == len(conditioned[1]) == (1 if mode == "blended" else 2)
    masks = [square, square.flip(-1)]
    found, expected = sample_both(pack, demo, graph, picture, masks, conditioned, cfg=cfg, region_mode=mode)
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("mode", ["blended", "separate"])
def test_an_empty_positive_text_gives_way_to_the_regions_prompts(pack, demo, graph, picture, two, mode):
    def clip(text):
        positive, negative, latent = pack.first_frame(
            demo, picture, two, positive=pack.text(demo, text), region_mode=mode
        )
        return pack.sample(graph.model, positive, negative, latent)

    assert torch.equal(clip(""), clip("jump"))
    assert not torch.allclose(clip(""), clip("spin left"))  # describes the picture: kept


def test_a_blend_is_cut_to_areas_and_splits_into_single_calls(pack, demo, graph, picture, two, monkeypatch):
    positive, negative, latent = pack.first_frame(demo, picture, two)
    whole = pack.sample(graph.model, positive, negative, latent)
    area = nodes.ConditioningSetArea().append(positive, 64, 64, 32, 0, 1.0)[0]
    combined = pack.sample(graph.model, positive + area, negative, latent)
    assert torch.isfinite(combined).all() and not torch.allclose(combined, whole)
    free = lambda device=None, torch_free_too=False: (0, 0) if torch_free_too else 0  # noqa: E731
    monkeypatch.setattr("comfy.model_management.get_free_memory", free)
    torch.testing.assert_close(pack.sample(graph.model, positive, negative, latent), whole, rtol=1e-3, atol=1e-3)


def test_flow_magnitude_replaces_all_regions_numbers(pack, demo, graph, picture, square, two):
    positive, negative, latent = pack.first_frame(demo, picture, two)

    def with_magnitude(value, curve=""):
        inputs = {"motion_magnitude": value, "curve": curve}
        both = [pack.run("FlowMagnitude", conditioning=each, **inputs)[0] for each in (positive, negative)]
        return pack.sample(graph.model, *both, latent)

    equal = pack.regions(demo, square.flip(-1), regions=pack.regions(demo, square), prompt="jump", magnitude=6.0)
    expected = pack.sample(graph.model, *pack.first_frame(demo, picture, equal))
    torch.testing.assert_close(with_magnitude(6.0), expected, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(with_magnitude(0.0, "6, 6"), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("loop", [False, True])
def test_windows_are_those_of_the_core(pack, demo, graph, picture, square, loop):
    conditioned = pack.first_frame(demo, picture, pack.regions(demo, square), length=7)
    model = pack.run("ContextWindows", model=graph.model, context_length=4, context_overlap=2, loop=loop)[0]
    params = {"context_length": 4, "context_overlap": 2, "loop": loop}
    found, expected = sample_both(pack, demo, graph, picture, [square], conditioned, model, **params)
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-2)
    plain = pack.sample(graph.model, *conditioned)
    windowed = pack.sample(model, *conditioned)
    assert not torch.allclose(plain, windowed, atol=1e-2) and torch.equal(windowed, pack.sample(model, *conditioned))
    # Before Apply Motion Model it is the same.
    early = pack.run("ContextWindows", model=demo.model, context_length=4, context_overlap=2, loop=loop)[0]
    early = pack.run("ApplyMotionModel", model=early, motion_model=demo.motion_model)[0]
    assert torch.equal(pack.sample(early, *conditioned), windowed)


def host_windows(model, length=4, overlap=2, schedule="standard_static"):
    inputs = {"context_stride": 1, "closed_loop": False, "fuse_method": "pyramid", "dim": 0}
    return ContextWindowsManualNode.execute(model, length, overlap, schedule, **inputs).result[0]


def test_the_hosts_own_context_windows_node_works(pack, demo, graph, picture, square):
    conditioned = pack.first_frame(demo, picture, pack.regions(demo, square), length=6)
    own = pack.run("ContextWindows", model=graph.model, context_length=4, context_overlap=2, loop=False)[0]
    host = host_windows(graph.model)
    kept = host.model_options["context_handler"]
    torch.testing.assert_close(pack.sample(host, *conditioned), pack.sample(own, *conditioned))
    assert type(kept) is type(host.model_options["context_handler"]) and not hasattr(kept, "_controls")
    uniform = host_windows(graph.model, schedule="looped_uniform")
    assert torch.isfinite(pack.sample(uniform, *conditioned)).all()


@pytest.mark.parametrize("sampler", ["dpm_2", "heun", "dpmpp_2s_ancestral"])
def test_samplers_that_look_between_steps_work_in_windows(pack, demo, graph, picture, square, sampler):
    conditioned = pack.first_frame(demo, picture, pack.regions(demo, square), length=6)
    model = pack.run("ContextWindows", model=graph.model, context_length=4, context_overlap=2, loop=False)[0]
    clip = nodes.KSampler().sample(model, 0, 2, 3.0, sampler, "simple", *conditioned)[0]["samples"]
    assert torch.isfinite(clip).all()


class HintedControl(ControlBase):
    """Notes the hints that it gets for the frames at hand, as ControlNets read them."""

    def __init__(self, hints):
        super().__init__()
        self.cond_hint_original, self.seen = hints, []

    def get_control(self, x_noisy, t, cond, batched_number, transformer_options):
        window = tuple(transformer_options["context_window"].index_list)
        self.seen.append((window, tuple(self.cond_hint_original[:, 0, 0, 0].int().tolist())))
        return {"input": [], "middle": [torch.ones(1, 1, 1, 1)], "output": []}


def test_every_window_sees_its_own_frames_hints_magnitudes_and_masks(pack, demo, graph, picture, square):
    positive, negative, latent = pack.first_frame(demo, picture, pack.regions(demo, square), length=7)
    curve = [float(frame) for frame in range(7)]
    control = HintedControl(torch.arange(7.0)[:, None, None, None].expand(7, 3, 8, 8))
    single = HintedControl(torch.full((1, 3, 8, 8), 9.0))
    control.set_previous_controlnet(single)
    both = []
    for conditioning in (positive, negative):
        text = ", ".join(map(str, curve))
        entries = pack.run("FlowMagnitude", conditioning=conditioning, motion_magnitude=0.0, curve=text)[0]
        both.append([[text, {**options, "control": control}] for text, options in entries])
    seen = []
    embedding = demo.motion_model.model.motion_embedding
    handle = embedding.register_forward_pre_hook(lambda _l, inputs: seen.append(inputs[0]))
    try:
        pack.sample(host_windows(graph.model), *both, latent, steps=1)
    finally:
        handle.remove()
    windows = [(0, 1, 2, 3), (2, 3, 4, 5), (3, 4, 5, 6)]
    assert control.seen == [(window, window) for window in windows]
    ratio = graph.latent["samples"].shape[-1] * 8 / 128
    for window, numbers in zip(windows, seen, strict=True):
        torch.testing.assert_close(numbers.view(2, 4)[0], torch.tensor(window) * ratio)


def test_a_windows_condition_is_its_own_from_step_to_step(pack, demo, graph, picture, square):
    """Frame 0's window gets the photo; later ones what the windows before predict, anew at every step."""
    positive, negative, latent = pack.first_frame(demo, picture, pack.regions(demo, square), length=6)
    photo = positive[0][1]["model_conds"]["first_frame"].cond[0, 1:]
    model = pack.run("ContextWindows", model=graph.model, context_length=4, context_overlap=2, loop=False)[0]
    seen = []
    conv = demo.motion_model.model.first_frame_conv
    handle = conv.register_forward_pre_hook(lambda _l, inputs: seen.append(inputs[0][0, 1:].clone()))
    try:
        pack.sample(model, positive, negative, latent, steps=2)
    finally:
        handle.remove()
    assert len(seen) == 4 and torch.equal(seen[0], photo) and torch.equal(seen[2], photo)
    assert not torch.allclose(seen[1], photo, atol=0.1) and not torch.allclose(seen[1], seen[3], atol=1e-3)


@pytest.mark.parametrize("windows", [False, True])
@pytest.mark.parametrize("several", [False, True])
def test_the_motion_text_is_projected_once_per_sampling(pack, demo, graph, picture, square, two, several, windows):
    regions = two if several else pack.regions(demo, square)
    conditioned = pack.first_frame(demo, picture, regions, length=6)
    model = graph.model
    if windows:
        model = pack.run("ContextWindows", model=model, context_length=4, context_overlap=2, loop=False)[0]
    width, calls, handles = demo.motion_model.model.params.context_dim, [], []
    for name, layer in demo.motion_model.model.named_modules():
        if name.endswith(("attention_blocks.2.to_k", "attention_blocks.2.to_v")):
            assert layer.in_features == width
            handles.append(layer.register_forward_hook(lambda layer, *_: calls.append(layer)))
    try:
        pack.sample(model, *conditioned, steps=3)
    finally:
        for handle in handles:
            handle.remove()
    assert len(calls) == len(set(calls)) == len(handles) > 0


@pytest.mark.parametrize("overlap", [0, 8])
def test_windows_that_make_no_sense_are_refused(pack, graph, overlap):
    with pytest.raises(ValueError, match=f"cannot overlap by {overlap}"):
        pack.run("ContextWindows", model=graph.model, context_length=8, context_overlap=overlap, loop=False)


class Watched:
    """A copy of MODEL, with what each window takes for its photo and what each step makes of the positive."""

    def __init__(self, model):
        self.model, self.begun, self.predicted = model.clone(), [], []
        self.model.set_model_sampler_post_cfg_function(self._note)

    def _note(self, args):
        self.predicted.append(args["cond_denoised"].clone())
        return args["denoised"]

    @contextlib.contextmanager
    def watching(self, demo):
        conv = demo.motion_model.model.first_frame_conv
        handle = conv.register_forward_pre_hook(lambda _l, inputs: self.begun.append(inputs[0][0, 1:].clone()))
        try:
            yield
        finally:
            handle.remove()


@pytest.mark.parametrize(("schedule", "overlap"), [("standard_static", 0), ("batched", 2)])
def test_windows_of_the_host_that_share_no_frames_continue_from_the_frame_before(
    pack, demo, graph, picture, square, schedule, overlap
):
    conditioned = pack.first_frame(demo, picture, pack.regions(demo, square), length=6)
    watched = Watched(host_windows(graph.model, 3, overlap, schedule))
    with watched.watching(demo):
        pack.sample(watched.model, *conditioned, steps=2)
    for step, predicted in enumerate(watched.predicted):
        torch.testing.assert_close(watched.begun[2 * step + 1], predicted[2])


def test_a_uniform_schedule_of_the_host_begins_where_the_step_before_was(pack, demo, graph, picture, square):
    conditioned = pack.first_frame(demo, picture, pack.regions(demo, square), length=6)
    watched = Watched(host_windows(graph.model, schedule="looped_uniform"))
    with watched.watching(demo):
        pack.sample(watched.model, *conditioned, steps=2)
    assert len(watched.begun) == 4  # of frames 0.., 2.., 3.., 5..
    torch.testing.assert_close(watched.begun[2], watched.predicted[0][3])


@pytest.mark.parametrize("cfg_negative", [1.0, 3.0])  # with 1 there is no negative
def test_windows_continue_from_the_positive_whatever_order_a_guider_has(
    pack, demo, graph, picture, square, cfg_negative
):
    positive, negative, latent = pack.first_frame(demo, picture, pack.regions(demo, square), length=6)
    watched = Watched(host_windows(graph.model))
    dual = Guider_DualCFG(watched.model)
    dual.set_conds(positive, negative, negative)
    dual.set_cfg(4.0, cfg_negative)
    usual = comfy.samplers.CFGGuider(watched.model)
    usual.set_conds(positive, negative)
    usual.set_cfg(4.0)
    sigmas = pack.run("MotionSchedule", model=graph.model, steps=1)[0]
    noise = torch.randn(latent["samples"].shape, generator=torch.Generator().manual_seed(0))
    with watched.watching(demo):
        for guider in (usual, dual):
            guider.sample(noise, noise * 0, comfy.samplers.sampler_object("euler"), sigmas)
    (first, second), (dual_first, dual_second) = watched.begun[:2], watched.begun[2:]
    assert torch.equal(dual_first, first)
    torch.testing.assert_close(dual_second, second, rtol=1e-3, atol=1e-3)


def test_a_negative_that_is_asked_for_by_itself_continues_from_the_positive(pack, demo, graph, picture, square):
    conditioned = pack.first_frame(demo, picture, pack.regions(demo, square), length=6)
    watched = Watched(host_windows(graph.model))

    def apart(args):
        model, x, sigma, options = (args[key] for key in ("model", "input", "sigma", "model_options"))
        positive, negative = args["conds"]
        calls = [positive, None], [None, negative]
        return [comfy.samplers.calc_cond_batch(model, c, x, sigma, options)[i] for i, c in enumerate(calls)]

    watched.model.set_model_sampler_calc_cond_batch_function(apart)
    with watched.watching(demo):
        pack.sample(watched.model, *conditioned, steps=1)
    assert len(watched.begun) == 4
    torch.testing.assert_close(watched.begun[3], watched.predicted[0][2])


@pytest.mark.parametrize("length", [4, 6])
def test_a_first_frame_of_another_length_than_the_latent_is_refused_in_windows_too(
    pack, demo, graph, picture, square, length
):
    regions = pack.regions(demo, square)
    positive, negative, _ = pack.first_frame(demo, picture, regions, length=length)
    latent = pack.first_frame(demo, picture, regions, length=8)[2]
    with pytest.raises(ValueError, match=f"for {length} frames, but a latent of 8"):
        pack.sample(host_windows(graph.model), positive, negative, latent, steps=1)


def test_a_window_looks_for_the_object_once_a_step(pack, demo, graph, picture, square, monkeypatch):
    conditioned = pack.first_frame(demo, picture, pack.regions(demo, square), length=6)
    windows, calls = pack.module("followclick_core.windows"), []
    follow = windows.followed_mask
    monkeypatch.setattr(windows, "followed_mask", lambda *inputs: calls.append(inputs) or follow(*inputs))
    pack.sample(host_windows(graph.model), *conditioned, steps=3)
    assert len(calls) == 3  # of two windows, and for the positive and the negative at once


def test_a_compiled_model_blends_regions_just_so(pack, demo, graph, picture, two):
    conditioned = pack.first_frame(demo, picture, two)
    compiled = graph.model.clone()
    set_torch_compile_wrapper(compiled, backend="eager")
    try:
        found = pack.sample(compiled, *conditioned)
    finally:
        torch._dynamo.reset()
    torch.testing.assert_close(found, pack.sample(graph.model, *conditioned), rtol=1e-3, atol=1e-3)
