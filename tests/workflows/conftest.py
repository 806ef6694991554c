"""A server for the example workflows, and the graphs in their API form."""

import importlib.util
import json
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]


def _load(name: str):
    spec = importlib.util.spec_from_file_location(name, TESTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


COMFYUI, REASON = _load("find_comfyui").find_comfyui()
_comfyui_server = _load("comfyui_server")


def pytest_terminal_summary(terminalreporter):
    if COMFYUI is None:
        terminalreporter.write_line(f"SKIPPED ALL WORKFLOW TESTS: {REASON}", red=True, bold=True)


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    if COMFYUI is None:
        pytest.skip(f"workflow tests need ComfyUI, and {REASON}")
    with _comfyui_server.running_server(COMFYUI, tmp_path_factory.mktemp("comfyui")) as running:
        yield running


@pytest.fixture(scope="session")
def graphs() -> dict[str, dict]:
    """The example workflows in their API form, by name."""
    workflows = TESTS.parent / "workflows" / "api"
    return {path.stem: json.loads(path.read_text()) for path in sorted(workflows.glob("*.json"))}
