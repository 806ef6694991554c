"""Motion models of every family in the host, on a checkpoint of Stable Diffusion 1.5's shape, a tenth as wide."""

import comfy.lora
import comfy.model_management
import comfy.model_sampling
import comfy.sample
import comfy.samplers
import comfy.sd
import pytest
import torch

FAMILIES = ("animatediff_v1", "animatediff_v2", "animatediff_v3", "animatelcm", "pia", "release")
TRAINING_FREE = ("animatediff_v1", "animatediff_v2", "animatediff_v3", "animatelcm")
FRAMES = 3


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def relative_error(ours, theirs):
    return float((ours - theirs).abs().max() / theirs.abs().max())


@pytest.mark.parametrize("name", FAMILIES)
def test_the_node_names_the_family_and_says_what_it_does(pack, files, name):
    motion, about = pack.run("LoadMotionModel", name=f"{name}.safetensors")
    lines = about.splitlines()
    assert lines[0] == motion.model.family.title and motion.model.family.name == name
    assert any("start" in line for line in lines if "Motion magnitude" in line) == (name in TRAINING_FREE)
    assert f"{name}.safetensors" in pack.node("LoadMotionModel").define_schema().inputs[0].options


@pytest.mark.parametrize("name", [*FAMILIES, "followclick", "followclick_gated"])
def test_the_attached_host_unet_computes_what_the_attached_core_unet_does(pack, small, load, name):
    attaching, motion = pack.module("followclick_core.models.attach"), load(name)
    own = motion.spatial or small.unet.state_dict()
    host, core = small.model.model.diffusion_model, small.unet
    x, t = noise(2 * FRAMES, 4, 16, 8), torch.tensor([900, 30]).repeat_interleave(FRAMES)
    context = noise(2, 7, core.params.context_dim, seed=1).repeat_interleave(FRAMES, 0)
    first = motion.model.first_frame(noise(2, 4, 16, 8, seed=2), (noise(2, 1, 16, 8, seed=3) > 0).float(), FRAMES)
    words = noise(2, 7, core.params.context_dim, seed=4) if motion.model.family.motion_attention else None
    conditioning = attaching.MotionConditioning(FRAMES, words, torch.tensor([4.0, 9.0]), first)
    before = {key: value.clone() for key, value in host.state_dict().items()}
    results = []
    try:
        for unet, arguments in ((host, {"transformer_options": {}}), (core, {})):
            unet.load_state_dict(dict(own))
            attachment = attaching.attach(unet, motion.model)
            with attachment.conditioned(conditioning, t):
                results.append(unet(x, t, context, **arguments))
            attachment.detach()
        plain = core(x, t, context)
    finally:
        host.load_state_dict(before)
        core.load_state_dict(before)
    assert relative_error(results[0], results[1]) < 1e-4
    assert relative_error(plain, results[1]) > 1e-2


@pytest.mark.parametrize("channels", [4, 9])
def test_the_core_unet_is_the_hosts(pack, small, load, channels):
    """With nine channels the host has one convolution, and the core its own and the motion model's."""
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    host_models = pack.module("nodes.host_models")
    config = host_models.unet_config(small.unet.params) | {"in_channels": channels}
    theirs = UNetModel(**config, dtype=torch.float32).eval()
    state, extra = dict(small.unet.state_dict()), noise(2, 5, 16, 8, seed=4)
    conv5 = load("pia").model.first_frame_conv
    x, t = noise(2, 4, 16, 8), torch.tensor([999.0, 1.0])
    context = noise(2, 7, small.unet.params.context_dim, seed=1)
    inputs, handle = x, None
    if channels == 9:
        key = "input_blocks.0.0.weight"
        state[key] = torch.cat([state[key], conv5.weight], dim=1)
        inputs = torch.cat([x, extra], dim=1)
        handle = small.unet.input_blocks[0][0].register_forward_hook(lambda _l, _i, output: output + conv5(extra))
    theirs.load_state_dict(state)
    ours = small.unet(x, t, context)
    if handle:
        handle.remove()
    assert relative_error(ours, theirs(inputs, t, context, transformer_options={})) < 1e-4


def test_each_familys_schedule_is_on_the_model_and_the_model_before_keeps_its_own(pack, small, load):
    ends = {"release": 4518.76, "animatelcm": 25.146}
    for name in FAMILIES:
        patched = pack.run("ApplyMotionModel", model=small.model, motion_model=load(name))[0]
        sampling = patched.get_model_object("model_sampling")
        assert float(sampling.sigmas[-1]) == pytest.approx(ends.get(name, 25.146), rel=1e-4)
        assert isinstance(sampling, comfy.model_sampling.V_PREDICTION) == (name == "release")
        assert len(sampling.sigmas) == (100 if name == "animatelcm" else 1000)
    assert float(small.model.get_model_object("model_sampling").sigmas[-1]) == pytest.approx(14.615, rel=1e-4)


