"""Beside AnimateDiff Evolved, the pack that most users of motion models have: both work, and on one MODEL they say no."""

import os
from pathlib import Path

import numpy as np
import pytest

PEER = Path(os.environ.get("FOLLOWCLICK_TEST_ADE", Path.home() / "ComfyUI-peers" / "ComfyUI-AnimateDiff-Evolved"))
FILE = "mm_sd_v15_v2.safetensors"


@pytest.fixture(scope="module")
def both(start_server, checkpoint_files, kit):
    """A server with both packs, and a random AnimateDiff v2 file of the true widths, as the peer knows no others."""
    if not (PEER / "__init__.py").is_file():
        pytest.skip(f"ANIMATEDIFF EVOLVED WAS NOT TESTED: it is not in {PEER}; put its commit 90fb133 (1.5.6) there")
    with start_server({"AnimateDiff-Evolved": PEER}) as server:
        kit.write_pictures(server.folder / "input")
        checkpoint_files.write_half_file(server.folder / "models" / "animatediff_models" / FILE, "animatediff_v2")
        yield server
