"""Build a data set: from a source of videos to shards and a report. The same call goes on where one was interrupted."""

import contextlib
import json
import os
import secrets
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ..files import check_writable, sha256_of, write_json
from .decode import torchcodec_is_there
from .labels import Labeller
from .pack import DEMO_WEIGHTS, PackStep, weights_digest
from .params import BuildParams, ClipParams, MotionParams
from .plan import update_plan, videos_per_part
from .report import Report, write_report
from .sources import Entry, Problem, Video, read_source
from .steps import ClipStep, MotionStep, Step
from .store import CLIPS, MOTION, Store
from .workers import WorkerPool

Progress = Callable[[str, int, int], None]
COUNT_AHEAD = 4096  # entries read before the size of parts is chosen
# A share that was away, a full memory, a reading error: the machine's failures as well as the video's.
RETRIED = {"file is missing", "unreadable", "crashes the decoder", "failed"}


def build(
    source: str | Path,
    folder: str | Path,
    params: BuildParams,
    video_folder: str | Path | None = None,
    progress: Progress | None = None,
    retry_quarantined: bool = False,
    retry_failed: bool = False,
) -> Report:
    """Fill `folder` with shards of the source's videos, and write the report there.

    Nothing that is wrong with a video, a caption, a clip or the endpoint is raised: it is counted and named in the
    report. Parts that could not be written are in Report.failures.

    Args:
        video_folder: Where the videos of a CSV or JSONL lie (default: the list's own folder).
        retry_quarantined: Ask again for the captions that got only malformed answers.
        retry_failed: Do the parts again in which a failure may have been the machine's and not the video's.

    Raises:
        ValueError, FileNotFoundError: The source, the folder or a weights file cannot be used, or the folder holds
            clips that were taken with other parameters.
        ModuleNotFoundError: The packages of the extra `dataset` are not installed.
    """
    progress = progress or (lambda stage, done, total: None)
    store = Store(folder)
    if params.clips.decoder == "torchcodec" and not torchcodec_is_there():
        raise ValueError("torchcodec cannot be imported; install it and FFmpeg, or decode by pyav.")
    entries = read_source(os.path.abspath(source), os.path.abspath(video_folder) if video_folder else None)
    estimator, weights = _estimator_name(params.motion), weights_digest(params.latents)
    params = _with_absolute_paths(params)
    _prepare_folder(store, params)
    store.sweep()
    problems, entries = [], _progressing(entries, progress)
    head = [entry for _, entry in zip(range(COUNT_AHEAD), entries, strict=False)]
    count = sum(isinstance(entry, Video) for entry in head)
    size = videos_per_part(count, params.run.workers, params.run.videos_per_part)
    problems += update_plan(store, _chain(head, entries), size)
    if retry_failed:
        _forget_failures(store)
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


def _with_absolute_paths(params: BuildParams) -> BuildParams:
    """Workers of a cluster run in folders of their own. Links are left as they are, so that names stay."""
    raft, latents = params.motion.raft, params.latents
    if raft is not None:
        params = replace(params, motion=replace(params.motion, raft=os.path.abspath(raft)))
    if latents not in (None, DEMO_WEIGHTS):
        params = replace(params, latents=os.path.abspath(latents))
    return params


def _forget_failures(store: Store) -> None:
    """Remove the manifests of parts with a failure that another run may not have."""
    for part in store.parts():
        clips, motion = store.read(CLIPS, part), store.read(MOTION, part)
        reasons = {problem["reason"] for video in (clips or {"videos": []})["videos"] for problem in video["problems"]}
        again = bool(reasons & RETRIED)
        # Motion first: it is of the clips, whose digest, being that of the videos, stays the same.
        if again or (motion and motion["problems"]):
            store.manifest(MOTION, part).unlink(missing_ok=True)
        if again:
            store.manifest(CLIPS, part).unlink(missing_ok=True)


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
