"""A motion model in the host's samplers: right numbers, and no trace of it elsewhere."""

from dataclasses import replace

import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy.utils
import pytest
import torch
from comfy.controlnet import ControlBase
from comfy_extras.nodes_freelunch import FreeU_V2

import nodes


def hooks_on(model) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.model.modules())


@pytest.fixture
def empty_latent() -> dict:
    return {"samples": torch.zeros(2, 4, 12, 16)}


def test_the_hosts_sampler_gives_the_clip_that_the_core_gives(pack, demo, graph, picture, square):
    core = pack.module("followclick_core.generate")
    bundle = pack.module("followclick_core.models.bundle").load_bundle()
    length, height, width = graph.latent["samples"].shape[0], *graph.latent["samples"].shape[2:]
    host = pack.module("nodes.host")
    pixels = host.fit(picture.movedim(-1, 1), (8 * width, 8 * height))
    mask = host.fit(square[:, None], (8 * width, 8 * height))
    params = core.SamplingParams(length, steps=4, guidance_scale=7.5)
    expected = core.generate_latents(bundle, pixels, mask, ["run"], [6.0], [3], params)
    noise = core.initial_noise((4, length, height, width), [3])[0].movedim(1, 0)
    sigmas = pack.run("MotionSchedule", model=graph.model, steps=4)[0]
    found = comfy.sample.sample_custom(
        graph.model,
        noise,
        7.5,
        comfy.samplers.sampler_object("euler"),
        sigmas,
        graph.positive,
        graph.negative,
        noise * 0,
    )
    torch.testing.assert_close(found * 0.18215, expected[0].movedim(1, 0), rtol=1e-2, atol=1e-2)
    assert expected.std() > 0.1


def test_the_simple_scheduler_is_motion_schedule(pack, graph):
    sampling = graph.model.get_model_object("model_sampling")
    for steps in (1, 4, 20, 25, 50):
        sigmas = pack.run("MotionSchedule", model=graph.model, steps=steps)[0]
        torch.testing.assert_close(comfy.samplers.calculate_sigmas(sampling, "simple", steps), sigmas)
        assert sampling.timestep(sigmas[:1]) == 999


def test_the_clip_repeats_and_depends_on_the_seed(pack, graph):
    first = pack.sample_graph(graph)
    assert torch.equal(first, pack.sample_graph(graph))
    assert not torch.allclose(first, pack.sample_graph(graph, seed=1))


def test_plain_pictures_before_and_after_are_bit_identical(pack, demo, graph, empty_latent):
    plain = {"positive": pack.text(demo, "jump"), "negative": pack.text(demo, ""), "latent": empty_latent}
    before = pack.sample(demo.model, **plain)
    clip = pack.sample_graph(graph)
    assert hooks_on(demo.model) == 0
    assert torch.equal(before, pack.sample(demo.model, **plain))
    assert torch.equal(clip, pack.sample_graph(graph))
    single = {"samples": torch.zeros(1, 4, 12, 16)}
    alone = pack.sample(demo.model, plain["positive"], plain["negative"], single)
    assert torch.equal(alone, pack.sample(graph.model, plain["positive"], plain["negative"], single))


def test_a_cancelled_run_leaves_no_hook(pack, demo, graph, monkeypatch):
    def hook(*_, **__):  # as the server's: every step of the progress bar looks whether Cancel was pressed
        comfy.model_management.interrupt_current_processing()
        comfy.model_management.throw_exception_if_processing_interrupted()

    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", hook)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        pack.sample_graph(graph)
    assert hooks_on(demo.model) == 0


def test_an_untrained_motion_model_changes_nothing(pack, demo, graph, monkeypatch):
    """What is zero at initialisation adds zeros, so with it the clip is a batch of plain pictures, from equal noise."""
    monkeypatch.setattr(pack.module("nodes.host_motion"), "without_temporal_mean", lambda noise, _block: noise)
    motion = pack.module("followclick_core.models.motion_model")
    sockets = pack.module("nodes.sockets")
    # A new gate is all but shut, but not shut.
    untrained = motion.MotionModel(replace(demo.motion_model.model.params, still_gate=False))
    hosted = sockets.HostedMotionModel(untrained, pack.module("nodes.host").hosted(untrained), 128)
    patched = pack.run("ApplyMotionModel", model=demo.model, motion_model=hosted)[0]
    assert torch.equal(pack.sample_graph(graph, model=patched), pack.sample_graph(graph, model=demo.model))
    assert not torch.allclose(pack.sample_graph(graph), pack.sample_graph(graph, model=demo.model))


