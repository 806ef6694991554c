"""What a build did and did not do: report.json, report.md, histograms.png, and every problem in problems.jsonl."""

import json
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from ..files import atomic_path, write_json
from .filters import FIGURES, figures_of
from .pack import records_of
from .params import BuildParams, Thresholds
from .plan import read_part
from .sources import Problem, shown
from .store import CLIPS, LABELS, MOTION, SHARDS, Store

NAMED = 20  # problems of a kind that the Markdown names; problems.jsonl has all
BINS = 40
LOGARITHMIC = {"magnitude", "camera", "border"}
SECONDS = {CLIPS: "decode, cut, crop", MOTION: "flow, masks", SHARDS: "pack"}


@dataclass(frozen=True)
class Report:
    """The figures of a build; `content` is report.json."""

    content: dict[str, Any]
    failures: list[Problem]

    @property
    def kept(self) -> int:
        return self.content["clips"]["kept"]

    @property
    def problems(self) -> dict[str, int]:
        """Reason -> how often."""
        return {reason: group["count"] for reason, group in self.content["problems"].items()}


def write_report(
    store: Store, params: BuildParams, listing: list[Problem], failures: list[Problem], captions: dict[str, Any]
) -> Report:
    """Collect what every step noted, and write it down. A full disk is noted as well, as far as there is room."""
    content: dict[str, Any] = {}
    try:
        with atomic_path(store.folder / "problems.jsonl") as temporary, open(temporary, "w", encoding="utf-8") as file:
            content = _collect(store, params, [*listing, *failures], _Problems(file))
            file.flush()
    except ValueError as error:
        failures = [*failures, Problem("problems.jsonl", "not written", str(error))]
        content = _collect(store, params, [*listing, *failures], _Problems())
    content["captions"] = captions
    try:
        write_json(store.folder / "report.json", content)
        with atomic_path(store.folder / "report.md") as temporary:
            temporary.write_text(to_markdown(content), encoding="utf-8")
        plot_histograms(content["histograms"], params.thresholds, store.folder / "histograms.png")
    except ValueError as error:
        failures = [*failures, Problem("report", "not written", str(error))]
    return Report(content, failures)


def _collect(store: Store, params: BuildParams, noted: list[Problem], problems: "_Problems") -> dict[str, Any]:
    figures = _Figures()
    for problem in noted:
        problems.add(problem)
    counts = _count(store, params, problems, figures)
    return {
        **counts,
        "problems": problems.to_dict(),
        "histograms": figures.histograms(),
        "thresholds": asdict(params.thresholds),
        "seconds": _seconds(store),
        "peak_memory_of_a_worker": _peak_memory(store),
    }


class _Problems:
    """Counts, and the first few of each kind; all of them go to a file, since there may be millions."""

    def __init__(self, file: TextIO | None = None) -> None:
        self.groups: dict[str, list[dict[str, str]]] = {}
        self.counts: Counter[str] = Counter()
        self._file = file

    def add(self, problem: Problem) -> None:
        named = {"name": shown(problem.name), "detail": shown(problem.detail)}
        self.counts[problem.reason] += 1
        if self._file is not None:
            self._file.write(json.dumps({"reason": problem.reason, **named}, ensure_ascii=False) + "\n")
        group = self.groups.setdefault(problem.reason, [])
        if len(group) < NAMED:
            group.append(named)

    def to_dict(self) -> dict[str, Any]:
        return {reason: {"count": count, "first": self.groups[reason]} for reason, count in self.counts.most_common()}


class _Figures:
    """The figures that thresholds act on, of all measured clips."""

    def __init__(self) -> None:
        self.values = {name: array("f") for name in FIGURES}

    def add(self, record: dict[str, Any]) -> None:
        for name, value in figures_of(record).items():
            self.values[name].append(value)

    def histograms(self) -> dict[str, Any]:
        return {name: _histogram(name, np.array(values, np.float64)) for name, values in self.values.items() if values}


def _histogram(name: str, values: np.ndarray) -> dict[str, Any]:
    low, high = float(values.min()), float(values.max())
    # Wide enough for all edges to differ, also where all values are the same.
    if name in LOGARITHMIC:
        edges = np.geomspace(max(low, 0.01), max(high, 1.1 * low, 0.1), BINS + 1)
        edges[0] = min(edges[0], low)
    else:
        edges = np.linspace(low, max(high, low + 0.01), BINS + 1)
    counts, _ = np.histogram(values, edges)
    return {
        "label": FIGURES[name][0],
        "edges": [float(edge) for edge in edges],
        "counts": counts.tolist(),
        "median": float(np.median(values)),
        "quartiles": [float(value) for value in np.quantile(values, [0.25, 0.75])],
    }


def _count(store: Store, params: BuildParams, problems: _Problems, figures: _Figures) -> dict[str, Any]:
    videos, sources = Counter(), Counter()
    # In the order of the report.
    clips = Counter({"taken": 0, "measured": 0, "kept": 0, "in shards": 0, "in shards with a motion phrase": 0})
    rejected: Counter[str] = Counter()
    for part in store.parts():
        planned = read_part(store, part)
        videos["planned"] += len(planned)
        outcomes = store.read(CLIPS, part) or {"videos": [], "samples": []}
        for outcome in outcomes["videos"]:
            videos["read"] += outcome["info"] is not None
            videos["with clips"] += outcome["clips"] > 0
            videos["variable frame rate, sampled by time"] += outcome["variable_rate"]
            videos["cuts"] += outcome["cuts"]
        for problem in _noted(store, part):
            problems.add(problem)
        clips["taken"] += len(outcomes["samples"])
        records = {record["key"]: record for record in records_of(store, part, planned, params.motion.mask_rule)}
        clips["measured"] += len(records)
        for record in records.values():
            figures.add(record)
        labels = store.read(LABELS, part) or {"kept": {}, "rejected": {}}
        for key, reasons in labels["rejected"].items():
            rejected.update(reasons)
            for reason in reasons if key in records else ():
                problems.add(Problem(f"{records[key]['video']} at {records[key]['start']:.2f} s", reason, key))
        clips["kept"] += len(labels["kept"])
        for record in labels["kept"].values():
            sources[record["motion_source"] if record["motion_prompt"] else "none found"] += 1
        shard = store.read(SHARDS, part)
        clips["in shards"] += shard["samples"] if shard else 0
        clips["in shards with a motion phrase"] += shard["with_motion_prompt"] if shard else 0
    return {
        "videos": dict(videos),
        "clips": dict(clips),
        "rejected": dict(rejected.most_common()),
        "motion_phrases": dict(sources.most_common()),
    }


