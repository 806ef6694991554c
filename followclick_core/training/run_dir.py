"""A run's folder: what was asked, what happened, and where to go on.

runs/demo/config.json              the resolved configuration
runs/demo/<stage>/log.jsonl        a line per logging interval
runs/demo/<stage>/checkpoint.pt    the newest resumable state (tensors and numbers only)
runs/demo/weights/*.safetensors    what the stages made, ready to ship
"""

import json
import os
import time
from pathlib import Path
from typing import Any

import torch


class RunDir:
    """Paths and files of one run; every file is replaced whole, so a kill at any moment leaves a readable one."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.weights = self.path / "weights"
        self.weights.mkdir(parents=True, exist_ok=True)

    def save_config(self, config: dict[str, Any]) -> None:
        (self.path / "config.json").write_text(json.dumps(config, indent=2, default=str) + "\n")

    def save_checkpoint(self, stage: str, state: dict[str, Any]) -> None:
        path = self._stage(stage) / "checkpoint.pt"
        temporary = path.with_suffix(".tmp")
        torch.save(state, temporary)
        os.replace(temporary, path)

    def load_checkpoint(self, stage: str, device: torch.device) -> dict[str, Any] | None:
        path = self._stage(stage) / "checkpoint.pt"
        return torch.load(path, map_location=device, weights_only=True) if path.is_file() else None

    def log(self, stage: str, record: dict[str, Any]) -> None:
        record = {"time": round(time.time(), 1), **record}
        with (self._stage(stage) / "log.jsonl").open("a") as file:
            file.write(json.dumps(record) + "\n")

    def _stage(self, stage: str) -> Path:
        path = self.path / stage
        path.mkdir(parents=True, exist_ok=True)
        return path