def test_one_entry_at_a_time_gives_the_same_as_both_batched(pack, graph, monkeypatch):
    """Little memory makes the host run cond and uncond one after the other."""
    together = pack.sample_graph(graph)
    free = lambda device=None, torch_free_too=False: (0, 0) if torch_free_too else 0  # noqa: E731
    monkeypatch.setattr(comfy.model_management, "get_free_memory", free)
    torch.testing.assert_close(pack.sample_graph(graph), together, rtol=1e-3, atol=1e-3)


def test_without_guidance_only_the_positive_entry_runs(pack, graph):
    assert torch.isfinite(pack.sample_graph(graph, cfg=1.0)).all()


def test_a_clip_from_text_alone_is_sampled_as_a_clip(pack, demo, graph):
    text = {"positive": pack.text(demo, "run"), "negative": pack.text(demo, "")}
    clip = pack.sample_graph(graph, **text)
    assert torch.isfinite(clip).all()
    assert not torch.allclose(clip, pack.sample_graph(graph, **text, model=demo.model))


def test_areas_and_timestep_ranges_of_the_host_apply(pack, graph):
    area = nodes.ConditioningSetArea().append(graph.positive, 64, 64, 32, 0, 1.0)[0]
    early = nodes.ConditioningSetTimestepRange().set_range(graph.positive, 0.0, 0.5)[0]
    late = nodes.ConditioningSetTimestepRange().set_range(graph.positive, 0.5, 1.0)[0]
    whole = pack.sample_graph(graph)
    torch.testing.assert_close(pack.sample_graph(graph, positive=early + late), whole, rtol=1e-4, atol=1e-4)
    combined = pack.sample_graph(graph, positive=graph.positive + area)
    assert torch.isfinite(combined).all() and not torch.allclose(combined, whole)


def test_lora_and_freeu_combine_with_it(pack, demo, graph):
    plain = pack.sample_graph(graph)
    key = "diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_v.weight"
    weight = demo.model.model.state_dict()[key]
    with_lora = graph.model.clone()
    assert with_lora.add_patches({key: ("diff", (torch.ones_like(weight),))}, 0.5) == [key]
    assert not torch.allclose(pack.sample_graph(graph, model=with_lora), plain)
    freed = FreeU_V2().patch(graph.model, 1.3, 1.4, 0.9, 0.2)[0]
    assert not torch.allclose(pack.sample_graph(graph, model=freed), plain)
    assert torch.equal(pack.sample_graph(graph), plain)


class WatchingControl(ControlBase):
    """A ControlNet with nothing learned: it notes what it is asked with, and answers a constant residual."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def get_control(self, x_noisy, t, cond, batched_number, transformer_options):
        self.seen.append((tuple(x_noisy.shape), batched_number))
        return {"input": [], "middle": [torch.ones(1, 1, 1, 1)], "output": []}


def test_a_controlnet_sees_plain_latents_and_is_heard(pack, graph):
    control = WatchingControl()
    with_control = [[text, {**options, "control": control}] for text, options in graph.positive]
    negative = [[text, {**options, "control": control}] for text, options in graph.negative]
    found = pack.sample_graph(graph, positive=with_control, negative=negative)
    frames, _, height, width = graph.latent["samples"].shape
    assert set(control.seen) == {((2 * frames, 4, height, width), 2)}
    assert not torch.allclose(found, pack.sample_graph(graph))


def test_cloning_a_patched_model_copies_no_weights(pack, graph):
    clone = graph.model.clone().clone()
    assert clone.get_additional_models()[0].model is graph.model.get_additional_models()[0].model
    assert torch.equal(pack.sample_graph(graph, model=clone), pack.sample_graph(graph))


def test_state_dict_keys_are_the_plain_ones_while_sampling(pack, demo, graph):
    expected, seen = set(demo.model.model.state_dict()), []
    watched = graph.model.clone()
    watched.set_model_sampler_post_cfg_function(
        lambda args: seen.append(set(args["model"].state_dict())) or args["denoised"]
    )
    pack.sample_graph(graph, model=watched)
    assert seen and all(keys == expected for keys in seen)


def test_a_motion_model_follows_the_unets_number_format(pack, demo, graph):
    half = demo.model.clone()
    half.model.manual_cast_dtype = torch.bfloat16
    try:
        patched = pack.run("ApplyMotionModel", model=half, motion_model=demo.motion_model)[0]
    finally:
        half.model.manual_cast_dtype = None
    own = patched.get_additional_models()[0].model[0]
    assert {parameter.dtype for parameter in own.parameters()} == {torch.bfloat16}
    assert {parameter.dtype for parameter in demo.motion_model.model.parameters()} == {torch.float32}


def test_another_schedule_is_replaced_by_the_motion_models(pack, demo, graph):
    """A checkpoint with SD1.5's own schedule gets the one that the motion model was trained on."""
    other = demo.model.clone()
    host_models = pack.module("nodes.host_models")
    params = pack.module("followclick_core.diffusion.schedule").ScheduleParams
    other.add_object_patch(
        "model_sampling",
        host_models.model_sampling(params(beta_schedule="linear", zero_terminal_snr=False, prediction_type="epsilon")),
    )
    patched = pack.run("ApplyMotionModel", model=other, motion_model=demo.motion_model)[0]
    torch.testing.assert_close(pack.sample_graph(graph, model=patched), pack.sample_graph(graph), rtol=1e-4, atol=1e-4)


