"""The host's own nodes around an animated MODEL, each in a graph as a user would wire it, run by a real server.

The demo model samples four frames in two steps; what is not about numbers alone is compared with the graph without it.
"""

import json
import os
import shutil

import numpy as np
import pytest


@pytest.fixture(scope="module")
def run_clip(rig, kit):
    """Run a graph of clips and give back what each Save Latent node wrote."""

    def run(graph, *nodes: str) -> list[np.ndarray]:
        done = rig.run(graph.nodes)
        return [kit.latents(rig, done, node) for node in nodes]

    return run


@pytest.fixture(scope="module")
def plain_clip(run_clip, kit) -> np.ndarray:
    clip = kit.demo_clip()
    return run_clip(clip.graph, clip.saved())[0]


def check_changed(found: np.ndarray, reference: np.ndarray) -> None:
    assert found.shape == reference.shape
    assert np.isfinite(found).all()
    assert np.abs(found - reference).mean() > 1e-3 * np.abs(reference).mean()


def check_close(found: np.ndarray, reference: np.ndarray, tolerance: float = 1e-4) -> None:
    assert np.abs(found - reference).max() < tolerance * np.abs(reference).max()


def test_a_lora_gives_the_same_clip_before_and_after_the_motion_model(run_clip, kit, plain_clip):
    clip = kit.demo_clip()
    graph, options = clip.graph, {"lora_name": "lora.safetensors", "strength_model": 0.8, "strength_clip": 0.6}
    after = graph.add("LoraLoader", model=clip.model, clip=clip.clip, **options)
    before = graph.add("LoraLoader", model=clip.plain_model, clip=clip.clip, **options)
    patched = graph.add("FollowClick_ApplyMotionModel", model=before, motion_model=clip.motion_model)
    found = run_clip(graph, clip.saved(model=after), clip.saved(model=patched), clip.saved())
    assert np.array_equal(found[0], found[1])
    check_changed(found[0], plain_clip)
    assert np.array_equal(found[2], plain_clip), "the LoRA stayed on the weights"


def test_a_loras_text_encoder_reaches_the_motion_prompt(run_clip, kit, plain_clip):
    graph = kit.Graph()
    demo = graph.add("FollowClick_LoadDemoModel")
    options = {"lora_name": "lora.safetensors", "strength_model": 0.0, "strength_clip": 1.0}
    lora = graph.add("LoraLoader", model=demo, clip=kit.of(demo, 1), **options)
    clip = kit.clip_on(graph, lora, kit.of(lora, 1), kit.of(demo, 2), kit.of(demo, 3))
    check_changed(run_clip(graph, clip.saved())[0], plain_clip)


def pose_images(graph, kit, count: int):
    """An IMAGE batch of the first `count` poses."""
    images = graph.add("LoadImage", image="pose0.png")
    for index in range(1, count):
        more = graph.add("LoadImage", image=f"pose{index}.png")
        images = graph.add("ImageBatch", image1=images, image2=more)
    return images


def with_pose(clip, kit, count: int, **options):
    """Both conditionings of the clip under an openpose ControlNet."""
    graph = clip.graph
    control = graph.add("ControlNetLoader", control_net_name="openpose.safetensors")
    applied = graph.add(
        "ControlNetApplyAdvanced",
        positive=clip.positive,
        negative=clip.negative,
        control_net=control,
        image=pose_images(graph, kit, count),
        **{"strength": 1.0, "start_percent": 0.0, "end_percent": 1.0} | options,
    )
    return {"positive": applied, "negative": kit.of(applied, 1)}


def test_a_controlnet_takes_one_pose_or_one_for_each_frame(run_clip, kit, plain_clip):
    clip = kit.demo_clip()
    one, each, none = (
        clip.saved(**with_pose(clip, kit, 1)),
        clip.saved(**with_pose(clip, kit, kit.FRAMES)),
        clip.saved(**with_pose(clip, kit, kit.FRAMES, strength=0.0)),
    )
    still, posed, unposed = run_clip(clip.graph, one, each, none)
    check_changed(still, plain_clip)
    check_changed(posed, still)
    # Frame 0 has the same pose in both, but sees the others: what differs most are the frames whose pose differs most.
    by_frame = np.abs(posed - still).mean(axis=(1, 2, 3))
    assert by_frame[0] < by_frame[-1]
    assert np.array_equal(unposed, plain_clip)


