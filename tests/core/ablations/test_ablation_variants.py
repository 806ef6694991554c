"""The grid of variants and the reading of their scores: no model takes part."""

import json

import numpy as np
import pytest

from followclick_core.ablations import figures
from followclick_core.ablations.figures import FIGURES, difference, estimate, stack_scores
from followclick_core.ablations.report import read_results, write_report
from followclick_core.ablations.variants import ABLATIONS, BASE, PAIRS, VARIANTS, Variant, find_variants


def scores(obeys, loss=0.5, clips=40, pairs=None) -> dict:
    rng = np.random.default_rng(0)
    names = ("loss_inside", "loss_outside", "clip_error", "first_frame_mse", "round_trip_mse", "still_error", "leak")
    rows = {name: (loss + 0.01 * rng.standard_normal(clips)).tolist() for name in names}
    rows |= {"obeys": (rng.random(clips) < obeys).astype(float).tolist()}
    rows |= {"magnitude": rng.uniform(2, 16, clips).tolist()}
    rows |= {"speed": rows["magnitude"], "along": [1.0] * clips}
    rows |= {"sweep": [[4.0, 8.0, 12.0, 16.0]] * clips, "sweep_expected": [4.0, 8.0, 12.0, 16.0]}
    return rows | ({"pairs_separate": pairs, "pairs_joined": [[0.0, 1.0]] * len(pairs)} if pairs else {})


def pairs_of(name: str) -> list | None:
    return [[1.0, 0.0], [1.0, 1.0]] if name == "base" else None


def result(name: str, seed: int, **of_scores) -> dict:
    return {
        "variant": {"name": name},
        "seed": seed,
        "steps": 10,
        "params": {"batch_size": 4, "scoring": {"steps": 12, "guidance_scale": 3.0}},
        "clips": {"size": 64, "num_frames": 16, "train": 100, "held_out": 40, "sweep": 40},
        "device": "a card",
        "torch": "2",
        "seconds": {"training": 3.0},
        "scores": scores(**of_scores),
    }


def test_every_comparison_names_variants_and_figures_that_there_are():
    known = {variant.name for variant in VARIANTS}
    assert len(known) == len(VARIANTS)
    for ablation in ABLATIONS:
        assert {name for name, _ in ablation.variants} <= known, ablation.name
        assert set(ablation.figures) <= FIGURES.keys()
    assert {name for ablation in ABLATIONS for name, _ in ablation.variants} == known
    assert set(PAIRS.figures) <= FIGURES.keys()


def test_variants_are_found_in_the_grids_order_and_strange_ones_are_refused():
    assert find_variants(["union", "base"]) == (BASE, Variant("union", region="union"))
    assert find_variants(None) == VARIANTS
    with pytest.raises(ValueError, match="no variant unioned; choose of base"):
        find_variants(["unioned"])
    with pytest.raises(ValueError, match="conditions are magnitude, fps"):
        Variant("x", condition="strength")


def test_an_estimate_is_the_mean_over_runs_and_clips_within_an_interval_of_about_the_right_width():
    stacked = stack_scores([result("base", 1, obeys=0.5), result("base", 0, obeys=0.5)])
    found = estimate(FIGURES["obeys"], stacked)
    assert found.value == pytest.approx(stacked["obeys"].mean()) and len(found.runs) == 2
    # Both runs are alike, so the interval is that of one binomial of 40 clips: about 4 standard errors wide.
    assert found.high - found.low == pytest.approx(4 * (0.25 / 40) ** 0.5, rel=0.25)
    assert estimate(FIGURES["sweep_slope"], stacked).value == pytest.approx(1)
    assert estimate(FIGURES["sweep_spearman"], stacked).value == pytest.approx(1)


def test_the_difference_is_taken_clip_by_clip():
    # The clips vary by 0.01 in both, alike; the variants differ by a tenth of that.
    one, other = (stack_scores([result("x", 0, obeys=0.5, loss=loss)]) for loss in (0.501, 0.5))
    low, high = difference(FIGURES["loss_inside"], one, other)
    assert low == pytest.approx(0.001) and high == pytest.approx(0.001)


def test_the_report_fills_the_pages_markers_and_leaves_its_prose(tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "RESAMPLES", 100)
    (tmp_path / "runs").mkdir()
    for name, obeys in (("base", 0.9), ("fps", 0.2), ("no-ma", 0.4)):
        for seed in range(2):
            path = tmp_path / "runs" / f"{name}-{seed}.json"
            path.write_text(json.dumps(result(name, seed, obeys=obeys, pairs=pairs_of(name))))
    # A third seed that one of them alone has come to.
    (tmp_path / "runs" / "base-2.json").write_text(json.dumps(result("base", 2, obeys=0.0, pairs=pairs_of("base"))))
    page = tmp_path / "page.md"
    names = ("budget", *(ablation.name for ablation in ABLATIONS), "pairs")
    page.write_text("Before.\n" + "\n".join(f"<!-- ablation {name} -->\nold\n<!-- end {name} -->\n" for name in names))
    write_report(tmp_path, page)
    text = page.read_text()
    assert text.startswith("Before.\n") and "7 runs of 3 variants, 2 to 3 seeds each" in text
    assert "| without MA | 2 |" in text and "| both | 2 |" in text
    obeyed = next(line for line in text.splitlines() if line.startswith("| frames per second"))
    assert "\\*" in obeyed and "[" in obeyed
    assert "| a prediction per region | 3 | 1 [1, 1] | 0.5 " in text
    # Of a comparison with one variant alone nothing is said, and what stood there is kept.
    assert text.count("old") == 4 and (tmp_path / "ablation-captions.png").stat().st_size > 1000
    write_report(tmp_path, page)
    assert page.read_text() == text

    page.write_text("No marker.")
    with pytest.raises(ValueError, match="lacks <!-- ablation budget -->"):
        write_report(tmp_path, page)
    with pytest.raises(FileNotFoundError, match="no result"):
        read_results(tmp_path / "elsewhere")