def test_two_motion_models_on_one_model_are_refused(pack, demo, graph):
    with pytest.raises(ValueError, match="motion model already"):
        pack.run("ApplyMotionModel", model=graph.model, motion_model=demo.motion_model)
    evolved = demo.model.clone()
    evolved.add_wrapper_with_key("outer_sample", "ADE", lambda executor, *args: executor(*args))
    with pytest.raises(ValueError, match="AnimateDiff Evolved"):
        pack.run("ApplyMotionModel", model=evolved, motion_model=demo.motion_model)


def test_a_model_of_another_size_or_kind_is_refused(pack, demo):
    motion = pack.module("followclick_core.models.motion_model")
    large = motion.MotionModel(motion.MotionParams(model_channels=64, channel_mult=(1, 2), context_dim=96))
    hosted = pack.module("nodes.sockets").HostedMotionModel(large, pack.module("nodes.host").hosted(large), 512)
    with pytest.raises(ValueError, match="64 channels"):
        pack.run("ApplyMotionModel", model=demo.model, motion_model=hosted)
    other = demo.model.clone()
    other.model = torch.nn.Module()
    other.model.diffusion_model = torch.nn.Linear(1, 1)
    with pytest.raises(ValueError, match="is a Linear"):
        pack.run("ApplyMotionModel", model=other, motion_model=demo.motion_model)


def test_a_latent_of_another_length_is_refused(pack, graph):
    with pytest.raises(ValueError, match="for 4 frames, but a latent of 2"):
        pack.sample_graph(graph, latent={"samples": graph.latent["samples"][:2]})


def test_a_latent_of_another_size_is_refused(pack, graph):
    with pytest.raises(ValueError, match="for latents of 16x12, but 8x8"):
        pack.sample_graph(graph, latent={"samples": torch.zeros(4, 4, 8, 8)})


def begun_from(model, graph, noise):
    """What a sampler finds at the first noise level."""
    begun = []

    def look(_model, x, _sigmas, **_more):
        begun.append(x)
        return x

    sampler = comfy.samplers.KSAMPLER(look)
    sigmas = torch.tensor([1.0, 0.0])
    comfy.sample.sample_custom(model, noise, 1.0, sampler, sigmas, graph.positive, graph.negative, noise * 0)
    return begun[0]


def test_clips_start_from_noise_without_its_mean_over_time(demo, graph):
    noise = torch.randn(graph.latent["samples"].shape, generator=torch.Generator().manual_seed(1))
    plain, free = begun_from(demo.model, graph, noise), begun_from(graph.model, graph, noise)
    assert plain.mean(0).std() > 0.1 * plain.std()
    assert free.mean(0).abs().max() < 1e-3 * free.std() and free.std() > 0.9 * plain.std()
    single = begun_from(graph.model, graph, noise[:1])
    torch.testing.assert_close(single, begun_from(demo.model, graph, noise[:1]))
    nothing = begun_from(graph.model, graph, noise * 0)
    assert not nothing.any()