def _noted(store: Store, part: int) -> Iterator[Problem]:
    for outcome in (store.read(CLIPS, part) or {"videos": []})["videos"]:
        yield from (Problem(**problem) for problem in outcome["problems"])
    yield from (Problem(**problem) for problem in (store.read(MOTION, part) or {"problems": []})["problems"])


def _seconds(store: Store) -> dict[str, float]:
    """Worker seconds per step, over all runs."""
    return {
        label: round(sum(manifest["seconds"] for manifest in store.each(step)), 1) for step, label in SECONDS.items()
    }


def _peak_memory(store: Store) -> int | None:
    peaks = [manifest["peak_memory"] for step in SECONDS for manifest in store.each(step)]
    return max((peak for peak in peaks if peak), default=None)


def to_markdown(content: dict[str, Any]) -> str:
    """Counts, reasons with the thresholds that gave them, and names."""
    clips = content["clips"]
    lines = ["# Data set report", "", "![Histograms with thresholds](histograms.png)", "", "| videos | |", "|---|---|"]
    lines += [f"| {name} | {count} |" for name, count in content["videos"].items()]
    lines += ["", "| clips | |", "|---|---|"]
    lines += [f"| {name} | {count} |" for name, count in clips.items()]
    lines += ["", "A clip can be left out for several reasons.", "", "| left out | clips |", "|---|---|"]
    lines += [f"| {reason} | {count} |" for reason, count in content["rejected"].items()]
    lines += ["", "| threshold | value |", "|---|---|"]
    lines += [f"| {name} | {value:g} |" for name, value in content["thresholds"].items()]
    lines += ["", "| figure | quarter below | median | quarter above |", "|---|---|---|---|"]
    for histogram in content["histograms"].values():
        low, high = histogram["quartiles"]
        lines.append(f"| {histogram['label']} | {low:.3g} | {histogram['median']:.3g} | {high:.3g} |")
    lines += ["", "| motion phrase from | clips |", "|---|---|"]
    lines += [f"| {source} | {count} |" for source, count in content["motion_phrases"].items()]
    lines += ["", "| step | seconds of one worker |", "|---|---|"]
    lines += [f"| {label} | {seconds:g} |" for label, seconds in content["seconds"].items()]
    if content["peak_memory_of_a_worker"]:
        lines += ["", f"A worker held at most {content['peak_memory_of_a_worker'] / 2**20:.0f} MiB."]
    lines += ["", *_caption_lines(content["captions"])]
    lines += ["## Problems", "", "All of them are in problems.jsonl.", ""]
    for reason, group in content["problems"].items():
        lines += [f"### {reason}: {group['count']}", ""]
        lines += [
            f"- {_plain(row['name'])}{': ' if row['detail'] else ''}{_plain(row['detail'])}" for row in group["first"]
        ]
        lines += [""]
    return "\n".join(lines)


def _caption_lines(captions: dict[str, Any]) -> list[str]:
    if not captions or not (captions["asked"] or captions["not_asked"] or captions["requests_paid"]):
        return []
    lines = [
        f"Endpoint: {captions['asked']} captions asked in this run, {captions['answered']} answered, "
        f"{captions['quarantined']} put in quarantine, {captions['malformed']} malformed answers, "
        f"{sum(captions['failed'].values())} failed, {captions['not_asked']} not asked. In all "
        f"{captions['requests_paid']} answers and {captions['tokens_spent']} tokens paid.",
        "",
    ]
    if captions["stopped_by"]:
        lines += [f"Asking was stopped by {captions['stopped_by']}; the same command asks for the rest.", ""]
    lines += [f"- failed, {reason}: {count}" for reason, count in captions["failed"].items()]
    quarantine = list(captions["in_quarantine"].items())
    lines += [f"- in quarantine: {_plain(caption)} ({_plain(problem)})" for caption, problem in quarantine[:NAMED]]
    return [*lines, ""]


def _plain(text: str) -> str:
    return " ".join(text.split())


def plot_histograms(histograms: dict[str, Any], thresholds: Thresholds, path: Path) -> None:
    """One panel per figure, the thresholds as red lines; nothing without matplotlib or measured clips."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    if not histograms:
        return
    canvas = Figure(figsize=(12, 7), layout="constrained")
    for number, (name, histogram) in enumerate(histograms.items(), start=1):
        axes = canvas.add_subplot(2, 3, number)
        edges = np.array(histogram["edges"])
        axes.bar(edges[:-1], histogram["counts"], np.diff(edges), align="edge", color="0.6")
        for threshold in FIGURES[name][1]:
            axes.axvline(getattr(thresholds, threshold), color="tab:red", linewidth=1)
        axes.set(xlabel=histogram["label"], ylabel="clips")
        if name in LOGARITHMIC:
            axes.set_xscale("symlog", linthresh=0.1)
    with atomic_path(path) as temporary:
        canvas.savefig(temporary, dpi=100)
