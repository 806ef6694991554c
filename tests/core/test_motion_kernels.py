"""The kernels that motion modules run by without gradients, and when they do."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from followclick_core.models import motion_ops
from followclick_core.models.motion_module import MotionModule

PROGRAM = Path(__file__).with_name("interpreted_motion.py")


@pytest.fixture(scope="module")
def errors():
    if importlib.util.find_spec("triton") is None:
        pytest.skip("Triton is not made for this platform")
    path = ":".join(filter(None, sys.path))
    environment = {**os.environ, "PYTHONPATH": path, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, str(PROGRAM)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def test_every_operator_computes_what_pytorch_does(errors):
    for sizes, found in errors["operators"].items():
        assert len(found) >= 10 and max(found.values()) < 1e-5, (sizes, found)


def test_a_module_of_kernels_computes_what_one_of_layers_does(errors):
    for sizes, found in errors["modules"].items():
        assert len(found) == 4 and max(found.values()) < 1e-5, (sizes, found)


def test_so_it_does_with_regions_and_whatever_happens_to_its_weights(errors):
    assert max(errors["others"].values()) < 1e-5, errors["others"]


def test_without_a_gpu_or_with_gradients_a_module_runs_by_its_layers():
    module, x = MotionModule(32, 2, None), torch.randn(4, 32, 2, 2)
    weight = module.temporal_transformer.proj_in.weight
    with torch.no_grad():
        assert not motion_ops.run_fused(x, weight, 2)
    assert module(x, 4).requires_grad


@pytest.mark.parametrize("fault", [ImportError("no triton"), RuntimeError("no C compiler")])
def test_kernels_that_cannot_be_built_are_left_out_with_a_word(monkeypatch, caplog, fault):
    def broken(*_arguments):
        raise fault

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _index: (9, 0))
    monkeypatch.setattr(motion_ops, "comparisons", broken)
    motion_ops.operators_work.cache_clear()
    with caplog.at_level("INFO", "followclick"):
        assert not motion_ops.operators_work(0, torch.bfloat16, 320, 8)
    assert "320 channels run without their Triton kernels" in caplog.text


@pytest.mark.parametrize(("error", "works"), [(0.0, True), (0.1, False), (float("nan"), False)])
def test_kernels_that_compute_something_else_are_left_out(monkeypatch, error, works):
    theirs = torch.ones(3)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _index: (9, 0))
    monkeypatch.setattr(motion_ops, "comparisons", lambda *_: [("sum", theirs + error, theirs)])
    motion_ops.operators_work.cache_clear()
    assert motion_ops.operators_work(0, torch.bfloat16, 320, 8) is works
