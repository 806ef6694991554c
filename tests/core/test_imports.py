"""The rules that keep the core free of its host, and the package's descriptions equal to each other."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tomllib

import followclick_core
from followclick_core.version import VERSION

ROOT = Path(__file__).resolve().parents[2]
CORE = ROOT / "followclick_core"
FILES = sorted(CORE.rglob("*.py"))
HOST = {
    "comfy",
    "comfy_api",
    "comfy_extras",
    "comfy_execution",
    "folder_paths",
    "server",
    "execution",
    "nodes",
    "node_helpers",
}
HEAVY = ("segment_anything", "torchvision", "cv2", "av", "skimage", "matplotlib")
HEAVY_FOR_DATASETS = ("ray", "webdataset", "scenedetect", "openai", "jsonschema", "pandas", "pyarrow", "torchcodec")
HEAVY_FOR_TRAINING = ("accelerate", "tensorboard")


def imported_modules(path: Path) -> set[str]:
    """Top-level names of all absolute imports in a file, those inside functions included."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            modules.add(node.module.partition(".")[0])
    return modules


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(CORE)))
def test_the_core_imports_no_host_and_itself_only_relatively(path):
    assert not imported_modules(path) & HOST
    # ComfyUI loads the core under another name, where an absolute import would find nothing, or a second copy.
    assert CORE.name not in imported_modules(path)


def relative_targets(path: Path) -> set[str]:
    """Parts of the core (its top-level modules and folders) that a file imports."""
    package = path.relative_to(CORE).parent.parts
    targets = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - (node.level - 1)]
            names = [(*base, *node.module.split("."))] if node.module else [(*base, alias.name) for alias in node.names]
            targets |= {name[0] for name in names}
    return targets


@pytest.mark.parametrize(
    ("part", "forbidden"),
    [
        ("models", {"animator", "training", "evaluation", "data", "cli", "segment", "flow"}),
        ("diffusion", {"animator", "training", "evaluation", "data", "cli", "models", "segment", "flow"}),
        ("families", {"animator", "training", "evaluation", "data", "cli", "models", "segment", "flow"}),
        ("segment", {"animator", "training", "evaluation", "data", "cli", "models", "diffusion", "flow"}),
        ("flow", {"animator", "training", "evaluation", "data", "cli", "models", "diffusion", "segment"}),
        ("data", {"animator", "training", "evaluation", "cli"}),
        ("dataset", {"animator", "training", "evaluation", "cli"}),
        ("training", {"animator", "cli"}),
    ],
)
def test_imports_point_one_way(part, forbidden):
    for path in sorted((CORE / part).rglob("*.py")):
        assert not relative_targets(path) & forbidden, path


def test_nothing_in_the_pack_reads_a_pickle_that_could_run_code():
    for path in FILES + sorted((ROOT / "nodes").rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"\b(pickle|dill|joblib)\.(load|loads|Unpickler)\b", text), path
        for call in re.findall(r"torch\.load\([^)]*\)", text):
            assert "weights_only=True" in call, f"{path}: {call}"


@pytest.mark.parametrize(
    "module",
    [
        "followclick_core",
        "followclick_core.segment",
        "followclick_core.flow",
        "followclick_core.clip",
        "followclick_core.data.shards",
        "followclick_core.dataset.build",
    ],
)
def test_importing_it_imports_no_heavy_library(module):
    heavy = HEAVY + HEAVY_FOR_DATASETS + HEAVY_FOR_TRAINING
    code = f"import sys, {module}; print([name for name in {heavy} if name in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert answer.stdout == "[]\n", answer.stderr or answer.stdout


def test_every_public_name_is_there():
    assert all(getattr(followclick_core, name) is not None for name in followclick_core.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Animater'"):
        _ = followclick_core.Animater


def extra(name: str) -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return {package.partition("[")[0] for package in project["optional-dependencies"][name]}


def test_the_descriptions_of_the_package_agree():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    requirements = [
        line for line in (ROOT / "requirements.txt").read_text().splitlines() if line and not line.startswith("#")
    ]
    lines = (ROOT / "requirements-dev.txt").read_text().splitlines()
    pinned = dict(re.sub(r"\[.*\]", "", line).split("==") for line in lines if "==" in line)
    assert project["version"] == VERSION
    assert sorted(project["dependencies"]) == sorted(requirements)
    # Nothing is pinned for users, so that no host is downgraded, and everything is for tests.
    assert all(re.fullmatch(r"[A-Za-z-]+", line) for line in requirements)
    assert set(requirements) <= pinned.keys()
    # What builds data sets and what trains on them is heavy, so that nobody gets it who did not ask for it.
    assert (extra("dataset") | extra("train")) - {"matplotlib"} <= pinned.keys() - set(requirements)


def test_every_third_party_import_of_the_core_is_required():
    names = {"PIL": "Pillow", "cv2": "opencv-python-headless", "segment_anything": "segment-anything"}
    # Optional: a plot, photos for the art pack, a decoder that is used where it is there; Triton comes with PyTorch.
    optional = {"matplotlib", "skimage", "sklearn", "torchcodec", "triton"}
    names |= {name: f"{name}-headless" for name in ("scenedetect",)}
    requirements = (ROOT / "requirements.txt").read_text().split()
    for path in FILES:
        extras = extra("dataset") if path.parent.name == "dataset" or path.name == "shards.py" else set()
        extras |= extra("train") if path.name in ("engine.py", "clip_run.py") else set()
        for module in imported_modules(path) - sys.stdlib_module_names - optional:
            assert names.get(module, module) in {*requirements, *extras}, f"{path.name} imports {module}"
