"""One server that has to go on: many graphs in turn, cancelled ones, and ones that fail in the middle."""

import random

import numpy as np
import pytest

INTERRUPTED_STEPS = 12
WEIGHTS = 20 * 2**20  # less than the smallest of the graphs' models takes


@pytest.fixture(scope="module")
def demo_reference(rig, kit) -> np.ndarray:
    return sampled(rig, kit, kit.demo_clip())


def sampled(rig, kit, clip, **options) -> np.ndarray:
    node = clip.saved(**options)
    run = rig.run(clip.graph.nodes)
    assert node not in run.cached, "it was not sampled, so nothing is tested"
    return kit.latents(rig, run, node)


def lora_clip(kit):
    graph = kit.Graph()
    demo = graph.add("FollowClick_LoadDemoModel")
    options = {"lora_name": "lora.safetensors", "strength_model": 0.8, "strength_clip": 0.6}
    lora = graph.add("LoraLoader", model=demo, clip=kit.of(demo, 1), **options)
    return kit.clip_on(graph, lora, kit.of(lora, 1), kit.of(demo, 2), kit.of(demo, 3))


def test_twenty_runs_in_turn_repeat_to_the_bit_and_take_no_more_memory(rig, kit):
    makers = {
        "plain": kit.plain_picture,
        "demo": kit.demo_clip,
        "lora": lambda: lora_clip(kit),
        "animatediff": lambda: kit.tiny_clip("animatediff_v2.safetensors"),
        "pia": lambda: kit.tiny_clip("pia.safetensors"),
    }
    # What the first use of each part imports stays, so a server that has seen them all is what /free comes back to.
    first = {name: sampled(rig, kit, make()) for name, make in makers.items()}
    empty, memory = memory_after_free(rig, kit), []
    for run in range(20):
        name = list(makers)[run % len(makers)]
        found = sampled(rig, kit, makers[name]())
        assert np.array_equal(found, first[name]), f"{name}, run {run + 1}"
        memory.append(kit.ask(rig, "/testing/memory"))
    assert memory[19] <= 1.03 * memory[4], [round(size / 2**20) for size in memory]
    left = memory_after_free(rig, kit)
    assert left <= 1.03 * empty and memory[19] - left > WEIGHTS, (empty, memory[19], left)


def memory_after_free(rig, kit) -> int:
    rig.post("/free", {"unload_models": True, "free_memory": True})
    wait_until_free(rig, kit)
    return kit.ask(rig, "/testing/memory")


def wait_until_free(rig, kit) -> None:
    """The worker obeys /free when it next wakes; a graph of one node wakes it."""
    graph = kit.Graph()
    graph.add("PreviewImage", images=graph.add("EmptyImage", width=8, height=8, batch_size=1, color=0))
    rig.run(graph.nodes)


@pytest.mark.parametrize("step", sorted(random.Random(7).sample(range(INTERRUPTED_STEPS), 10)))
def test_the_run_after_one_that_was_cancelled_is_right(rig, kit, demo_reference, step):
    clip = kit.demo_clip()
    stopped = clip.graph.add("Testing_InterruptAtStep", model=clip.model, step=step)
    clip.saved(model=stopped, steps=INTERRUPTED_STEPS, seed=step)
    with pytest.raises(RuntimeError, match="interrupted"):
        rig.run(clip.graph.nodes)
    assert kit.ask(rig, "/testing/hooks") == []
    again = kit.demo_clip()
    # Of another name, so that the host samples it again instead of keeping what it has.
    found = sampled(rig, kit, again, model=again.graph.add("Testing_WatchCalls", model=again.model))
    assert np.array_equal(found, demo_reference)


@pytest.mark.parametrize("error", ["RuntimeError", "OutOfMemoryError"])
@pytest.mark.parametrize("call", [0, 1])
def test_the_host_recovers_when_memory_runs_out_inside_a_hook(rig, kit, demo_reference, error, call):
    graph = kit.Graph()
    demo = graph.add("FollowClick_LoadDemoModel")
    failing = graph.add("Testing_FailOnce", motion_model=kit.of(demo, 3), error=error, call=call)
    clip = kit.clip_on(graph, demo, kit.of(demo, 1), kit.of(demo, 2), failing)
    clip.saved()
    with pytest.raises(RuntimeError, match="raised by a test inside a motion module"):
        rig.run(graph.nodes)
    assert kit.ask(rig, "/testing/hooks") == []
    again = kit.demo_clip()
    watched = again.graph.add("Testing_WatchCalls", model=again.model)
    assert np.array_equal(sampled(rig, kit, again, model=watched), demo_reference)
    plain = kit.plain_picture()
    assert kit.ask(rig, "/testing/hooks") == []
    assert np.isfinite(sampled(rig, kit, plain)).all()