def test_a_controlnet_counts_in_its_range_of_steps_only(run_clip, kit, plain_clip):
    clip = kit.demo_clip()
    late = with_pose(clip, kit, 1, start_percent=0.3)  # from the second of two steps on
    never = with_pose(clip, kit, 1, start_percent=1.0)
    found = run_clip(clip.graph, clip.saved(**late), clip.saved(**never))
    check_changed(found[0], plain_clip)
    assert np.array_equal(found[1], plain_clip)


def test_a_conditioning_mask_says_where_its_prompt_counts(run_clip, kit, plain_clip):
    clip = kit.demo_clip()
    graph = clip.graph
    mask = graph.add("LoadImageMask", image="half.png", channel="red")
    everywhere = graph.add("InvertMask", mask=graph.add("SolidMask", value=0.0, width=128, height=96))
    options = {"strength": 1.0, "set_cond_area": "default"}
    inside = graph.add("ConditioningSetMask", conditioning=clip.positive, mask=mask, **options)
    outside = graph.add(
        "ConditioningSetMask", conditioning=clip.positive, mask=graph.add("InvertMask", mask=mask), **options
    )
    both = graph.add("ConditioningCombine", conditioning_1=inside, conditioning_2=outside)
    whole = graph.add("ConditioningSetMask", conditioning=clip.positive, mask=everywhere, **options)
    other = graph.add("FollowClick_FlowMagnitude", conditioning=clip.positive, motion_magnitude=20.0)
    other = graph.add("ConditioningSetMask", conditioning=other, mask=mask, **options)
    mixed = graph.add("ConditioningCombine", conditioning_1=other, conditioning_2=outside)
    nodes = [clip.saved(positive=positive) for positive in (both, whole, mixed)]
    same, all_over, different = run_clip(graph, *nodes)
    check_close(same, plain_clip)  # the same entry in both halves
    check_close(all_over, plain_clip)
    check_changed(different, plain_clip)


def test_timestep_ranges_that_join_are_the_whole(run_clip, kit, plain_clip):
    clip = kit.demo_clip()
    graph = clip.graph
    early = graph.add("ConditioningSetTimestepRange", conditioning=clip.positive, start=0.0, end=0.5)
    late = graph.add("ConditioningSetTimestepRange", conditioning=clip.positive, start=0.5, end=1.0)
    other = graph.add("FollowClick_FlowMagnitude", conditioning=clip.positive, motion_magnitude=20.0)
    other = graph.add("ConditioningSetTimestepRange", conditioning=other, start=0.5, end=1.0)
    joined = graph.add("ConditioningCombine", conditioning_1=early, conditioning_2=late)
    changing = graph.add("ConditioningCombine", conditioning_1=early, conditioning_2=other)
    found = run_clip(graph, clip.saved(positive=joined), clip.saved(positive=changing))
    check_close(found[0], plain_clip)
    check_changed(found[1], plain_clip)


MODEL_NODES = {
    "FreeU": {"b1": 1.1, "b2": 1.2, "s1": 0.9, "s2": 0.2},
    "FreeU_V2": {"b1": 1.3, "b2": 1.4, "s1": 0.9, "s2": 0.2},
    "RescaleCFG": {"multiplier": 0.7},
    # It perturbs the middle block alone, which decides little in the demo model.
    "PerturbedAttentionGuidance": {"scale": 30.0},
}


def test_nodes_that_patch_a_model_work_before_and_after_the_motion_model(run_clip, kit, plain_clip):
    clip = kit.demo_clip()
    graph, nodes = clip.graph, []
    for kind, options in MODEL_NODES.items():
        before = graph.add(kind, model=clip.plain_model, **options)
        patched = graph.add("FollowClick_ApplyMotionModel", model=before, motion_model=clip.motion_model)
        nodes += [clip.saved(model=graph.add(kind, model=clip.model, **options)), clip.saved(model=patched)]
    found = run_clip(graph, *nodes, clip.saved())
    for kind, after, before in zip(MODEL_NODES, found[0:-1:2], found[1:-1:2], strict=True):
        check_changed(after, plain_clip)
        assert np.array_equal(after, before), kind
    assert np.array_equal(found[-1], plain_clip)


def test_every_sampler_that_the_host_offers_makes_a_clip(rig, run_clip, kit):
    infos = json.loads(rig.get("/object_info/KSampler"))["KSampler"]["input"]["required"]
    samplers = infos["sampler_name"][0]
    assert len(samplers) > 30
    clip = kit.demo_clip(length=2)
    nodes = [clip.saved(sampler_name=name, cfg=2.0) for name in samplers]
    wrong = []
    for name, found in zip(samplers, run_clip(clip.graph, *nodes), strict=True):
        # The first noise level is above 4000: what a second-order sampler errs by in two steps is large.
        if not np.isfinite(found).all() or not 0 < np.abs(found).mean() < 200:
            wrong.append((name, float(np.abs(found).mean())))
    assert wrong == []


