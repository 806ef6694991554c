"""A server for the example workflows, and the graphs in their API form."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file

from followclick_core.models.unet import UNet, UNetParams

TESTS = Path(__file__).parents[1]


def _load(name: str):
    spec = importlib.util.spec_from_file_location(name, TESTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


COMFYUI, REASON = _load("find_comfyui").find_comfyui()
_comfyui_server = _load("comfyui_server")
_editor_client = _load("editor_client")
_graph_kit = _load("workflows/graph_kit")
_checkpoint_files = _load("checkpoint_files")
TESTING_PACK = {"followclick-testing": TESTS / "workflows" / "testing_pack"}


def pytest_terminal_summary(terminalreporter):
    if COMFYUI is None:
        terminalreporter.write_line(f"SKIPPED ALL WORKFLOW TESTS: {REASON}", red=True, bold=True)


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    if COMFYUI is None:
        pytest.skip(f"workflow tests need ComfyUI, and {REASON}")
    with _comfyui_server.running_server(COMFYUI, tmp_path_factory.mktemp("comfyui"), packs=TESTING_PACK) as running:
        yield running


@pytest.fixture(scope="session")
def start_server(tmp_path_factory):
    """Start a further server, with other options or packs, for a `with` block."""
    if COMFYUI is None:
        pytest.skip(f"workflow tests need ComfyUI, and {REASON}")

    def start(*options: str, packs: dict[str, Path] | None = None):
        folder = tmp_path_factory.mktemp("comfyui-more")
        return _comfyui_server.running_server(COMFYUI, folder, *options, packs={**TESTING_PACK, **(packs or {})})

    return start


@pytest.fixture(scope="session")
def checkpoint_files():
    """Synthesised motion model files of every family; see tests/checkpoint_files.py."""
    return _checkpoint_files


@pytest.fixture(scope="session")
def graphs() -> dict[str, dict]:
    """The example workflows in their API form, by name."""
    workflows = TESTS.parent / "workflows" / "api"
    return {path.stem: json.loads(path.read_text()) for path in sorted(workflows.glob("*.json"))}


@pytest.fixture(scope="session")
def editor(server):
    """What the click editor does without a browser; its class is in tests/editor_client.py."""
    return _editor_client.EditorClient(server.url)


@pytest.fixture(scope="session")
def photo(server) -> np.ndarray:
    """A photo in the input folder, turned by EXIF as phones do, and the same painted over in the MaskEditor."""
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8)).resize((320, 240), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(server.folder / "input" / "turned.jpg", exif=exif, quality=95)
    picture.save(server.folder / "input" / "photo.png")
    painted = picture.convert("RGBA")
    alpha = np.full((240, 320), 255, np.uint8)
    alpha[60:180, 80:200] = 0
    painted.putalpha(Image.fromarray(alpha))
    (server.folder / "input" / "clipspace").mkdir()
    painted.save(server.folder / "input" / "clipspace" / "painted.png")
    return np.asarray(picture)


@pytest.fixture(scope="session")
def kit():
    """The graphs of graph_kit.py, which tests cannot import."""
    return _graph_kit


@pytest.fixture(scope="session")
def rig(server):
    """The server, with the pictures and model files that the graphs of graph_kit.py load."""
    _graph_kit.write_pictures(server.folder / "input")
    models = server.folder / "models"
    _graph_kit.write_lora(models / "loras" / "lora.safetensors")
    _graph_kit.write_controlnet(models / "controlnet" / "openpose.safetensors", _graph_kit.unet_tensors())
    tiny = UNet(UNetParams(model_channels=_graph_kit.TINY_CHANNELS, context_dim=128)).state_dict()
    _graph_kit.write_controlnet(models / "controlnet" / "openpose_tiny.safetensors", tiny)
    for family in _checkpoint_files.FAMILIES:
        tensors = _checkpoint_files.motion_tensors(family, _graph_kit.TINY_CHANNELS, text=128)
        # The preset says at which size it was trained: a quarter of the published ones' side.
        save_file(tensors, models / "animatediff_models" / f"{family}.safetensors", {"preset": "small"})
    return server
