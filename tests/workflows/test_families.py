"""Every family of motion models among the host's nodes, on a small random MODEL with the blocks of SD1.5."""

import numpy as np
import pytest

FAMILIES = ["animatediff_v1", "animatediff_v2", "animatediff_v3", "animatelcm", "pia", "release"]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_samples_with_a_controlnet_and_leaves_the_model_as_it_was(rig, kit, family):
    clip = kit.tiny_clip(f"{family}.safetensors")
    graph = clip.graph
    text = {"clip": clip.clip, "text": "jump"}
    plain_text = graph.add("CLIPTextEncode", **text)
    size = {"width": 128, "height": 96, "batch_size": 2}
    plain = {"positive": plain_text, "negative": plain_text, "latent_image": graph.add("EmptyLatentImage", **size)}
    control = graph.add("ControlNetLoader", control_net_name="openpose_tiny.safetensors")
    applied = graph.add(
        "ControlNetApplyAdvanced",
        positive=clip.positive,
        negative=clip.negative,
        control_net=control,
        image=graph.add("LoadImage", image="pose1.png"),
        strength=1.0,
        start_percent=0.0,
        end_percent=1.0,
    )
    # A node of its own, as the host would not run one of the same inputs again.
    again = graph.add("Testing_WatchCalls", model=clip.plain_model)
    nodes = [
        clip.saved(model=clip.plain_model, **plain),
        clip.saved(),
        clip.saved(positive=applied, negative=kit.of(applied, 1)),
        clip.saved(model=again, **plain),
    ]
    run = rig.run(graph.nodes)
    before, moving, posed, after = (kit.latents(rig, run, node) for node in nodes)
    assert np.array_equal(before, after)
    assert len(moving) == kit.FRAMES
    for found in (before, moving, posed):
        assert np.isfinite(found).all() and found.std() > 0
    assert np.abs(moving - posed).mean() > 1e-3 * np.abs(moving).mean()
    assert kit.ask(rig, "/testing/hooks") == []
