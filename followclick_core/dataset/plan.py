"""Which videos make up which part. A video stays in its part for good; new ones make new parts."""

import os
from collections.abc import Iterable
from dataclasses import asdict

from .sources import Entry, Problem, Video
from .store import PLAN, Store, digest_of


def update_plan(store: Store, entries: Iterable[Entry], videos_per_part: int) -> list[Problem]:
    """Bring the plan up to date with the source, and return the entries that cannot be used.

    A video whose file or caption has changed is noted in its part; one that has left the source stays.
    """
    known = _Known(store)
    problems: list[Problem] = []
    seen: set[int] = set()
    fresh: list[dict] = []
    changed: dict[int, dict[str, dict]] = {}
    parts = store.parts()
    next_part = parts[-1] + 1 if parts else 0
    for entry in entries:
        if isinstance(entry, Problem):
            problems.append(entry)
            continue
        name = hash(entry.name)
        if name in seen:
            problems.append(Problem(entry.name, "listed twice"))
            continue
        seen.add(name)
        row = _row(entry)
        if name not in known.parts:
            fresh.append(row)
        elif known.digests[name] != hash(digest_of(row)):
            changed.setdefault(known.parts[name], {})[entry.name] = row
        if len(fresh) == videos_per_part:
            store.write(PLAN, next_part, {"videos": fresh})
            fresh, next_part = [], next_part + 1
    if fresh:
        store.write(PLAN, next_part, {"videos": fresh})
    for part, rows in changed.items():
        _replace(store, part, rows)
    return problems


def read_part(store: Store, part: int) -> list[Video]:
    """The videos of a part."""
    return [Video(**{key: value for key, value in row.items() if key != "file"}) for row in _rows(store, part)]


def files_digest(store: Store, part: int) -> str:
    """Changes with the videos of a part and their files, not with their captions."""
    return digest_of([[row["name"], row["path"], row["offset"], row["file"]] for row in _rows(store, part)])


def videos_per_part(videos: int, workers: int, most: int) -> int:
    """Small enough that every worker gets several parts, so that none waits long for the last one."""
    return max(1, min(most, -(-videos // (4 * workers))))


class _Known:
    """The plan so far by hashes of names, which ten million videos leave room for."""

    def __init__(self, store: Store):
        self.parts: dict[int, int] = {}
        self.digests: dict[int, int] = {}
        for part in store.parts():
            for row in _rows(store, part):
                name = hash(row["name"])
                self.parts[name], self.digests[name] = part, hash(digest_of(row))


def _row(video: Video) -> dict:
    try:
        status = os.stat(video.path)
        file = [status.st_size, status.st_mtime_ns]
    except OSError:
        file = None
    return {**asdict(video), "file": file}


def _rows(store: Store, part: int) -> list[dict]:
    plan = store.read(PLAN, part)
    return plan["videos"] if plan else []


def _replace(store: Store, part: int, rows: dict[str, dict]) -> None:
    store.write(PLAN, part, {"videos": [rows.get(row["name"], row) for row in _rows(store, part)]})