def test_every_scheduler_that_the_host_offers_makes_a_clip(rig, run_clip, kit):
    infos = json.loads(rig.get("/object_info/KSampler"))["KSampler"]["input"]["required"]
    clip = kit.demo_clip(length=2)
    nodes = [clip.saved(scheduler=name) for name in infos["scheduler"][0]]
    assert all(np.isfinite(found).all() for found in run_clip(clip.graph, *nodes))


def test_the_advanced_sampler_in_two_passes_is_one_sampling(run_clip, kit):
    clip = kit.demo_clip()
    graph = clip.graph
    common = {
        "model": clip.model,
        "positive": clip.positive,
        "negative": clip.negative,
        "noise_seed": 1,
        "steps": 4,
        "cfg": 5.0,
        "sampler_name": "euler",
        "scheduler": "simple",
    }
    first = graph.add(
        "KSamplerAdvanced",
        **common,
        latent_image=clip.latent,
        add_noise="enable",
        start_at_step=0,
        end_at_step=2,
        return_with_leftover_noise="enable",
    )
    second = graph.add(
        "KSamplerAdvanced",
        **common,
        latent_image=first,
        add_noise="disable",
        start_at_step=2,
        end_at_step=10000,
        return_with_leftover_noise="disable",
    )
    half, whole, reference = run_clip(graph, graph.save(first), graph.save(second), clip.saved(steps=4))
    check_close(whole, reference)
    check_changed(half, reference)


def test_the_custom_sampler_with_our_schedule_is_ksampler(run_clip, kit, plain_clip):
    clip = kit.demo_clip()
    graph = clip.graph
    sigmas = graph.add("FollowClick_MotionSchedule", model=clip.model, steps=kit.STEPS)
    sampled = graph.add(
        "SamplerCustomAdvanced",
        noise=graph.add("RandomNoise", noise_seed=1),
        guider=graph.add("CFGGuider", model=clip.model, positive=clip.positive, negative=clip.negative, cfg=5.0),
        sampler=graph.add("KSamplerSelect", sampler_name="euler"),
        sigmas=sigmas,
        latent_image=clip.latent,
    )
    dual = graph.add(
        "SamplerCustomAdvanced",
        noise=graph.add("RandomNoise", noise_seed=1),
        guider=graph.add(
            "DualCFGGuider",
            model=clip.model,
            cond1=clip.positive,
            cond2=clip.positive,
            negative=clip.negative,
            cfg_conds=5.0,
            cfg_cond2_negative=5.0,
            style="regular",
        ),
        sampler=graph.add("KSamplerSelect", sampler_name="euler"),
        sigmas=sigmas,
        latent_image=clip.latent,
    )
    found, three_entries = run_clip(graph, graph.save(sampled), graph.save(dual))
    check_close(found, plain_clip)
    check_close(three_entries, plain_clip, 1e-3)


def test_without_guidance_the_host_asks_for_one_entry_only(rig, run_clip, kit, plain_clip):
    clip = kit.demo_clip()
    kit.ask(rig, "/testing/calls")
    watched = clip.graph.add("Testing_WatchCalls", model=clip.model)
    (found,) = run_clip(clip.graph, clip.saved(model=watched, cfg=1.0))
    calls = kit.ask(rig, "/testing/calls")
    assert [call["entries"] for call in calls] == [[0]] * kit.STEPS
    check_changed(found, plain_clip)


def test_entries_run_one_by_one_when_memory_is_short(rig, run_clip, kit, plain_clip):
    clip = kit.demo_clip()
    graph = clip.graph
    kit.ask(rig, "/testing/calls")
    watched = graph.add("Testing_WatchCalls", model=graph.add("Testing_ShortOfMemory", model=clip.model))
    (found,) = run_clip(graph, clip.saved(model=watched))
    calls = kit.ask(rig, "/testing/calls")
    assert sorted(call["entries"] for call in calls) == [[0]] * kit.STEPS + [[1]] * kit.STEPS
    check_close(found, plain_clip)


