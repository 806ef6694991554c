"""The benchmark of SD1.5, run as its users run it, on a UNet of a tenth of the width."""

import importlib
import json
import os
import re
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

PACK = Path(__file__).parents[2]

SMALL = ("--device", "cpu", "--dtype", "fp32", "--width", "32", "--shapes", "64x3", "--matrix", "64")
PARTS = "steps,profile,sampling"

# Another pack, and this pack's kernels as a GPU has them: launched directly, where no counter of operators sees them.
ADAPTER = """
import json
import sys
from pathlib import Path
from types import ModuleType
import folder_paths
from safetensors import safe_open
from torch.utils._python_dispatch import _disable_current_modes

MODELS = "followclick_core.models"

def variants(host, argument):
    host.load_pack(argument)
    names = "motion_ops", "temporal_attention", "motion_module"
    ops, attention, module = (host.core(f"{MODELS}.{name}") for name in names)
    layers = module.TemporalTransformer.forward

    def forward_fused(self, x, num_frames, text=None):
        kept, ops.run_fused = ops.run_fused, lambda *_: False
        try:
            with _disable_current_modes():
                return layers(self, x, num_frames, text)
        finally:
            ops.run_fused = kept

    def attend(qkv, num_heads):
        with _disable_current_modes():
            return attention.attend_with_sdpa(qkv, num_heads)

    kernel = ModuleType("temporal_kernel")
    kernel.attend = attend
    sys.modules[f"{argument}.{MODELS}.temporal_kernel"] = kernel
    ops.run_fused = attention.runs_as_kernel = lambda *_: True
    module.TemporalTransformer.forward_fused = forward_fused
    with safe_open(folder_paths.get_full_path("animatediff_models", "mm_sd_v15_v2.safetensors"), "pt") as file:
        shapes = {key: file.get_slice(key).get_shape() for key in file.keys()}
    Path(__file__).with_name("shapes.json").write_text(json.dumps(shapes))
    return {"another pack": host.animatediff()}
"""


@pytest.fixture(scope="module")
def results(comfyui, tmp_path_factory):
    """Of all variants, a pack by an adapter file, and a chain of nodes."""
    folder = tmp_path_factory.mktemp("benchmark")
    adapter = folder / "adapter.py"
    adapter.write_text(ADAPTER)
    given = ("--rounds", "1", "--steps", "3", "--whole-steps", "2", "--parts", PARTS, "--output", str(folder))
    compared = ("--adapter", f"{adapter}={PACK}", "--adapter", str(folder / "none.py"))
    chains = (
        *("--chain", "windows=followclick|FollowClick_ContextWindows(context_length=2, context_overlap=1)"),
        *("--chain", "keys=followclick|FollowClick_AccelerateExactly(text_keys=True)"),
    )
    command = comfyui.python, "-m", "benchmarks.sd15", "--comfyui", str(comfyui.folder)
    run = subprocess.run(
        [*command, *SMALL, *given, *compared, *chains],
        cwd=PACK,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-5000:]
    assert "none.py is left out" in run.stderr
    assert (folder / "sd15.md").read_text() in run.stdout
    found = json.loads((folder / "sd15.json").read_text())
    return found | {"file": json.loads((folder / "shapes.json").read_text())}


def test_every_variant_takes_its_turns(results):
    variants = results["cells"][0]["variants"]
    assert list(variants) == ["plain", "animatediff", "followclick", "diffusers", "another pack", "windows", "keys"]
    assert all(found["error"] is None and len(found["seconds"]) == 2 for found in variants.values())


@pytest.mark.parametrize("name", ["plain", "animatediff", "followclick", "diffusers", "another pack"])
def test_the_count_by_hand_is_pytorchs(results, name):
    found = results["cells"][0]["variants"][name]
    assert found["unknown"] == []
    # All but the embeddings of time and magnitude, which are made for each clip here and for each frame there.
    assert found["analytic"] == pytest.approx(found["counted"], rel=2e-4)


def test_other_packs_are_given_a_file_as_it_was_published(results, checkpoint_files):
    frames, middle = checkpoint_files.MODULES["animatediff_v2"]
    published = checkpoint_files.motion_shapes(32, frames, middle)
    assert {key: tuple(shape) for key, shape in results["file"].items()} == published


