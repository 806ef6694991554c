"""Write an evaluation down: JSON with every scene, Markdown for the model card, a contact sheet, a magnitude plot."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from PIL import Image as PillowImage
from PIL import ImageDraw

from ..files import atomic_path, write_json
from .metrics import Figure
from .scoring import Evaluation, SceneScore
from .takes import read_scenes

SHEET_FRAMES = 6
SHEET_SCENES = 12
SHEET_SIDE = 128
LABEL_HEIGHT = 16
NAMED_LINES = 12
TICKS = (0, 1, 2, 4, 8, 16, 32)  # of magnitudes


def write_report(evaluation: Evaluation, out_dir: str | Path) -> None:
    """report.json, report.md, contact_sheet.png and, where matplotlib is installed, magnitude.png."""
    out_dir = Path(out_dir)
    write_json(out_dir / "report.json", to_dict(evaluation))
    with atomic_path(out_dir / "report.md") as temporary:
        temporary.write_text(to_markdown(evaluation), encoding="utf-8")
    with atomic_path(out_dir / "contact_sheet.png") as temporary:
        contact_sheet(evaluation, out_dir).save(temporary)
    _plot_magnitude(evaluation.scenes, out_dir / "magnitude.png")


def to_dict(evaluation: Evaluation) -> dict:
    """JSON-able: settings, figures with intervals and bars, per verb, confusion, and every scene."""
    return {
        "settings": evaluation.settings,
        "figures": [{**asdict(figure), "passes": figure.passes} for figure in evaluation.figures],
        "verbs": {
            verb: {"scenes": total, "recognised": right} for verb, (right, total) in by_verb(evaluation.scenes).items()
        },
        "confusion": {f"{verb} -> {seen}": count for (verb, seen), count in confusion(evaluation.scenes).items()},
        "scenes": [asdict(scene) for scene in evaluation.scenes],
    }


def to_markdown(evaluation: Evaluation) -> str:
    """The bars as a table, then the verbs. A figure below its bar says so."""
    settings = ", ".join(
        f"{len(value)} {key}" if key == "verbs" else f"{key} {_plain(value)}"
        for key, value in evaluation.settings.items()
        if key != "benchmark"
    )
    lines = [f"{len(evaluation.scenes)} scenes ({settings}).", ""]
    lines += ["| figure | value | 95 % interval | bar | |", "|---|---|---|---|---|"]
    lines += [_row(figure) for figure in evaluation.figures]
    lines += ["", "| verb | recognised | taken for |", "|---|---|---|"]
    mistakes = confusion(evaluation.scenes)
    for verb, (right, total) in by_verb(evaluation.scenes).items():
        taken = [f"{seen} {count}" for (asked, seen), count in mistakes.items() if asked == verb and seen != verb]
        lines.append(f"| {verb} | {right} of {total} | {', '.join(taken) or '–'} |")
    return "\n".join(lines) + "\n"


def by_verb(scenes: Sequence[SceneScore]) -> dict[str, tuple[int, int]]:
    """Verb -> (recognised, scenes), alphabetically; scenes of no known verb are left out."""
    totals = Counter(scene.verb for scene in scenes if scene.verb)
    right = Counter(scene.verb for scene in scenes if scene.recognised == scene.verb)
    return {verb: (right[verb], totals[verb]) for verb in sorted(totals)}


def confusion(scenes: Sequence[SceneScore]) -> dict[tuple[str, str], int]:
    """(verb asked, verb seen) -> how often, the most frequent first."""
    return dict(Counter((scene.verb, scene.recognised) for scene in scenes if scene.verb).most_common())


def contact_sheet(evaluation: Evaluation, out_dir: str | Path) -> PillowImage.Image:
    """A row of frames per scene under what was asked and what was seen; a dot marks the click."""
    scores = {scene.index: scene for scene in evaluation.scenes}
    rows = []
    for scene in read_scenes(out_dir):
        if len(rows) == SHEET_SCENES:
            break
        frames = scene.takes[0].frames
        picks = np.linspace(0, len(frames) - 1, SHEET_FRAMES).round().astype(int)
        rows.append(_sheet_row(frames[picks], scores[scene.index], scene.click))
    sheet = PillowImage.new("RGB", (SHEET_FRAMES * SHEET_SIDE, sum(row.height for row in rows)), "white")
    for number, row in enumerate(rows):
        sheet.paste(row, (0, number * row.height))
    return sheet


def _sheet_row(frames: np.ndarray, scored: SceneScore, click: tuple[int, int] | None) -> PillowImage.Image:
    row = PillowImage.new("RGB", (SHEET_FRAMES * SHEET_SIDE, SHEET_SIDE + LABEL_HEIGHT), "white")
    label = (
        f"{scored.prompt}  (seen: {scored.recognised})  "
        f"magnitude {scored.magnitude_asked:.1f} -> {scored.magnitude:.1f}  inside {scored.energy_share:.0%}"
    )
    ImageDraw.Draw(row).text((4, 2), label, fill="black")
    for column, frame in enumerate(frames):
        picture = PillowImage.fromarray(frame).resize((SHEET_SIDE, SHEET_SIDE), PillowImage.Resampling.LANCZOS)
        row.paste(picture, (column * SHEET_SIDE, LABEL_HEIGHT))
    if click is None:
        return row
    x, y = ((at + 0.5) * SHEET_SIDE / side for at, side in zip(click, (frames.shape[2], frames.shape[1]), strict=True))
    ImageDraw.Draw(row).circle((x, LABEL_HEIGHT + y), 4, fill="red", outline="white")
    return row


def _plot_magnitude(scenes: Sequence[SceneScore], path: Path) -> None:
    try:
        from matplotlib.figure import Figure as Canvas
    except ImportError:
        return
    canvas = Canvas(figsize=(5, 5), layout="constrained")
    axes = canvas.add_subplot()
    axes.plot([1, 32], [1, 32], color="0.8", linewidth=1)
    own = np.array([(scene.magnitude_asked, scene.magnitude) for scene in scenes])
    axes.scatter(own[:, 0], own[:, 1], s=12, color="0.6", label="scenes, own magnitude")
    swept = [scene for scene in scenes if scene.sweep]
    for scene in swept:
        asked, measured = zip(*scene.sweep, strict=True)
        # A name for each line where they can be told apart.
        label = f"{scene.verb} (scene {scene.index})" if len(swept) <= NAMED_LINES else None
        axes.plot(asked, measured, marker="o", markersize=3, linewidth=1, alpha=0.7, label=label)
    if len(swept) > NAMED_LINES:
        points = np.array([scene.sweep for scene in swept])
        axes.plot(*np.median(points, axis=0).T, color="black", linewidth=2, label=f"median of {len(swept)} sweeps")
    axes.set(xscale="symlog", yscale="symlog", xlabel="magnitude asked (px/frame at 512)", ylabel="measured")
    # Its own would be 1 and 10, and look as if all of the scale were logarithmic.
    axes.set(xticks=TICKS, yticks=TICKS, xticklabels=TICKS, yticklabels=TICKS)
    axes.legend(fontsize=6)
    with atomic_path(path) as temporary:
        canvas.savefig(temporary, dpi=120)


def _row(figure: Figure) -> str:
    if figure.bar is None:
        bar, verdict = "", ""
    else:
        bar = f"{'≥' if figure.at_least else '≤'} {figure.bar:g}"
        verdict = "not measured" if figure.value is None else "passes" if figure.passes else "**below the bar**"
    interval = "–" if figure.low is None or figure.high is None else f"{figure.low:.3g} … {figure.high:.3g}"
    value = "–" if figure.value is None else f"{figure.value:.3g}"
    return f"| {figure.name} | {value} | {interval} | {bar} | {verdict} |"


def _plain(value: object) -> str:
    return " to ".join(map(str, value)) if isinstance(value, list) else str(value)
