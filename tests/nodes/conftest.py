"""The tests in `inside` import ComfyUI, with modules called `nodes` and `utils`: they run in a process of their own."""

import importlib.util
from pathlib import Path

import pytest

collect_ignore = ["inside"]


def _load_finder():
    spec = importlib.util.spec_from_file_location("find_comfyui", Path(__file__).parents[1] / "find_comfyui.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


COMFYUI, REASON = _load_finder().find_comfyui()


@pytest.fixture(scope="session")
def comfyui():
    if COMFYUI is None:
        pytest.skip(f"node tests need ComfyUI, and {REASON}")
    return COMFYUI


def pytest_terminal_summary(terminalreporter):
    if COMFYUI is None:
        terminalreporter.write_line(f"SKIPPED ALL NODE TESTS: {REASON}", red=True, bold=True)