def test_a_checkpoint_that_predicts_v_still_does_under_animatediff(pack, small, load):
    velocity = pack.module("followclick_core.diffusion.schedule").ScheduleParams(zero_terminal_snr=False)
    model = small.model.clone()
    model.add_object_patch("model_sampling", pack.module("nodes.host_models").model_sampling(velocity))
    patched = pack.run("ApplyMotionModel", model=model, motion_model=load("animatediff_v3"))[0]
    assert isinstance(patched.get_model_object("model_sampling"), comfy.model_sampling.V_PREDICTION)


def test_the_release_samples_with_the_authors_leading_timesteps_on_request(pack, small, load):
    patched = pack.run("ApplyMotionModel", model=small.model, motion_model=load("release"))[0]
    sampling = patched.get_model_object("model_sampling")
    sigmas = pack.run("MotionSchedule", model=patched, steps=100, spacing="leading")[0]
    assert sampling.timestep(sigmas[:-1]).tolist() == list(range(991, 0, -10))
    torch.testing.assert_close(sigmas, comfy.samplers.calculate_sigmas(sampling, "ddim_uniform", 100))
    with pytest.raises(ValueError, match="no spacing 'middle'"):
        pack.run("MotionSchedule", model=patched, steps=4, spacing="middle")


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_samples_a_clip_that_repeats_and_leaves_nothing_on_the_model(pack, small, load, animate, name):
    model, positive, negative, latent = animate(load(name))
    plain = {"samples": torch.zeros(1, 4, 12, 16)}
    before = pack.sample(small.model, [[*positive[0][:1], {}]], [[*negative[0][:1], {}]], plain)
    first = pack.sample(model, positive, negative, latent)
    assert first.isfinite().all() and torch.equal(first, pack.sample(model, positive, negative, latent))
    assert torch.equal(before, pack.sample(small.model, [[*positive[0][:1], {}]], [[*negative[0][:1], {}]], plain))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.model.modules())


def lora_of(model):
    key = "lora_unet_middle_block_1_transformer_blocks_0_attn1_to_q"
    weight = model.model.state_dict()[comfy.lora.model_lora_keys_unet(model.model, {})[key]]
    up, down = 0.3 * noise(weight.shape[0], 2), noise(2, weight.shape[1], seed=1)
    return {f"{key}.lora_up.weight": up, f"{key}.lora_down.weight": down}


@pytest.mark.parametrize("name", ["release", "pia"])
def test_a_lora_before_or_after_apply_motion_model_gives_the_same_clip(pack, small, load, animate, name):
    motion, lora = load(name), lora_of(small.model)
    model, *graph = animate(motion)
    plain = pack.sample(model, *graph)
    after = pack.sample(comfy.sd.load_lora_for_models(model, None, lora, 1.0, 0)[0], *graph)
    with_lora = comfy.sd.load_lora_for_models(small.model, None, lora, 1.0, 0)[0]
    before = pack.sample(animate(motion, model=with_lora)[0], *graph)
    assert torch.equal(before, after) and not torch.allclose(before, plain)
    assert torch.equal(pack.sample(model, *graph), plain)


def test_the_releases_own_unet_takes_the_checkpoints_place_while_it_samples(pack, small, load, animate):
    motion = load("release")
    model, *graph = animate(motion)
    pack.sample(model, *graph)
    own = model.model.diffusion_model.state_dict()
    assert all(torch.equal(own[key], value) for key, value in motion.spatial.items())
    comfy.model_management.unload_all_models()
    restored = small.model.model.diffusion_model.state_dict()
    assert all(torch.equal(restored[key], value) for key, value in small.unet.state_dict().items())


def test_the_release_on_another_checkpoint_is_refused(pack, demo, load):
    with pytest.raises(ValueError, match="channels"):
        pack.run("ApplyMotionModel", model=demo.model, motion_model=load("release"))


@pytest.mark.parametrize("name", ["animatediff_v3", "animatelcm"])
def test_a_training_free_clip_starts_from_the_picture_and_holds_frame_0_and_the_background(pack, load, animate, name):
    model, positive, negative, latent = animate(load(name), magnitude=16.0)
    picture = latent["samples"]
    mask = latent["noise_mask"]
    assert all(torch.equal(frame, picture[0]) for frame in picture) and picture.abs().max() > 0
    assert mask[0].max() == 0 and torch.equal(mask[1], mask[2]) and 0 < mask[1].mean() < 1
    assert "first_frame" not in positive[0][1]["model_conds"]
    clip = pack.sample(model, positive, negative, latent, steps=4)
    held = (mask == 0).expand_as(clip)
    torch.testing.assert_close(clip[held], picture[held], rtol=1e-3, atol=1e-3)
    assert (clip - picture)[1:][~held[1:]].abs().mean() > 0.01


