"""The pack's nodes in a real ComfyUI, loaded by its own loader."""

import os
import subprocess
from pathlib import Path


def test_the_nodes_work_inside_comfyui(comfyui):
    folder = Path(__file__).parent / "inside"
    result = subprocess.run(
        [comfyui.python, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--confcutdir={folder}", str(folder)],
        cwd=folder.parents[2],
        env={**os.environ, "COMFYUI_PATH": str(comfyui.folder)},
        capture_output=True,
        text=True,
    )
    print(result.stdout[-20_000:], result.stderr[-5_000:])
    assert result.returncode == 0, "the node tests failed; their report is above"
