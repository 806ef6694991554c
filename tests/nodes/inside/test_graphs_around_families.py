"""What users build around a motion model: several passes, prompt schedules, ControlNets, number formats, LCM."""

import comfy.model_management
import comfy.model_sampling
import comfy.sample
import comfy.samplers
import pytest
import torch
from comfy.controlnet import ControlBase
from comfy_extras.nodes_custom_sampler import (
    AddNoise,
    BasicScheduler,
    DisableNoise,
    KSamplerSelect,
    RandomNoise,
    SamplerCustomAdvanced,
)
from comfy_extras.nodes_custom_sampler import CFGGuider as CFGGuiderNode
from comfy_extras.nodes_model_advanced import LCM, ModelComputeDtype, ModelSamplingDiscrete

import nodes

STEPS = 5


def advanced(model, positive, negative, latent, first, last, new_noise, leftover, steps=STEPS):
    sampled = nodes.KSamplerAdvanced().sample(
        model,
        "enable" if new_noise else "disable",
        7,
        steps,
        2.0,
        "euler",
        "simple",
        positive,
        negative,
        latent,
        first,
        last,
        "enable" if leftover else "disable",
    )
    return sampled[0]


@pytest.mark.parametrize("split", [1, 2, 4])
def test_two_passes_of_a_training_free_clip_are_one(load, animate, split):
    """With a magnitude whose start noise leaves out two of five levels: the first pass may have nothing to do."""
    *graph, latent = animate(load("animatediff_v3"), magnitude=6.0)
    # Where a mask counts in part, nothing tells the noise from what has moved.
    latent = {**latent, "noise_mask": latent["noise_mask"].round()}
    once = advanced(*graph, latent, 0, STEPS, True, False)
    begun = advanced(*graph, latent, 0, split, True, True)
    twice = advanced(*graph, begun, split, STEPS, False, False)
    torch.testing.assert_close(twice["samples"], once["samples"], rtol=1e-3, atol=1e-3)
    assert (once["samples"] - latent["samples"]).abs().max() > 0.1


def test_noise_added_by_a_node_of_its_own_is_the_same_clip(load, animate):
    model, positive, negative, latent = animate(load("animatediff_v3"), magnitude=6.0)
    sigmas = BasicScheduler().get_sigmas(model, "simple", STEPS, 1.0)[0][2:]  # below what max_denoise scales otherwise
    sampler, noise = KSamplerSelect().get_sampler("euler")[0], RandomNoise().get_noise(3)[0]
    guider = CFGGuiderNode().get_guider(model, positive, negative, 2.0)[0]
    once = SamplerCustomAdvanced().sample(noise, guider, sampler, sigmas, latent)[0]["samples"]
    noisy = AddNoise().add_noise(model, noise, sigmas, latent)[0]
    silent = DisableNoise().get_noise()[0]
    found = SamplerCustomAdvanced().sample(silent, guider, sampler, sigmas, {**latent, **noisy})[0]["samples"]
    torch.testing.assert_close(found, once, rtol=1e-3, atol=1e-3)


def test_a_silent_pass_over_what_is_not_the_clip_keeps_all_its_levels(load, animate):
    """Nothing tells what is noise in a latent of another size."""
    model, positive, negative, latent = animate(load("animatediff_v3"), magnitude=0.0)
    other, taken = torch.ones(3, 4, 8, 8), []
    sampled = comfy.sample.sample(
        model,
        torch.zeros_like(other),
        STEPS,
        1.0,
        "euler",
        "simple",
        positive,
        negative,
        other,
        callback=lambda step, *_: taken.append(step),
    )
    assert len(taken) == STEPS and sampled.isfinite().all()
    assert other.shape != latent["samples"].shape


