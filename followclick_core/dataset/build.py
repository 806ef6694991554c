"""Build a data set: from a source of videos to shards and a report. The same call goes on where one was interrupted."""

import contextlib
import json
import secrets
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..files import check_writable, sha256_of, write_json
from .labels import Labeller
from .pack import PackStep, weights_digest
from .params import BuildParams, ClipParams, MotionParams
from .plan import update_plan, videos_per_part
from .report import Report, write_report
from .sources import Entry, Problem, Video, read_source
from .steps import ClipStep, MotionStep, Step
from .store import CLIPS, Store
from .workers import WorkerPool

Progress = Callable[[str, int, int], None]
COUNT_AHEAD = 4096  # entries read before the size of parts is chosen


def build(
    source: str | Path,
    folder: str | Path,
    params: BuildParams,
    video_folder: str | Path | None = None,
    progress: Progress | None = None,
    retry_quarantined: bool = False,
) -> Report:
    """Fill `folder` with shards of the source's videos, and write the report there.

    Nothing that is wrong with a video, a caption, a clip or the endpoint is raised: it is counted and named in the
    report. Parts that could not be written are in Report.failures.

    Raises:
        ValueError, FileNotFoundError: The source, the folder or a weights file cannot be used, or the folder holds
            clips that were taken with other parameters.
        ModuleNotFoundError: The packages of the extra `dataset` are not installed.
    """
    progress = progress or (lambda stage, done, total: None)
    store = Store(folder)
    entries = read_source(source, video_folder)
    estimator, weights = _estimator_name(params.motion), weights_digest(params.latents)
    _prepare_folder(store, params)
    store.sweep()
    problems, entries = [], _progressing(entries, progress)
    head = [entry for _, entry in zip(range(COUNT_AHEAD), entries, strict=False)]
    count = sum(isinstance(entry, Video) for entry in head)
    size = videos_per_part(count, params.run.workers, params.run.videos_per_part)
    problems += update_plan(store, _chain(head, entries), size)
    failures: list[Problem] = []
    root = str(store.folder.resolve())
    clips = ClipStep(root, params.clips, secrets.token_hex(4))
    motion = MotionStep(root, params.motion, estimator)
    pack = PackStep(root, params.motion.mask_rule, params.latents, weights, params.motion.device)
    with contextlib.ExitStack() as cleanup:
        cleanup.callback(store.sweep)  # once the workers, killed by an interruption, are gone
        pool = cleanup.enter_context(WorkerPool(params.run))
        # On processors one worker does both; for GPUs decoding would hold them up.
        groups = [[clips], [motion]] if params.motion.device.startswith("cuda") else [[clips, motion]]
        for steps in groups:
            failures += _run(pool, steps, store, params, progress)
        captions, unlabelled = _label(store, params, retry_quarantined, progress)
        failures += unlabelled
        failures += _run(pool, [pack], store, params, progress)
    return write_report(store, params, problems, failures, captions)


def _run(pool: WorkerPool, steps: list[Step], store: Store, params: BuildParams, progress: Progress) -> list[Problem]:
    """Do steps on all parts that lack one of them."""
    stage, parts = steps[0].name, store.parts()
    missing = [part for part in parts if not all(step.is_done(part) for step in steps)]
    done, failures = len(parts) - len(missing), []
    progress(stage, done, max(1, len(parts)))
    uses_gpu = stage != CLIPS and params.motion.device.startswith("cuda")
    for part, error in pool.run(steps, missing, params.run.gpus_per_worker if uses_gpu else 0.0):
        done += 1
        progress(stage, done, len(parts))
        if error:
            failures.append(Problem(f"{stage}, part {part:06d}", "not written", error))
    return failures


def _label(
    store: Store, params: BuildParams, retry_quarantined: bool, progress: Progress
) -> tuple[dict[str, Any], list[Problem]]:
    """Label all parts; what was asked of the endpoint, and what could not be written."""
    try:
        with contextlib.closing(Labeller(store, params.motion, params.thresholds, params.captions)) as labeller:
            if retry_quarantined:
                labeller.cache.release()
            labeller.label(progress)
            return labeller.summary(), []
    except (ValueError, sqlite3.Error) as error:
        return {}, [Problem("labels", "not written", str(error))]


def _prepare_folder(store: Store, params: BuildParams) -> None:
    store.folder.mkdir(parents=True, exist_ok=True)
    settings = store.folder / "build.json"
    check_writable(settings)
    if settings.exists():
        _require_same_clips(settings, params.clips)
    store.create()
    content = asdict(params)
    write_json(settings, content)


def _require_same_clips(settings: Path, clips: ClipParams) -> None:
    """Other frames would mean to decode everything again: never by a mistyped flag."""
    try:
        before = json.loads(settings.read_text(encoding="utf-8"))["clips"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{settings} is damaged; remove it, or name another folder.") from error
    now = asdict(clips)
    for name, value in now.items():
        if before.get(name) != value:
            raise ValueError(
                f"{settings.parent} holds clips with {name} {before.get(name)}, not {value}; name another folder, or "
                "remove this one."
            )


def _estimator_name(motion: MotionParams) -> str:
    if motion.raft is None:
        return "dis"
    from ..flow import load_raft

    load_raft(motion.raft)  # a wrong file is found out now, and not once per part
    return f"raft {sha256_of(motion.raft)[:16]}"


def _progressing(entries: Iterator[Entry], progress: Progress) -> Iterator[Entry]:
    progress("list", 0, 1)
    yield from entries
    progress("list", 1, 1)


def _chain(head: list[Any], rest: Iterator[Entry]) -> Iterator[Entry]:
    yield from head
    yield from rest
