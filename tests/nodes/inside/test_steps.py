"""What a step must not do: wait for the GPU, or convert again what every step reads."""

from contextlib import contextmanager
from types import SimpleNamespace

import comfy.model_sampling
import comfy.sampler_helpers
import pytest
import torch
from comfy.conds import CONDConstant, CONDCrossAttn
from torch.utils._python_dispatch import TorchDispatchMode

import nodes

LOOKS = {"item", "_local_scalar_dense", "is_nonzero", "nonzero", "equal", "masked_select"}


class Looks(TorchDispatchMode):
    """Notes each operator whose result the CPU waits for."""

    def __init__(self):
        super().__init__()
        self.seen, self.counts = [], False

    def note(self, name: str) -> None:
        if self.counts:
            self.seen.append(name)

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        if function.overloadpacket.__name__ in LOOKS:
            self.note(str(function))
        return function(*arguments, **(named or {}))


@contextmanager
def looks(monkeypatch):
    mode, tolist = Looks(), torch.Tensor.tolist

    def noted(tensor):  # no operator of PyTorch's
        mode.note("tolist")
        return tolist(tensor)

    monkeypatch.setattr(torch.Tensor, "tolist", noted)
    with mode:
        yield mode


@pytest.mark.parametrize("name", ["animatediff_v2", "followclick", "followclick_gated", "pia", "release"])
def test_the_later_steps_of_a_clip_look_at_no_number(load, animate, monkeypatch, name):
    model, positive, negative, latent = animate(load(name), magnitude=16.0)  # with less some families leave out steps
    taken = []

    def note(*_, **__):
        taken.append(1)
        seen.counts = len(taken) == 2  # what is kept is made in the first steps

    monkeypatch.setattr(nodes.latent_preview, "prepare_callback", lambda *_: note)
    with looks(monkeypatch) as seen:
        nodes.KSampler().sample(model, 0, 4, 5.0, "euler", "simple", positive, negative, latent)
    assert len(taken) >= 3 and not seen.seen


def test_such_looks_are_seen(monkeypatch):
    with looks(monkeypatch) as seen:
        seen.counts = True
        numbers = torch.ones(2)
        assert numbers[0].item() and bool(numbers[1] > 0) and torch.equal(numbers, numbers) and numbers.tolist()
    assert len(seen.seen) == 4


def test_tensors_of_the_conditionings_go_to_the_device_and_the_graphs_own_stay(pack, graph):
    conds = pack.module("nodes.host_conds")
    entries = comfy.sampler_helpers.convert_cond(graph.positive)
    entries[0]["model_conds"] = {**entries[0]["model_conds"], "number": CONDConstant(3)}
    (moved,) = conds.on_device({"positive": entries}, torch.device("meta"))["positive"]
    assert moved["uuid"] == entries[0]["uuid"] and moved["model_conds"]["number"].cond == 3
    assert set(moved["model_conds"]) == {"motion_context", "motion_magnitude", "first_frame", "number"}
    for name, cond in entries[0]["model_conds"].items():
        there = moved["model_conds"][name]
        assert type(there) is type(cond)
        if name != "number":
            assert there.cond.is_meta and there.cond.shape == cond.cond.shape and not cond.cond.is_meta


def test_a_sampler_starts_with_conditionings_and_noise_levels_on_the_device(pack, graph):
    """Another MODEL may have loaded the weights, and then the host leaves the noise levels where they were."""
    levels = comfy.model_sampling.ModelSamplingDiscrete()
    entry = {"model_conds": {"c_crossattn": CONDCrossAttn(torch.zeros(1, 2, 3))}}
    guider = SimpleNamespace(
        model_patcher=SimpleNamespace(load_device=torch.device("meta")),
        inner_model=SimpleNamespace(model_sampling=levels),
        conds={"positive": [entry], "negative": [entry]},
    )

    def executor(guider, sigmas):
        assert all(each["model_conds"]["c_crossattn"].cond.is_meta for (each,) in guider.conds.values())
        assert levels.sigmas.is_meta and levels.log_sigmas.is_meta
        return sigmas

    sample_on_device = pack.module("nodes.host_motion")._sample_on_device
    assert sample_on_device(executor, guider, "sigmas") == "sigmas"


def test_every_sampling_of_a_clip_brings_its_conditionings_there_once(pack, graph, monkeypatch):
    motion, seen = pack.module("nodes.host_motion"), []
    on_device = motion.on_device

    def noted(conds, device):
        seen.append({key for entries in conds.values() for entry in entries for key in entry["model_conds"]})
        return on_device(conds, device)

    monkeypatch.setattr(motion, "on_device", noted)
    pack.sample_graph(graph, steps=3)
    assert seen == [{"c_crossattn", "motion_context", "motion_magnitude", "first_frame"}]