def steps_taken(model, positive, negative, latent, steps=10):
    taken = []
    comfy.sample.sample(
        model,
        noise(*latent["samples"].shape),
        steps,
        1.0,
        "euler",
        "simple",
        positive,
        negative,
        latent["samples"],
        noise_mask=latent.get("noise_mask"),
        callback=lambda step, *_: taken.append(step),
    )
    return len(taken)


def test_the_magnitude_of_a_training_free_clip_is_the_strength_of_its_start_noise(load, animate):
    motion = load("animatediff_v3")
    for magnitude, share in ((0.0, 0.3), (6.0, 0.7), (32.0, 1.0)):
        assert steps_taken(*animate(motion, magnitude)) == round(10 * share)
    model, positive, negative, latent = animate(motion, 0.0)
    empty = {"samples": torch.zeros_like(latent["samples"])}
    assert steps_taken(model, positive, negative, empty) == 10  # no picture: as without us


def test_pias_magnitude_can_be_changed_after_first_frame(pack, load, animate):
    model, positive, negative, latent = animate(load("pia"), magnitude=2.0)
    expected = pack.sample(*animate(load("pia"), magnitude=16.0))
    changed = [pack.run("FlowMagnitude", conditioning=each, motion_magnitude=16.0)[0] for each in (positive, negative)]
    found = pack.sample(model, *changed, latent)
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found, pack.sample(model, positive, negative, latent))


@pytest.mark.parametrize(
    ("name", "mode"), [("pia", "blended"), ("pia", "separate"), ("animatediff_v3", "blended"), ("release", "blended")]
)
def test_several_regions_move_by_their_own_prompt_and_magnitude(pack, demo, load, animate, square, name, mode):
    def clip(prompt="jump", magnitude=16.0):
        other = pack.regions(demo, square.flip(-1), prompt=prompt, magnitude=magnitude)
        both = pack.regions(demo, square, prompt="run", magnitude=2.0, regions=other)
        return pack.sample(*animate(load(name), regions=both, region_mode=mode))

    plain = clip()
    assert plain.isfinite().all()
    assert not torch.allclose(plain, clip(prompt="spin left"))
    if name != "animatediff_v3":  # there the strongest counts, for all
        assert not torch.allclose(plain, clip(magnitude=6.0))


def test_the_motion_prompt_joins_the_ordinary_one_where_motion_modules_read_no_text(pack, demo, load, animate):
    text = pack.text(demo, "a ball")[0][0]
    _model, positive, negative, _latent = animate(load("pia"))
    run = pack.text(demo, "run")[0][0]
    torch.testing.assert_close(positive[0][0], torch.cat([text, run], dim=1))
    assert torch.equal(negative[0][0], pack.text(demo, "blurred")[0][0])
    _model, positive, *_ = animate(load("pia"), text="")
    torch.testing.assert_close(positive[0][0], run)


@pytest.mark.parametrize(("name", "most"), [("animatediff_v1", 24), ("animatediff_v3", 32)])
def test_a_clip_longer_than_the_positions_says_so_and_windows_make_it_possible(pack, load, animate, name, most):
    model, *graph = animate(load(name), length=most + 4)
    with pytest.raises(ValueError, match=rf"positions of {most} frames, and {most + 4} are sampled together"):
        pack.sample(model, *graph, steps=1)
    windowed = pack.run("ContextWindows", model=model, context_length=16, context_overlap=4, loop=False)[0]
    assert pack.sample(windowed, *graph, steps=1).isfinite().all()


def test_a_motion_lora_adds_to_the_motion_model_and_only_where_it_is_connected(pack, load, animate, files):
    lora = pack.module("followclick_core.models.lora")
    motion = load("animatediff_v2")
    model, *graph = animate(motion)
    plain = pack.sample(model, *graph)

    def sampled(strength, times=1):
        changed = motion
        for _ in range(times):
            changed = pack.run("LoadMotionLora", motion_model=changed, name="pan.ckpt", strength=strength)[0]
        return pack.sample(animate(changed)[0], *graph)

    assert torch.equal(sampled(0.0), plain)
    once = sampled(0.8)
    merged = load("animatediff_v2")
    lora.merge_motion_lora(merged.model, files / "pan.ckpt", 0.8)
    torch.testing.assert_close(once, pack.sample(animate(merged)[0], *graph), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(once, plain)
    torch.testing.assert_close(sampled(0.4, times=2), once, rtol=1e-3, atol=1e-3)
    assert torch.equal(pack.sample(model, *graph), plain)
    wrong = pack.module("followclick_core.checkpoint").CheckpointError
    with pytest.raises(wrong, match="does not fit this motion model"):
        pack.run("LoadMotionLora", motion_model=load("animatediff_v3"), name="pan.ckpt", strength=1.0)
    with pytest.raises(FileNotFoundError, match=r"animatediff_motion_lora\S*\.$"):  # there is no LoRA 'demo'
        pack.run("LoadMotionLora", motion_model=motion, name="absent.ckpt", strength=1.0)
