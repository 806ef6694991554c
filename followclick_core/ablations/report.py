"""Tables and plots of the ablations, from the small files that the runs wrote."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..files import atomic_path
from .figures import FIGURES, REFERENCES, Figure, Scores, count_runs, difference, estimate, stack_scores
from .variants import ABLATIONS, BASE, PAIRS, VARIANTS, Ablation

Results = Mapping[str, list[dict[str, Any]]]


def read_results(folder: Path) -> Results:
    """Variant -> its runs' results.

    Raises:
        FileNotFoundError: There is no result.
    """
    results: dict[str, list[dict[str, Any]]] = {}
    for path in sorted((folder / "runs").glob("*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        results.setdefault(result["variant"]["name"], []).append(result)
    if not results:
        raise FileNotFoundError(f"There is no result in {folder / 'runs'}; run the ablations first.")
    return results


def write_report(folder: Path, page: Path) -> None:
    """Renew what stands between the page's markers, <!-- ablation NAME --> and <!-- end NAME -->, and the plots.

    Plots are written beside the page, as ablation-NAME.png. `budget` is the marker of what the runs had in common.

    Raises:
        FileNotFoundError: There is no page or no result.
        ValueError: The page lacks a marker.
    """
    if not page.is_file():
        raise FileNotFoundError(f"There is no {page}; the report goes between the markers of a page that is there.")
    results = read_results(folder)
    text = _between(page.read_text(encoding="utf-8"), "budget", budget_text(results))
    for ablation in (*ABLATIONS, PAIRS):
        scores = _scores_of(ablation, results)
        if len(scores) < 2:
            continue
        picture = page.with_name(f"ablation-{ablation.name}.png")
        plot(ablation, scores, picture)
        text = _between(text, ablation.name, f"{table(ablation, scores)}\n![{ablation.title}]({picture.name})\n")
    with atomic_path(page) as temporary:
        temporary.write_text(text, encoding="utf-8")


def budget_text(results: Results) -> str:
    """What all runs had in common, and what they took."""
    runs = [result for variant in VARIANTS for result in results.get(variant.name, [])]
    one, clips = runs[0], runs[0]["clips"]
    seconds = [result["seconds"]["training"] for result in runs]
    counts = sorted({len(results[name]) for name in results})
    reference = stack_scores(next(iter(results.values())))
    known = "; ".join(f"{figure.label} {figure.compute(reference):.3g}" for figure in REFERENCES.values())
    steps = sorted({result["steps"] for result in runs})
    return (
        f"{len(runs)} runs of {len(results)} variants, {' to '.join(map(str, _ends(counts)))} seeds each; every run "
        f"{' to '.join(map(str, _ends(steps)))} steps of {one['params']['batch_size']} clips, {clips['num_frames']} "
        f"frames of {clips['size']}x{clips['size']} px, drawn from the same {clips['train']} clips; "
        f"{min(seconds):.0f} to {max(seconds):.0f} s of training on {one['device']} (torch {one['torch']}), several "
        f"runs side by side. Scored on {clips['held_out']} held-out clips and a sweep over {clips['sweep']} more, "
        f"{one['params']['scoring']['steps']} sampling steps, guidance {one['params']['scoring']['guidance_scale']:g}. "
        f"Of the held-out clips themselves: {known}.\n"
    )


def table(ablation: Ablation, scores: Mapping[str, Scores]) -> str:
    """A row per variant and a column per figure: the mean over seeds and clips, and its 95 % interval.

    A star marks what differs from the first row: the 95 % interval of the difference does not hold zero, over two seeds
    or more.
    """
    figures = [FIGURES[name] for name in ablation.figures]
    lines = [
        "| | seeds | " + " | ".join(figure.label for figure in figures) + " |",
        "|---|---|" + "---|" * len(figures),
    ]
    reference = next(iter(scores.values()))
    for (_, label), row in zip(_rows_of(ablation, scores), scores.values(), strict=True):
        cells = []
        for figure in figures:
            found = estimate(figure, row)
            low, high = (0.0, 0.0) if row is reference else difference(figure, row, reference)
            # Of one training each, nobody knows how much of a difference is the seed's. NaN is no difference.
            told = count_runs(row) > 1 and (low > 0 or high < 0)
            star = "\\*" if told else ""
            cells.append(f"{found.value:.3g}{star} [{found.low:.3g}, {found.high:.3g}]")
        lines.append(f"| {label} | {count_runs(row)} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def plot(ablation: Ablation, scores: Mapping[str, Scores], path: Path) -> None:
    """Means over seeds, each seed as a dot, and the interval of the difference from the first row, which is dashed.

    A sweep is drawn as asked against measured.
    """
    from matplotlib.figure import Figure as Canvas

    names = ablation.figures[:6]
    rows_of_axes = -(-len(names) // 3)
    canvas = Canvas(figsize=(12, 3.2 * rows_of_axes), layout="constrained")
    rows = list(zip(_rows_of(ablation, scores), scores.values(), strict=True))
    reference = rows[0][1]
    # Numbers in their order, as the axis that they are, and before words.
    rows.sort(key=lambda row: (not row[0][1].replace(".", "").isdecimal(), row[0][1] if ablation.ordered else ""))
    for axes, name in zip(canvas.subplots(rows_of_axes, 3).flat, names, strict=True):
        if name == "sweep_spearman":
            _plot_sweep(axes, rows)
        else:
            _plot_figure(axes, rows, reference, FIGURES[name])
    canvas.suptitle(ablation.title)
    with atomic_path(path) as temporary:
        canvas.savefig(temporary, dpi=100)


def _plot_figure(axes: Any, rows: list[tuple[tuple[str, str], Scores]], reference: Scores, figure: Figure) -> None:
    level = figure.compute(reference)
    axes.axhline(level, color="0.7", linestyle="--", linewidth=1)
    for place, (_, scores) in enumerate(rows):
        found = estimate(figure, scores)
        axes.plot(place, found.value, marker="o", color="C0")
        axes.plot([place + 0.15] * len(found.runs), found.runs, marker=".", linestyle="none", color="0.5")
        if scores is not reference:
            low, high = difference(figure, scores, reference)
            axes.plot([place] * 2, [level + low, level + high], marker="_", color="C0")
    axes.set_xticks(
        range(len(rows)), [label for (_, label), _ in rows], rotation=30 if len(rows) < 6 else 60, ha="right"
    )
    axes.set_title(figure.label, fontsize=10)


def _plot_sweep(axes: Any, rows: list[tuple[tuple[str, str], Scores]]) -> None:
    for (_, label), scores in rows:
        expected = scores["sweep_expected"][0]
        means = scores["sweep"].mean((0, 1))
        low, high = np.quantile(scores["sweep"].mean(0), [0.25, 0.75], axis=0)
        axes.errorbar(expected, means, np.abs([means - low, high - means]), marker="o", capsize=3, label=label)
    most = max(float(scores["sweep_expected"].max()) for _, scores in rows)
    axes.plot([0, most], [0, most], color="0.8")
    axes.set(xlabel="magnitude asked or expected", ylabel="measured (bars: half of the clips)")
    axes.legend(fontsize=8)


def _scores_of(ablation: Ablation, results: Results) -> dict[str, Scores]:
    if ablation is PAIRS:
        base = stack_scores(results[BASE.name]) if BASE.name in results else {}
        return {name: {"pairs": base[f"pairs_{name}"]} for name, _ in PAIRS.variants if f"pairs_{name}" in base}
    present = {name: results[name] for name, _ in ablation.variants if name in results}
    if not present:
        return {}
    # A seed that some variants have not come to yet would make unequal rows.
    seeds = set.intersection(*({run["seed"] for run in runs} for runs in present.values()))
    return {
        name: stack_scores([run for run in runs if run["seed"] in seeds]) for name, runs in present.items() if seeds
    }


def _rows_of(ablation: Ablation, scores: Mapping[str, Scores]) -> list[tuple[str, str]]:
    return [(name, label) for name, label in ablation.variants if name in scores]


def _ends(values: list[int]) -> list[int]:
    return values if len(values) < 2 else [values[0], values[-1]]


def _between(text: str, name: str, content: str) -> str:
    """The text with `content` between the markers of `name`."""
    begin, end = f"<!-- ablation {name} -->", f"<!-- end {name} -->"
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"The page lacks {begin} and {end}; put the two where the report is to go.")
    return pattern.sub(lambda _: f"{begin}\n{content}{end}", text)