def schedule(pack, demo, *prompts):
    """A prompt schedule: one entry whose embedding has a text for each frame."""
    texts = [pack.text(demo, prompt)[0] for prompt in prompts]
    return [[torch.cat([text for text, _ in texts]), texts[0][1]]]


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("windows", [False, True])
def test_each_frame_reads_its_own_prompt_of_a_schedule(pack, demo, load, animate, square, several, windows):
    regions = pack.regions(demo, square, magnitude=2.0)
    if several:
        regions = pack.regions(demo, square.flip(-1), prompt="jump", magnitude=2.0, regions=regions)

    def clip(positive):
        model, *graph = animate(load("pia"), regions=regions, length=4, positive=positive)
        if windows:
            model = pack.run("ContextWindows", model=model, context_length=2, context_overlap=1, loop=False)[0]
        return pack.sample(model, *graph, steps=1)

    constant = clip(schedule(pack, demo, *["a ball"] * 4))
    torch.testing.assert_close(constant, clip(pack.text(demo, "a ball")), rtol=1e-3, atol=1e-3)
    changed = clip(schedule(pack, demo, "a ball", "a ball", "a ball", "spin left"))
    moved = (changed - constant).abs().mean(dim=(1, 2, 3))
    assert moved[3] > 0.01 and moved[3] == moved.max()


class ReadingControl(ControlBase):
    """Notes the text that it is asked with."""

    def __init__(self):
        super().__init__()
        self.texts = []

    def get_control(self, x_noisy, t, cond, batched_number, transformer_options):
        self.texts.append(cond["c_crossattn"])
        return {"input": [], "middle": [], "output": []}


def test_a_controlnet_reads_the_users_prompt_in_blended_regions(pack, demo, load, animate, square):
    both = pack.regions(demo, square.flip(-1), prompt="jump", regions=pack.regions(demo, square))
    model, positive, negative, latent = animate(load("pia"), regions=both, text="a ball")
    control = ReadingControl()
    positive = [[text, {**options, "control": control}] for text, options in positive]
    pack.sample(model, positive, negative, latent, steps=1, cfg=1.0)
    ball = pack.text(demo, "a ball")[0][0]
    assert control.texts and all(torch.equal(text[0], ball[0]) for text in control.texts)


@pytest.mark.parametrize("name", ["animatediff_v3", "pia"])
def test_an_lcm_sampling_stays_under_families_that_predict_noise(pack, small, load, name):
    chosen = ModelSamplingDiscrete().patch(small.model, "lcm", False)[0]
    sampling = pack.run("ApplyMotionModel", model=chosen, motion_model=load(name))[0].get_model_object("model_sampling")
    assert isinstance(sampling, LCM) and len(sampling.sigmas) == 50
    assert float(sampling.sigmas[-1]) == pytest.approx(25.146, rel=1e-4)  # of the family's own betas
    velocity = pack.run("ApplyMotionModel", model=chosen, motion_model=load("release"))[0]
    assert isinstance(velocity.get_model_object("model_sampling"), comfy.model_sampling.V_PREDICTION)


def test_a_lora_in_the_weights_does_not_get_into_a_copy_of_another_format(pack, small, load, animate):
    motion = load("animatediff_v2")
    with_lora = pack.run("LoadMotionLora", motion_model=motion, name="pan.ckpt", strength=1.0)[0]
    clean = {key: value.clone() for key, value in motion.model.state_dict().items()}
    half = ModelComputeDtype().patch(small.model, "bf16")[0]
    pack.sample(*animate(with_lora), steps=1)  # the host leaves the LoRA in the weights until it needs them
    assert any(not torch.equal(clean[key], value) for key, value in motion.model.state_dict().items())
    patched = animate(motion, model=half)[0].get_additional_models()[0]
    comfy.model_management.load_models_gpu([patched])
    for key, value in patched.model[0].state_dict().items():
        assert value.dtype == torch.bfloat16 and torch.equal(value, clean[key].bfloat16())
    moved = animate(with_lora, model=half)[0].get_additional_models()[0]
    comfy.model_management.load_models_gpu([moved])
    assert any(not torch.equal(clean[key].bfloat16(), value) for key, value in moved.model[0].state_dict().items())


@pytest.mark.parametrize("name", ["bf16", "fp16"])
@pytest.mark.parametrize("after", [False, True])
def test_model_compute_dtype_works_before_and_after_apply_motion_model(pack, demo, graph, after, name):
    def cast(model):
        return ModelComputeDtype().patch(model, name)[0]

    if after:
        model = cast(graph.model)
    else:
        model = pack.run("ApplyMotionModel", model=cast(demo.model), motion_model=demo.motion_model)[0]
    plain = pack.sample_graph(graph)
    found = pack.sample_graph(graph, model=model)
    assert not torch.equal(found, plain)
    assert float((found - plain).abs().mean() / plain.abs().mean()) < 0.1
    assert torch.equal(pack.sample_graph(graph), plain)
