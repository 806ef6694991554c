"""Where ComfyUI is, and a Python that can run it; None where there is none.

Loaded by path from the conftest files: the tests' folder is on no import path.
"""

import functools
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

PACK = Path(__file__).parents[1]
# What ComfyUI needs beyond this project's own packages, and what the tests add to it.
NEEDED = "aiohttp torchsde transformers comfyui_frontend_package alembic jaxtyping segment_anything cv2 pytest"
LOOK = "import importlib.util, sys; sys.exit(any(importlib.util.find_spec(name) is None for name in sys.argv[1:]))"


@dataclass(frozen=True)
class ComfyUI:
    folder: Path
    python: str


@functools.lru_cache(maxsize=1)
def find_comfyui() -> tuple[ComfyUI | None, str]:
    """ComfyUI and "", or None and the reason in one line. COMFYUI_PATH names it, COMFYUI_PYTHON its Python."""
    named = os.environ.get("COMFYUI_PATH")
    # The pack itself may be installed: ComfyUI/custom_nodes/<pack>.
    places = [Path(named)] if named else [Path.home() / "ComfyUI", PACK.parents[1]]
    folder = next((place.resolve() for place in places if (place / "comfyui_version.py").is_file()), None)
    if folder is None:
        looked = " and ".join(str(place) for place in places)
        return None, f"there is no ComfyUI in {looked}; set COMFYUI_PATH"
    venvs = [folder / name / "bin" / "python" for name in (".venv", "venv")]
    pythons = [os.environ.get("COMFYUI_PYTHON"), sys.executable, *(str(path) for path in venvs if path.is_file())]
    for python in filter(None, pythons):
        if subprocess.run([python, "-c", LOOK, *NEEDED.split()], capture_output=True).returncode == 0:
            return ComfyUI(folder, python), ""
    return None, f"no Python here has the packages of {folder}/requirements.txt; set COMFYUI_PYTHON or run make test"
