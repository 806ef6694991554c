"""The folder that a build fills: a part of each step is one .tar with its manifest, a .json that appears last.

    build.json                      what was asked for
    plan/part-000000.json           which videos make up a part
    clips/part-000000.tar, .json    frames of every clip; what became of every video
    motion/part-000000.tar, .json   masks and flow; raw figures of every clip
    labels/part-000000.json         which clips are kept, why others are not, and their motion phrases
    shards/part-000000.tar, .json   kept clips with all that belongs to them: what training reads

A manifest carries the digest of what its part was made of. It is valid while that stays the same, so a step that was
interrupted goes on, and one whose parameters changed is done again, with all that follows it.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..files import atomic_path

PLAN, CLIPS, MOTION, LABELS, SHARDS = STEPS = ("plan", "clips", "motion", "labels", "shards")


class Store:
    """Paths and manifests below the output folder."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    def create(self) -> None:
        for step in STEPS:
            (self.folder / step).mkdir(parents=True, exist_ok=True)

    def sweep(self) -> None:
        """Remove what writers that were killed have left half written; nobody may be writing."""
        for step in STEPS:
            for path in (self.folder / step).glob(".part-*"):
                path.unlink(missing_ok=True)

    def tar(self, step: str, part: int) -> Path:
        return self.folder / step / f"part-{part:06d}.tar"

    def manifest(self, step: str, part: int) -> Path:
        return self.folder / step / f"part-{part:06d}.json"

    def parts(self) -> list[int]:
        return sorted(int(path.stem.removeprefix("part-")) for path in (self.folder / PLAN).glob("part-*.json"))

    def read(self, step: str, part: int) -> dict[str, Any] | None:
        """A manifest; None where there is none, or a damaged one, so that the part is made again."""
        try:
            return json.loads(self.manifest(step, part).read_bytes())
        except (FileNotFoundError, ValueError):
            return None

    def write(self, step: str, part: int, content: dict[str, Any]) -> None:
        write_compact_json(self.manifest(step, part), content)

    def digest(self, step: str, part: int) -> str | None:
        manifest = self.read(step, part)
        return manifest["digest"] if manifest else None

    def each(self, step: str) -> Iterator[dict[str, Any]]:
        """The manifests of a step, in order, one in memory at a time."""
        for part in self.parts():
            manifest = self.read(step, part)
            if manifest is not None:
                yield manifest


def write_compact_json(path: Path, content: Any) -> None:
    """Atomically, on one line, in ASCII: file names may hold bytes that are no UTF-8, which only escapes can carry."""
    text = json.dumps(content, allow_nan=False, separators=(",", ":"))
    with atomic_path(path) as temporary:
        temporary.write_text(text + "\n", encoding="ascii")


def digest_of(*content: Any) -> str:
    """A short name for JSON-able values: changes when any of them does."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode("ascii")).hexdigest()[:16]
