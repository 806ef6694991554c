"""Little video memory. ComfyUI takes --lowvram and --novram on a GPU only; what they do can be had here as well."""

import json
import os

import numpy as np
import pytest


def test_a_clip_is_the_same_while_every_layer_fetches_its_own_weights(rig, kit):
    """What --novram does, LoRA and all, on the device that is there."""
    reference, streamed = kit.demo_clip(), kit.demo_clip()
    options = {"lora_name": "lora.safetensors", "strength_model": 0.8, "strength_clip": 0.0}
    expected, found = [], []
    for clip, kind, latents in (
        (reference, "Testing_WatchCalls", expected),
        (streamed, "Testing_NoVideoMemory", found),
    ):
        model = clip.graph.add("LoraLoader", model=clip.model, clip=clip.clip, **options)
        nodes = [clip.saved(model=clip.graph.add(kind, model=each)) for each in (clip.model, model)]
        kit.ask(rig, "/testing/calls")
        run = rig.run(clip.graph.nodes)
        assert not run.cached.intersection(nodes)
        latents += [kit.latents(rig, run, node) for node in nodes]
    assert [call["streamed"] for call in kit.ask(rig, "/testing/calls")] == [True, True]
    for before, after in zip(expected, found, strict=True):
        assert np.abs(before - after).max() < 1e-3 * np.abs(before).max()
    assert kit.ask(rig, "/testing/hooks") == []


def test_feed_forwards_in_pieces_fetch_their_weights_as_layers_do(rig, kit):
    clip = kit.demo_clip()
    lora = {"lora_name": "lora.safetensors", "strength_model": 0.8}
    model = clip.graph.add("LoraLoaderModelOnly", model=clip.model, **lora)
    in_pieces = clip.graph.add(
        "FollowClick_AccelerateExactly", model=model, **kit.every_switch(fused_feed_forward=True)
    )
    streamed = clip.graph.add("Testing_NoVideoMemory", model=in_pieces)
    nodes = [clip.saved(model=model), clip.saved(model=streamed)]
    kit.ask(rig, "/testing/calls")
    run = rig.run(clip.graph.nodes)
    assert kit.ask(rig, "/testing/calls")[-1]["streamed"]
    expected, found = (kit.latents(rig, run, node) for node in nodes)
    assert np.abs(expected - found).max() < 1e-3 * np.abs(expected).max()


@pytest.mark.parametrize("option", ["--lowvram", "--novram"])
def test_a_server_with_little_video_memory_makes_the_same_clip(start_server, rig, kit, option):
    if not os.environ.get("FOLLOWCLICK_TEST_CUDA"):
        pytest.skip(f"{option} WAS NOT TESTED: it needs a GPU; set FOLLOWCLICK_TEST_CUDA=1 where there is one")
    clip = kit.demo_clip()
    node = clip.saved()
    expected = kit.latents(rig, rig.run(clip.graph.nodes), node)
    with start_server(option) as server:
        kit.write_pictures(server.folder / "input")
        assert json.loads(server.get("/system_stats"))["devices"][0]["type"] == "cuda"
        found = kit.latents(server, server.run(clip.graph.nodes), node)
    assert np.abs(found - expected).max() < 0.05 * np.abs(expected).max()
