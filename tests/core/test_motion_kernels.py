"""The kernels that motion modules run by without gradients, and when they do."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from followclick_core.models import kernel_checks, motion_ops, temporal_attention
from followclick_core.models.launch_sizes import cdiv, next_power_of_2
from followclick_core.models.motion_module import MotionModule


def run_program(name: str, *arguments: str, interpret: str = "1") -> dict:
    if importlib.util.find_spec("triton") is None:
        pytest.skip("Triton is not made for this platform")
    path = ":".join(filter(None, sys.path))
    environment = {**os.environ, "PYTHONPATH": path, "TRITON_INTERPRET": interpret, "OMP_NUM_THREADS": "1"}
    program = str(Path(__file__).with_name(name))
    done = subprocess.run([sys.executable, program, *arguments], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def errors():
    return run_program("interpreted_motion.py")


@pytest.fixture(scope="module")
def edges():
    return run_program("interpreted_edges.py")


@pytest.fixture(autouse=True)
def nothing_remembered():
    asked = motion_ops._operators_work, motion_ops.gates_work, motion_ops.is_hopper, temporal_attention._kernel_works
    for cached in (*asked, kernel_checks._warn):
        cached.cache_clear()


def test_launches_have_the_sizes_that_triton_gives_them():
    triton = pytest.importorskip("triton")
    for number in range(1, 300):
        assert next_power_of_2(number) == triton.next_power_of_2(number)
        assert all(cdiv(number, size) == triton.cdiv(number, size) for size in (1, 3, 64))


def test_every_operator_computes_what_pytorch_does(errors):
    for sizes, found in errors["operators"].items():
        assert len(found) >= 10 and max(found.values()) < 1e-5, (sizes, found)


def test_a_module_of_kernels_computes_what_one_of_layers_does(errors):
    for sizes, found in errors["modules"].items():
        assert len(found) == 4 and max(found.values()) < 1e-5, (sizes, found)


def test_so_it_does_with_regions_and_whatever_happens_to_its_weights(errors):
    assert max(errors["others"].values()) < 1e-5, errors["others"]


def test_the_tiles_of_a_large_gpu_fit_its_registers_and_shared_memory(monkeypatch, tmp_path):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    found = run_program("built_kernels.py", "modules", interpret="0")
    assert len(found) == 19 and not any(found.values()), found


def test_pictures_that_the_kernels_would_misread_are_refused(edges):
    refused = edges["refused"]
    assert len(refused) == 6
    for name, message in refused.items():
        assert message.startswith("ValueError: "), (name, message)
    assert "9 pictures are not a whole number of clips of 4 frames" in refused["module, frames"]
    assert "of 32 channels got pictures of 64" in refused["module, channels"]


def test_infinity_passes_the_gate_as_it_does_pytorchs(edges):
    assert edges["gate"] == ["inf", "-inf", "nan", "nan"]  # the third is -infinity times zero there too


def test_the_compiler_is_told_the_layout_that_a_kernel_gives(edges):
    assert len(edges["strides"]) == 9
    for name, (told, given) in edges["strides"].items():
        assert told == given, name


def test_the_normed_input_does_not_outlive_its_use(edges):
    assert edges["outlived"] == [False] * 3


def test_asking_whether_kernels_work_breaks_no_compiled_graph_and_is_done_once(edges):
    assert edges["asked"] == {"answers": [1.0, 1.0], "fused": 1, "attention": 1}


def test_modules_run_by_their_kernels_on_a_pytorch_that_cannot_register_them(edges):
    assert edges["unregistered"]["error"] < 1e-5
    assert edges["unregistered"]["fused when eager, when compiled"] == [True, False]


class OnGpu(torch.Tensor):
    """What says of itself that it lies on a GPU."""

    is_cuda, device = True, torch.device("cuda", 0)  # type: ignore[assignment]


def on_gpu(dtype=torch.float32):
    return torch.ones(16, 320, 1, 1, dtype=dtype).as_subclass(OnGpu)


class Sharded(torch.Tensor):
    """A weight that is whole only while its own layer runs, as those of FSDP."""


def test_a_module_on_a_gpu_runs_by_kernels_unless_something_forbids_it(monkeypatch):
    asked = []
    monkeypatch.setattr(motion_ops, "operators_work", lambda *sizes: asked.append(sizes) or True)
    weights = (torch.nn.Parameter(torch.ones(320, 320)), torch.nn.Parameter(torch.ones(8, 8)))
    with torch.no_grad():
        assert motion_ops.run_fused(on_gpu(), weights, 8)
        assert asked == [(0, torch.float32, 320)]
        assert not motion_ops.run_fused(torch.ones(16, 320, 1, 1), weights, 8)
        assert not motion_ops.run_fused(on_gpu(torch.float16), weights, 8)
        assert not motion_ops.run_fused(on_gpu(torch.float64), [w.double() for w in weights], 8)
        assert not motion_ops.run_fused(on_gpu(), weights, 1)  # a head of 320 channels
        assert not motion_ops.run_fused(on_gpu(), (weights[0], weights[1].half()), 8)
        assert not motion_ops.run_fused(on_gpu(), (weights[0], torch.ones(8, 8).as_subclass(Sharded)), 8)
        monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: True)
        assert not motion_ops.run_fused(on_gpu(), weights, 8)
        monkeypatch.undo()
    monkeypatch.setattr(motion_ops, "operators_work", lambda *_: True)
    assert not motion_ops.run_fused(on_gpu(), weights, 8)  # with gradients
    monkeypatch.setattr(motion_ops, "operators_work", lambda *_: False)
    with torch.no_grad():
        assert not motion_ops.run_fused(on_gpu(), weights, 8)


def runs_by_descriptors(monkeypatch, capability=(9, 0), dtype=torch.bfloat16, channels=320, offset=0) -> bool:
    """Whether a gated layer of this type and width, `offset` numbers into its memory, does on a GPU of this kind."""
    motion_ops.is_hopper.cache_clear()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _index: capability)
    monkeypatch.setattr(motion_ops, "gates_work", lambda *_: True)
    ours, theirs = torch.ones(1), torch.ones(1)
    kernel = SimpleNamespace(gated_linear=lambda *_: ours)
    monkeypatch.setitem(sys.modules, "followclick_core.models.gated_linear_kernel", kernel)
    monkeypatch.setattr(motion_ops, "gate_product", lambda _product: theirs)
    x = torch.ones(2 * channels + offset, dtype=dtype)[offset:].view(2, channels).as_subclass(OnGpu)
    return motion_ops.gated(x, torch.ones(16, channels, dtype=dtype), torch.ones(16, dtype=dtype)) is ours


def test_gated_layers_run_by_descriptors_where_these_can_tell_where_rows_lie(monkeypatch):
    assert runs_by_descriptors(monkeypatch)
    assert runs_by_descriptors(monkeypatch, dtype=torch.float16)
    assert not runs_by_descriptors(monkeypatch, capability=(8, 0))
    assert not runs_by_descriptors(monkeypatch, dtype=torch.float32)
    assert not runs_by_descriptors(monkeypatch, channels=36)
    assert not runs_by_descriptors(monkeypatch, offset=1)


@pytest.mark.parametrize(
    ("channels", "capability", "dtype", "in_one"),
    [
        (320, (9, 0), torch.bfloat16, True),
        (640, (9, 0), torch.float16, True),
        (1280, (9, 0), torch.bfloat16, False),
        (320, (8, 9), torch.bfloat16, False),
        (320, (9, 0), torch.float32, False),
    ],
)
def test_the_last_layer_is_one_kernel_with_the_layout_back_where_that_is_faster(
    monkeypatch, channels, capability, dtype, in_one
):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _index: capability)
    ours, theirs = torch.ones(1), torch.ones(1)
    kernel = SimpleNamespace(add_linear_to_frames=lambda *_: ours)
    monkeypatch.setitem(sys.modules, "followclick_core.models.frames_kernel", kernel)
    monkeypatch.setattr(motion_ops, "add_to_frames", lambda *_: theirs)
    x, h = torch.ones(4, channels, 1, 1, dtype=dtype).as_subclass(OnGpu), torch.ones(1, 4, channels, dtype=dtype)
    weight, bias = torch.ones(channels, channels, dtype=dtype), torch.ones(channels, dtype=dtype)
    assert (motion_ops.add_projected(h, weight, bias, x) is ours) is in_one


def test_a_triton_without_descriptors_costs_the_gated_kernel_alone(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "triton.tools.tensor_descriptor", None)
    monkeypatch.delitem(sys.modules, "followclick_core.models.gated_linear_kernel", raising=False)
    with caplog.at_level("WARNING", "followclick"):
        assert not motion_ops.gates_work(0, torch.bfloat16, 320)
    assert "Gated layers of motion modules run without Triton kernels" in caplog.text


def test_a_module_asks_for_its_feed_forward_too_which_fsdp_shards_by_itself(monkeypatch):
    module, asked = MotionModule(32, 2, None).temporal_transformer, []
    monkeypatch.setattr(motion_ops, "run_fused", lambda _x, weights, _heads: asked.extend(weights))
    module(torch.randn(4, 32, 2, 2), 4)
    assert module.proj_in.weight in asked[:1]
    assert any(weight is module.transformer_blocks[0].ff.net[0].proj.weight for weight in asked)


@pytest.mark.parametrize("fault", [ImportError("no triton"), RuntimeError("no C compiler")])
def test_kernels_that_cannot_be_built_are_left_out_with_one_warning(monkeypatch, caplog, fault):
    def broken(*_arguments):
        raise fault

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _index: (9, 0))
    monkeypatch.setattr(motion_ops, "comparisons", broken)
    with caplog.at_level("WARNING", "followclick"):
        assert not motion_ops.operators_work(0, torch.bfloat16, 320)
        assert not motion_ops.operators_work(0, torch.bfloat16, 640)
    assert caplog.text.count(f"Motion modules run without Triton kernels, so more slowly: {fault}") == 1


@pytest.mark.parametrize(("error", "works"), [(0.0, True), (0.1, False), (float("nan"), False)])
def test_kernels_that_compute_something_else_are_left_out(monkeypatch, error, works):
    theirs = torch.ones(3)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _index: (9, 0))
    monkeypatch.setattr(motion_ops, "comparisons", lambda *_: [("sum", theirs + error, theirs)])
    assert motion_ops.operators_work(0, torch.bfloat16, 320) is works


@pytest.mark.parametrize(
    "fault", [torch.cuda.OutOfMemoryError("CUDA out of memory."), RuntimeError("Triton Error [CUDA]: out of memory")]
)
def test_full_memory_is_the_hosts_to_free_and_no_verdict_on_the_kernels(monkeypatch, fault):
    answers = [fault, [("sum", torch.ones(3), torch.ones(3))]]

    def compare(*_arguments):
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _index: (9, 0))
    monkeypatch.setattr(motion_ops, "comparisons", compare)
    with pytest.raises(type(fault), match="out of memory"):
        motion_ops.operators_work(0, torch.bfloat16, 320)
    assert motion_ops.operators_work(0, torch.bfloat16, 320)


def test_the_comparison_is_small(monkeypatch):
    """Of the widest module: a host may have left little memory when it is made."""
    made = []
    for name in ("normed_pixels", "add_to_frames", "add_projected", "norm_rows", "gate_product", "gated"):
        monkeypatch.setattr(motion_ops, name, lambda *tensors: made.extend(tensors) or torch.zeros(()))
    monkeypatch.setattr(motion_ops, "sum_biases", lambda biases, _weight, bias: (torch.stack(biases[1:]), bias))
    motion_ops.comparisons(torch.device("cpu"), torch.float32, 1280)
    assert max(t.nbytes for t in made if isinstance(t, torch.Tensor)) <= 8 * 2**20