def test_only_chains_that_do_all_of_the_work_are_said_to(results):
    variants = results["cells"][0]["variants"]
    assert variants["keys"]["analytic"] == variants["followclick"]["analytic"]
    assert "analytic" not in variants["windows"]


def test_all_steps_of_a_clip_are_timed_once_warm(results):
    assert list(results["calls"]) == [f"{name}: 2 steps" for name in results["cells"][0]["variants"]]
    assert all(found["error"] is None and len(found["seconds"]) == 1 for found in results["calls"].values())


def test_a_chain_runs_its_nodes(results):
    """Three frames in windows of two: the UNet runs twice in each step."""
    calls = {
        name: sum(row["calls"] for row in results["profiles"][0]["variants"][name] if row["stage"] == "resblock")
        for name in ("followclick", "windows")
    }
    assert calls["windows"] == pytest.approx(2 * calls["followclick"], rel=0.2)


def test_motion_adds_its_own_part_to_the_floors(results):
    floors = results["cells"][0]["floors"]
    for kind in ("animatediff", "followclick"):
        for key in ("flops", "products", "modules"):
            assert floors[f"all of {kind}"][key] >= floors["all of plain"][key] + floors[f"motion module ({kind})"][key]
    assert all(floor["modules"] <= floor["products"] for floor in floors.values())


def test_the_profile_finds_the_motion_modules_of_every_implementation(results):
    def seconds(name: str, stage: str) -> float:
        return sum(row["seconds"] for row in results["profiles"][0]["variants"][name] if row["stage"] == stage)

    for name in ("animatediff", "followclick", "diffusers"):
        rows = [row for row in results["profiles"][0]["variants"][name] if row["stage"] == "motion module"]
        assert {"attention", "linears", "feed-forward", "norms"} <= {row["part"] for row in rows}
        assert seconds(name, "resblock") > 0 < seconds(name, "spatial transformer")
    assert seconds("plain", "motion module") == 0


@pytest.fixture
def module(monkeypatch):
    monkeypatch.syspath_prepend(str(PACK))
    return lambda name: importlib.import_module(f"benchmarks.sd15.{name}")


def test_the_count_names_what_it_cannot_count(module):
    @torch.library.custom_op("followclick_tests::double", mutates_args=())
    def double(x: torch.Tensor) -> torch.Tensor:
        return 2 * x

    counted = module("work").count_flops(lambda: double(torch.ones(3, 4) @ torch.ones(4, 5)))
    assert counted.flops == 2 * 3 * 4 * 5
    assert counted.unknown == ("followclick_tests.double",)


def test_a_chain_is_read_as_python_calls(module):
    parse = module("variants").parse_chain
    assert parse("fast = followclick|Compile(mode='max', size=8)|Other") == (
        "fast",
        "followclick",
        [("Compile", {"mode": "max", "size": 8}), ("Other", {})],
    )
    for text in ("fast=followclick|Compile(8)", "fast=followclick|Compile(size=", "fast=followclick|"):
        with pytest.raises(ValueError, match="is not written as"):
            parse(text)


def test_a_call_that_fails_does_not_end_the_others(module):
    def fails():
        raise MemoryError("no more")

    measure = module("measure")
    timings = measure.calls({"fails": fails, "runs": list}, torch.device("cpu"), 2, measure.Budget(60))
    assert (timings["fails"].error, timings["fails"].seconds) == ("MemoryError: no more", [])
    assert len(timings["runs"].seconds) == 2
    spent = measure.calls({"runs": list}, torch.device("cpu"), 5, measure.Budget(0))
    assert len(spent["runs"].seconds) == 1


def test_what_no_time_is_left_for_says_so(module):
    measure = module("measure")
    variant = SimpleNamespace(name="late")  # which cannot be sampled
    cpu = torch.device("cpu")
    timings = measure.steps({"late": variant}, None, cpu, measure.Budget(60), measure.Budget(0), count=2, rounds=1)
    assert (timings["late"].error, timings["late"].seconds) == ("no time was left", [])
    never = measure.calls({"late": variant}, cpu, 1, measure.Budget(60), until=measure.Budget(0))
    assert (never["late"].error, never["late"].seconds) == ("no time was left", [])
    assert measure.Budget(60).at_most(0).is_spent() and not measure.Budget(60).at_most(None).is_spent()


