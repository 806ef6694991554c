"""A run's folder: what was asked, what happened, and where to go on.

runs/demo/config.json              the resolved configuration
runs/demo/<stage>/log.jsonl        a line per logging interval
runs/demo/<stage>/tensorboard/     the same for TensorBoard, where it is installed
runs/demo/<stage>/checkpoint.pt    the newest resumable state (tensors and numbers only)
runs/demo/weights/*.safetensors    what the stages made, ready to ship
"""

import json
import time
from pathlib import Path
from typing import Any

import torch

from ..files import atomic_path, write_json


class RunDir:
    """Paths and files of one run; all but the logs are replaced whole, so a kill at any moment leaves readable ones."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.weights = self.path / "weights"
        self.weights.mkdir(parents=True, exist_ok=True)

    def save_config(self, config: dict[str, Any]) -> None:
        write_json(self.path / "config.json", config)

    def save_checkpoint(self, stage: str, state: dict[str, Any]) -> None:
        with atomic_path(self.stage(stage) / "checkpoint.pt") as temporary:
            torch.save(state, temporary)

    def load_checkpoint(self, stage: str, device: torch.device) -> dict[str, Any] | None:
        path = self.stage(stage) / "checkpoint.pt"
        return torch.load(path, map_location=device, weights_only=True) if path.is_file() else None

    def log(self, stage: str, record: dict[str, Any]) -> None:
        record = {"time": round(time.time(), 1), **record}
        with (self.stage(stage) / "log.jsonl").open("a") as file:
            file.write(json.dumps(record) + "\n")

    def read_log(self, stage: str) -> list[dict[str, Any]]:
        """All lines of a stage's log; a last one that a kill has cut is left out."""
        path = self.stage(stage) / "log.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def forget_after(self, stage: str, step: int) -> None:
        """Take out of the log what happened after `step`: a run that resumes there does it again."""
        records = self.read_log(stage)
        kept = [json.dumps(record) + "\n" for record in records if record["step"] <= step]
        path = self.stage(stage) / "log.jsonl"
        if path.is_file():
            with atomic_path(path) as temporary:
                temporary.write_text("".join(kept), encoding="utf-8")

    def stage(self, stage: str) -> Path:
        path = self.path / stage
        path.mkdir(parents=True, exist_ok=True)
        return path
