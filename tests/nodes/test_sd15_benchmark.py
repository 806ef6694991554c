"""The benchmark of SD1.5, run as its users run it, on a UNet of a tenth of the width."""

import importlib
import json
import os
import subprocess
from pathlib import Path

import pytest
import torch

PACK = Path(__file__).parents[2]

SMALL = ("--device", "cpu", "--dtype", "fp32", "--width", "32", "--sizes", "64", "--frames", "3", "--matrix", "64")


@pytest.fixture(scope="module")
def results(comfyui, tmp_path_factory):
    """Of all variants, a pack by an adapter file, and a chain of nodes."""
    folder = tmp_path_factory.mktemp("benchmark")
    adapter = folder / "adapter.py"
    adapter.write_text(
        "def variants(host, argument):\n    host.load_pack(argument)\n    return {'another pack': host.animatediff()}\n"
    )
    given = ("--rounds", "1", "--steps", "3", "--parts", "steps,profile", "--output", str(folder))
    compared = ("--adapter", f"{adapter}={PACK}", "--adapter", str(folder / "none.py"))
    chain = ("--chain", "windows=followclick|FollowClick_ContextWindows(context_length=2, context_overlap=1)")
    run = subprocess.run(
        [comfyui.python, "-m", "benchmarks.sd15", "--comfyui", str(comfyui.folder), *SMALL, *given, *compared, *chain],
        cwd=PACK,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-5000:]
    assert "none.py is left out" in run.stderr
    assert (folder / "sd15.md").read_text() in run.stdout
    return json.loads((folder / "sd15.json").read_text())


def test_every_variant_takes_its_turns(results):
    variants = results["cells"][0]["variants"]
    assert list(variants) == ["plain", "animatediff", "followclick", "diffusers", "another pack", "windows"]
    assert all(found["error"] is None and len(found["seconds"]) == 2 for found in variants.values())


@pytest.mark.parametrize("name", ["plain", "animatediff", "followclick", "diffusers", "another pack"])
def test_the_count_by_hand_is_pytorchs(results, name):
    found = results["cells"][0]["variants"][name]
    assert found["unknown"] == []
    # All but the embeddings of time and magnitude, which are made for each clip here and for each frame there.
    assert found["analytic"] == pytest.approx(found["counted"], rel=2e-4)


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