@pytest.mark.parametrize("backend", ["cudagraphs", "inductor"])
def test_a_compiled_model_makes_the_same_clip(run_clip, kit, plain_clip, backend):
    """On a CPU `cudagraphs` only traces, which is what hooks could break; `inductor` compiles for minutes."""
    if backend == "inductor" and not (shutil.which("g++") and os.environ.get("FOLLOWCLICK_TEST_INDUCTOR")):
        pytest.skip("INDUCTOR WAS NOT TESTED: it takes g++ and minutes; set FOLLOWCLICK_TEST_INDUCTOR=1")
    clip = kit.demo_clip()
    compiled = clip.graph.add("TorchCompileModel", model=clip.model, backend=backend)
    found, after = run_clip(clip.graph, clip.saved(model=compiled), clip.saved())
    check_close(found, plain_clip, 1e-2)
    assert np.array_equal(after, plain_clip)


def test_a_clip_passes_through_a_tiled_autoencoder(rig, kit):
    clip = kit.demo_clip()
    graph, samples = clip.graph, clip.sample()
    tiles = {"tile_size": 128, "overlap": 32, "temporal_size": 64, "temporal_overlap": 8}
    whole = graph.add("VAEDecode", samples=samples, vae=clip.vae)
    tiled = graph.add("VAEDecodeTiled", samples=samples, vae=clip.vae, **tiles | {"tile_size": 64})
    back = graph.save(graph.add("VAEEncodeTiled", pixels=tiled, vae=clip.vae, **tiles))
    reference = graph.save(graph.add("VAEEncode", pixels=whole, vae=clip.vae))
    run = rig.run(graph.nodes)
    found, expected = kit.latents(rig, run, back), kit.latents(rig, run, reference)
    assert found.shape == expected.shape and len(found) == kit.FRAMES
    # Seams are all that tiles may change.
    assert np.abs(found - expected).mean() < 0.1 * np.abs(expected).mean()


def test_a_noise_mask_of_the_user_holds_what_it_covers(run_clip, kit):
    clip = kit.demo_clip()
    graph = clip.graph
    mask = graph.add("LoadImageMask", image="half.png", channel="red")
    held = graph.add("SetLatentNoiseMask", samples=clip.latent, mask=mask)
    free, masked = run_clip(graph, clip.saved(), clip.saved(latent_image=held))
    check_changed(masked, free)
    height, width = masked.shape[2:]
    still = masked[:, :, : height // 6, width * 5 // 8 :]
    assert np.abs(still).max() < 1e-3, "the empty latent outside the mask was changed"


def test_an_accelerated_model_makes_the_same_clip_under_lora_and_controlnet(run_clip, kit):
    clip = kit.demo_clip()
    graph = clip.graph
    lora = graph.add("LoraLoaderModelOnly", model=clip.model, lora_name="lora.safetensors", strength_model=0.8)
    inputs = with_pose(clip, kit, 1)
    options = {"channels_last": True, "text_keys": True, "cuda_graphs": True, "fused_feed_forward": True}
    exact = graph.add("FollowClick_AccelerateExactly", model=lora, **kit.every_switch(**options))
    found, expected = run_clip(graph, clip.saved(model=exact, **inputs), clip.saved(model=lora, **inputs))
    check_close(found, expected, 1e-3)


def test_compiled_blocks_make_the_same_clip(run_clip, kit, plain_clip):
    if not (shutil.which("g++") and os.environ.get("FOLLOWCLICK_TEST_INDUCTOR")):
        pytest.skip("INDUCTOR WAS NOT TESTED: it takes g++ and minutes; set FOLLOWCLICK_TEST_INDUCTOR=1")
    clip = kit.demo_clip()
    switches = kit.every_switch(compile_blocks="default", text_keys=True)
    compiled = clip.graph.add("FollowClick_AccelerateExactly", model=clip.model, **switches)
    found, after = run_clip(clip.graph, clip.saved(model=compiled), clip.saved())
    check_close(found, plain_clip, 1e-2)
    assert np.array_equal(after, plain_clip)


def test_an_approximation_is_close_and_nothing_of_it_stays(run_clip, kit, plain_clip):
    clip = kit.demo_clip()
    options = {"cache_interval": 2, "cache_depth": 0, "only_region": False, "context": 2.5}
    faster = clip.graph.add("FollowClick_AccelerateApproximately", model=clip.model, **options)
    saved = clip.saved(model=faster, steps=6), clip.saved(steps=6), clip.saved()
    found, exact, after = run_clip(clip.graph, *saved)
    check_changed(found, exact)
    assert np.abs(found - exact).mean() < 0.2 * np.abs(exact).mean()
    assert np.array_equal(after, plain_clip)