def test_a_smaller_gpu_is_seen_as_such(module, monkeypatch):
    gib, shares = 2**30, []
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device=None: (70 * gib, 80 * gib))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _device=None: 3 * gib)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", shares.append)
    module("host")._limit_memory(8 * gib)
    assert shares == [0.1]
    assert torch.cuda.mem_get_info() == (5 * gib, 8 * gib)


@pytest.mark.parametrize(
    ("kernel", "part"),
    [
        ("_forward", "attention"),
        ("_plane_statistics", "norms"),
        ("_channel_moments", "norms"),
        ("_join_moments", "norms"),
        ("_normalise", "norms"),
        ("_norm_rows", "norms"),
        ("_gated_linear", "linears"),
        ("_add_linear", "linears"),
        ("_gate", "activations"),
        ("_sum_biases", "additions"),
        ("_add_back", "additions"),
    ],
)
def test_kernels_of_this_pack_have_their_parts(module, kernel, part):
    found = _grouped(module("profiling"), [_kernel(7, kernel), _event("cuLaunchKernelEx", 7, 12), *_module_ranges()])
    assert {place: group.seconds for place, group in found.items()} == {("motion module", part): 5e-6}


def test_no_kernel_of_this_pack_is_without_a_part(module):
    kernels = {
        name
        for path in (PACK / "followclick_core" / "models").glob("*kernel*.py")
        for name, body in re.findall(r"@triton\.jit\ndef (\w+)\((.*?)(?=\n\n\n|\Z)", path.read_text(), re.DOTALL)
        if "tl.store(" in body or ".store(" in body
    }
    assert len(kernels) >= 10
    parts = {name: module("profiling")._part_of(name) for name in kernels}
    assert "other" not in parts.values(), parts


def test_a_kernel_belongs_to_where_it_was_launched(module):
    """One that an operator launched, one that nothing ties to an operator, and two of no range."""
    stage, feed_forward = _module_ranges()
    product = _event("aten::addmm", 3, 32, 38, parent=feed_forward, kernels=[SimpleNamespace(name="k", duration=5.0)])
    launches = [_event("cudaLaunchKernel", 4, 33, parent=product), _event("cuLaunchKernelEx", 5, 60)]
    kernels = [_kernel(4, "k"), _kernel(5, "_gate"), _kernel(6, "nothing launched it"), _kernel(9, "stage: a range")]
    found = _grouped(module("profiling"), [*kernels, *launches, product, stage, feed_forward])
    assert {place: group.calls for place, group in found.items()} == {
        ("motion module", "feed-forward"): 1,
        ("other", "activations"): 1,
        ("other", "other"): 1,
    }


def test_feed_forwards_are_compared_with_linears_where_one_variant_has_them_there(module):
    profiling, work = module("profiling"), module("work").Work

    def groups(stage, **seconds):
        return {(stage, part.replace("_", "-")): profiling.Group(each, 1) for part, each in seconds.items()}

    variants = {
        "layers": groups("motion module", linears=1.0, feed_forward=2.0) | groups("resblock", linears=4.0),
        "fused": groups("motion module", linears=2.5, norms=0.5) | groups("resblock", linears=4.0),
        "plain": groups("resblock", linears=4.0),
    }
    floors = {("motion module", "linears"): work(3.0), ("motion module", "feed-forward"): work(5.0)}
    profiling.join_feed_forward(variants, floors)
    both = "motion module", "linears and feed-forward"
    assert variants["layers"][both].seconds == 3.0 and variants["fused"][both].seconds == 2.5
    assert set(variants["layers"]) == {both, ("resblock", "linears")} and set(variants["plain"]) == {
        ("resblock", "linears")
    }
    assert floors == {both: work(8.0)}


def _grouped(profiling, events):
    return profiling._grouped(events, cuda=True)


def _module_ranges():
    stage = _event("stage: motion module", 1, 10, 50)
    return stage, _event("stage: FeedForward", 2, 30, 40, parent=stage)


def _event(name, number, start, end=None, parent=None, kernels=(), device=torch.autograd.DeviceType.CPU):
    end = start + 1 if end is None else end
    return SimpleNamespace(
        name=name,
        id=number,
        time_range=SimpleNamespace(start=start, end=end, elapsed_us=lambda: end - start),
        cpu_parent=parent,
        kernels=list(kernels),
        device_type=device,
        is_user_annotation=name.startswith("stage: "),
    )


def _kernel(number, name):
    return _event(name, number, 100, 105.0, device=torch.autograd.DeviceType.CUDA)
