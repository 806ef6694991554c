"""Beside AnimateDiff Evolved, which most users of motion models have: both work, and both on one MODEL is an error."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

PEER = Path(os.environ.get("FOLLOWCLICK_TEST_ADE", Path.home() / "ComfyUI-peers" / "ComfyUI-AnimateDiff-Evolved"))
FILE = "mm_sd_v15_v2.safetensors"


@pytest.fixture(scope="module")
def both(start_server, checkpoint_files, kit):
    """A server with both packs, and a random AnimateDiff v2 file of the true widths, as the peer knows no others."""
    if not (PEER / "__init__.py").is_file():
        pytest.skip(f"ANIMATEDIFF EVOLVED WAS NOT TESTED: it is not in {PEER}; put its commit 90fb133 (1.5.6) there")
    with start_server(packs={"ComfyUI-AnimateDiff-Evolved": PEER}) as server:
        kit.write_pictures(server.folder / "input")
        tensors = checkpoint_files.motion_tensors("animatediff_v2", width=320, dtype=torch.float16)
        # The preset says at which size it was trained: a quarter of the published ones' side.
        save_file(tensors, server.folder / "models" / "animatediff_models" / FILE, {"preset": "small"})
        yield server


@pytest.fixture
def base(kit):
    """A graph with a MODEL of Stable Diffusion 1.5's widths and a text for it."""
    graph = kit.Graph()
    model = graph.add("Testing_RandomModel", channels=320, text_width=768)
    clip = graph.add("Testing_RandomClip", width=768)
    text = graph.add("CLIPTextEncode", clip=clip, text="a rocket")
    latent = graph.add("EmptyLatentImage", width=64, height=64, batch_size=2)
    common = {"positive": text, "negative": text, "latent_image": latent, "seed": 3, "steps": 1, "cfg": 1.0}
    return graph, model, common | {"sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}


def evolved(graph, model, with_motion: bool = True):
    """The MODEL after the peer's nodes."""
    motion = {}
    if with_motion:
        loaded = graph.add("ADE_LoadAnimateDiffModel", model_name=FILE)
        motion = {"m_models": graph.add("ADE_ApplyAnimateDiffModelSimple", motion_model=loaded)}
    return graph.add("ADE_UseEvolvedSampling", model=model, beta_schedule="autoselect", **motion)


def test_both_packs_sample_in_one_server_as_each_does_before_the_other_ran(both, kit, base):
    graph, model, common = base
    plain = graph.save(graph.add("KSampler", model=model, **common))
    theirs = graph.save(graph.add("KSampler", model=evolved(graph, model), **common))
    run = both.run(graph.nodes)
    before = kit.latents(both, run, theirs)
    assert np.isfinite(before).all() and not np.allclose(before, kit.latents(both, run, plain), rtol=1e-2)

    ours = kit.demo_clip(graph)
    node = ours.saved()
    clip = kit.latents(both, both.run(graph.nodes), node)
    alone = kit.demo_clip()
    node = alone.saved()
    assert np.array_equal(kit.latents(both, both.run(alone.graph.nodes), node), clip)

    again = graph.add("Testing_WatchCalls", model=model)  # so that the host samples it again
    theirs_again = graph.save(graph.add("KSampler", model=evolved(graph, again), **common))
    repeated = both.run(graph.nodes)
    assert np.array_equal(kit.latents(both, repeated, theirs_again), before)


def test_their_model_before_ours_is_a_clear_error(both, kit, base):
    graph, model, common = base
    motion = graph.add("FollowClick_LoadMotionModel", name=FILE)
    theirs = evolved(graph, model)
    patched = graph.add("FollowClick_ApplyMotionModel", model=theirs, motion_model=motion)
    graph.save(graph.add("KSampler", model=patched, **common))
    with pytest.raises(RuntimeError, match="a motion model of AnimateDiff Evolved, and two would fight"):
        both.run(graph.nodes)


def test_our_model_before_theirs_is_a_clear_error(both, kit, base):
    graph, model, common = base
    motion = graph.add("FollowClick_LoadMotionModel", name=FILE)
    patched = graph.add("FollowClick_ApplyMotionModel", model=model, motion_model=motion)
    graph.save(graph.add("KSampler", model=evolved(graph, patched), **common))
    with pytest.raises(RuntimeError, match="a motion model of AnimateDiff Evolved, and two would fight"):
        both.run(graph.nodes)
    assert kit.ask(both, "/testing/hooks") == []
