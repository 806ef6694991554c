"""Attention over time: the kernel against PyTorch's attention, and the split above CUDA's grid limit."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import followclick_core.models
from followclick_core.models import kernel_checks, temporal_attention
from followclick_core.models.temporal_attention import attend_over_time, attend_with_sdpa

HEADS, CPU = 2, torch.device("cpu")

# Triton reads the variable when it is imported, so the interpreter needs a process of its own.
INTERPRETED = """
import sys, torch
from followclick_core.models import temporal_kernel
from followclick_core.models.temporal_attention import attend_with_sdpa
frames, heads, width = map(int, sys.argv[2:])

def noise(channels, seed):
    generator = torch.Generator().manual_seed(seed)
    if sys.argv[1] == "packed":
        return torch.randn(3, frames, channels, generator=generator)
    return torch.randn(3, channels, frames, generator=generator).transpose(1, 2)

qkv = noise(3 * heads * width, seed=0).requires_grad_()
same = qkv.detach().clone().requires_grad_()
ours, theirs = torch.ops.followclick.temporal_attention(qkv, heads), attend_with_sdpa(same, heads)
torch.testing.assert_close(ours, theirs, atol=2e-6, rtol=1e-5)
gradient = noise(heads * width, seed=1)
assert qkv.is_contiguous() == gradient.is_contiguous() == (sys.argv[1] == "packed")
ours.backward(gradient)
theirs.backward(gradient)
torch.testing.assert_close(qkv.grad, same.grad, atol=5e-6, rtol=1e-5)
print("equal", float(ours.abs().mean()) > 0.05)
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not made for this platform")
@pytest.mark.parametrize(
    ("layout", "sizes"),
    [("packed", (16, 4, 16)), ("packed", (11, 2, 48)), ("packed", (33, 1, 80)), ("transposed", (11, 2, 48))],
)
def test_the_kernel_and_its_gradients_equal_pytorchs_attention(layout, sizes):
    command = [sys.executable, "-c", INTERPRETED, layout, *map(str, sizes)]
    done = subprocess.run(command, env={**_environment(), "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.stdout.strip() == "equal True", done.stderr[-2000:]


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not made for this platform")
def test_heads_of_float32_stay_in_registers(tmp_path):
    environment = {**_environment(), "TRITON_CACHE_DIR": str(tmp_path), "TRITON_INTERPRET": "0"}
    command = [sys.executable, str(Path(__file__).with_name("built_kernels.py")), "attention"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert len(found) == 4 and not any(found.values()), found


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": ":".join(filter(None, sys.path))}


def test_without_a_gpu_pytorch_attends():
    qkv = torch.randn(2, 16, 3 * HEADS * 16)
    assert not temporal_attention.runs_as_kernel(qkv, HEADS)
    q, k, v = (part.view(2, 16, HEADS, 16).transpose(1, 2) for part in qkv.chunk(3, dim=-1))
    weights = (q @ k.transpose(-1, -2) / 4).softmax(-1)
    torch.testing.assert_close(attend_over_time(qkv, HEADS), (weights @ v).transpose(1, 2).flatten(2))


class OnGpu(torch.Tensor):
    """What says of itself that it lies on a GPU."""

    is_cuda, device = True, torch.device("cuda", 0)  # type: ignore[assignment]


@pytest.fixture
def hopper(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _index: (9, 0))
    temporal_attention._kernel_works.cache_clear()
    kernel_checks._warn.cache_clear()


@pytest.mark.parametrize("fault", [ImportError("no triton"), RuntimeError("no C compiler")])
def test_a_kernel_that_cannot_be_built_is_left_out_with_a_warning(hopper, monkeypatch, caplog, fault):
    def broken(*_args, **_options):
        raise fault

    monkeypatch.setattr(temporal_attention, "comparisons", broken)
    with caplog.at_level("WARNING", "followclick"):
        assert not temporal_attention.kernel_works(0, torch.bfloat16, 40, False)
    assert f"Temporal attention runs without Triton kernels, so more slowly: {fault}" in caplog.text


def test_old_gpus_are_not_tried(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _index: (7, 5))
    temporal_attention._kernel_works.cache_clear()
    assert not temporal_attention.kernel_works(0, torch.bfloat16, 40, False)


def test_a_kernel_that_fails_is_left_out_for_its_type_width_and_gradient_alone(hopper, monkeypatch):
    def compare(_device, dtype, head_dim, training):
        off = dtype == torch.float32 or head_dim == 160 or training
        return [("attention", torch.ones(3) + off, torch.ones(3))]

    monkeypatch.setattr(temporal_attention, "comparisons", compare)

    def runs(dtype, head_dim):
        qkv = torch.ones(1, 16, 3 * HEADS * head_dim, dtype=dtype).as_subclass(OnGpu)
        return temporal_attention.runs_as_kernel(qkv, HEADS)

    with torch.no_grad():
        assert runs(torch.bfloat16, 40)
        assert not runs(torch.float32, 40)
        assert not runs(torch.bfloat16, 160)
    assert not runs(torch.bfloat16, 40)


@pytest.mark.parametrize("head_dim", [16, 40, 80, 160])
def test_rounding_to_bfloat16_alone_passes_the_check(hopper, monkeypatch, head_dim):
    """Of the gradient too, which rounds its weights and their gradients between its products."""
    comparisons = temporal_attention.comparisons
    monkeypatch.setattr(temporal_attention, "comparisons", lambda _gpu, *sizes: comparisons(CPU, *sizes))
    stand_in = SimpleNamespace(attend=attend_with_sdpa, attend_backward=rounded_gradient)
    monkeypatch.setitem(sys.modules, "followclick_core.models.temporal_kernel", stand_in)
    monkeypatch.setattr(followclick_core.models, "temporal_kernel", stand_in, raising=False)
    assert temporal_attention.kernel_works(0, torch.bfloat16, head_dim, True)


def rounded_gradient(qkv, grad, heads):
    def split(t, parts):
        return t.unflatten(-1, (parts, heads, -1)).permute(2, 0, 3, 1, 4).float()

    (q, k, v), (g,) = split(qkv, 3), split(grad, 1)
    scale = q.shape[-1] ** -0.5
    weights = (q @ k.mT * scale).softmax(-1)
    of_weights = g @ v.mT
    of_scores = (weights * (of_weights - (of_weights * weights).sum(-1, keepdim=True)) * scale).to(qkv.dtype).float()
    parts = torch.stack([of_scores @ k, of_scores.mT @ q, weights.to(qkv.dtype).float().mT @ g])
    return parts.permute(1, 3, 0, 2, 4).flatten(2).to(qkv.dtype)


@pytest.mark.parametrize("limit", [HEADS, 3 * HEADS, 3 * HEADS + 1])
def test_attention_split_above_the_grid_limit_gives_the_same(monkeypatch, limit):
    qkv = torch.randn(7, 16, 3 * HEADS * 16)
    whole = attend_with_sdpa(qkv, HEADS)
    rows = []
    plain = temporal_attention.F.scaled_dot_product_attention

    def counted(q, k, v):
        rows.append(q.shape[0] * q.shape[1])
        return plain(q, k, v)

    monkeypatch.setattr(temporal_attention, "MAX_ATTENTION_ROWS", limit)
    monkeypatch.setattr(temporal_attention.F, "scaled_dot_product_attention", counted)
    torch.testing.assert_close(attend_with_sdpa(qkv, HEADS), whole)
    assert len(rows) > 1 and max(rows) <= limit and sum(rows) == 7 * HEADS
