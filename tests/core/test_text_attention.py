"""Attention to motion texts: the kernel against PyTorch's attention, and when it runs."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from followclick_core.models import text_attention


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not made for this platform")
def test_the_kernel_equals_pytorchs_attention():
    environment = {**os.environ, "PYTHONPATH": ":".join(filter(None, sys.path)), "TRITON_INTERPRET": "1"}
    command = [sys.executable, str(Path(__file__).with_name("interpreted_text.py"))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    errors = json.loads(done.stdout)
    assert len(errors) == 7 and max(errors.values()) < 1e-6, errors


class OnGpu(torch.Tensor):
    """What says of itself that it lies on a GPU."""

    is_cuda, device = True, torch.device("cuda", 0)  # type: ignore[assignment]


def runs(tokens=77, head_dim=40, dtype=torch.bfloat16) -> bool:
    q = torch.ones(4, 2, 2 * head_dim, dtype=dtype).as_subclass(OnGpu)
    return text_attention.runs_as_kernel(q, torch.ones(2, 2, tokens, head_dim, dtype=dtype))


def test_the_kernel_runs_only_for_what_it_is_made_for(monkeypatch):
    monkeypatch.setattr(text_attention, "kernel_works", lambda *_: True)
    with torch.no_grad():
        assert runs() and runs(tokens=1) and runs(tokens=128, head_dim=160)
        assert not runs(tokens=129)
        assert not runs(tokens=0)
        assert not runs(head_dim=8)
        assert not runs(dtype=torch.float32)
    assert not runs()  # with gradients


def test_it_is_tried_with_texts_of_the_length_that_it_is_to_read(monkeypatch):
    """Of a longer one a smaller GPU may not have the shared memory."""
    asked = []
    monkeypatch.setattr(text_attention, "kernel_works", lambda *key: asked.append(key[-1]) or key[-1] <= 80)
    with torch.no_grad():
        assert runs(tokens=77)
        assert runs(tokens=80)
        assert not runs(tokens=81)
    assert asked == [80, 80, 96]


def test_a_kernel_that_computes_something_else_is_left_out(monkeypatch):
    text_attention._kernel_works.cache_clear()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _index: (9, 0))
    monkeypatch.setattr(text_attention, "comparisons", lambda *_: [("attention", torch.zeros(3), torch.ones(3))])
    assert not text_attention.kernel_works(0, torch.bfloat16, 40, 80)
