"""Accelerated sampling in the host: the exact kind changes nothing, the approximate kind a little, and none stays."""

import gc
import weakref

import comfy.samplers
import pytest
import torch
from comfy.controlnet import ControlBase
from comfy_extras.nodes_freelunch import FreeU_V2

import nodes

SWITCHES = {
    "channels_last": {"channels_last": True},
    "text_keys": {"text_keys": True},
}


class CountingBackend:
    """torch.compile's: runs what it gets as it is, and counts how often it gets something."""

    def __init__(self):
        self.graphs = 0

    def __call__(self, graph, _inputs):
        self.graphs += 1
        return graph.forward


@pytest.fixture
def accelerated(pack):
    """A MODEL with switches of the core's settings on."""
    host = pack.module("nodes.host_acceleration")
    return lambda model, **switches: host.accelerate(model, host.Acceleration(**switches))


@pytest.fixture
def compiled(pack, accelerated):
    """A MODEL whose blocks are compiled by a counting backend."""
    params = pack.module("followclick_core.acceleration.compiled").CompileParams

    def compile_with(model, backend, any_shape=True, **more):
        return accelerated(model, compiled=params(any_shape=any_shape, backend=backend), **more)

    return compile_with


@pytest.fixture(scope="module")
def clip(pack, graph):
    with torch.inference_mode():
        return pack.sample_graph(graph, steps=3)


def test_compiled_blocks_give_the_same_clip(pack, graph, compiled, clip):
    backend = CountingBackend()
    found = pack.sample_graph(graph, model=compiled(graph.model, backend), steps=3)
    print("graphs", backend.graphs)
    torch.testing.assert_close(found, clip, rtol=1e-3, atol=1e-4)
    assert backend.graphs > 0
