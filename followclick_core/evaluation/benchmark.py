"""Judging a model on photos of one's own: the form of the paper's 30 (image, click or mask, short motion prompt).

A benchmark is a folder with its pictures and `benchmark.json`:

    {"clips": [{"image": "cat.jpg", "clicks": [[310, 200, 1]], "prompt": "blink", "magnitude": 4},
               {"image": "boat.png", "mask": "boat-mask.png", "prompt": "the boat drifts"}]}

`clicks` are (x, y, label) in the image's pixels, 1 includes and 0 excludes; `mask` is white where the object is. Where
both are given the clip is made from the clicks and judged by the mask. `magnitude` is 6 unless given. A prompt whose
verb is not that of a generated clip is not judged by the verb rule.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..animator import Canvas
from ..data.verbs import canonical_verb
from ..defaults import GUIDANCE_INTERVAL, GUIDANCE_SCALE
from ..images import load_image, load_mask
from ..segment import clicks_from_pixels
from ..shapes import Image, Mask
from .perceptual import Extractors
from .report import write_report
from .scenes import MEAN_FREE, AnimatorSource, interval_setting, with_perceptual_figures
from .scoring import Evaluation, score
from .takes import HeldOutScene, generate

DEFAULT_MAGNITUDE = 6.0
FILE = "benchmark.json"

Progress = Callable[[str, int, int], None]


def evaluate_benchmark(
    animator: Any,
    folder: str | Path,
    seed: int = 0,
    num_frames: int = 16,
    steps: int = 25,
    guidance_scale: float = GUIDANCE_SCALE,
    guidance_interval: tuple[float, float] = GUIDANCE_INTERVAL,
    *,
    out_dir: str | Path,
    extractors: Extractors | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Animate and judge every entry; writes what scenes.evaluate_scenes writes. Pictures are scaled to the clip's size.

    Raises:
        FileNotFoundError: The folder lacks benchmark.json, or a picture that it names.
        ValueError: An entry lacks something, or its parts do not fit each other.
    """
    entries = read_entries(folder)
    scenes = [_scene(index, entry, animator, Path(folder), num_frames) for index, entry in enumerate(entries)]
    settings = {
        "model": animator.name,
        "weights": animator.digest(),
        "benchmark": json.dumps(entries, sort_keys=True),
        "num_scenes": len(entries),
        "seed": seed,
        "num_frames": num_frames,
        "steps": steps,
        "guidance_scale": guidance_scale,
        "noise": MEAN_FREE,
        **interval_setting(guidance_interval),
    }
    source = BenchmarkSource(
        animator,
        {scene.index: region for scene, region in scenes},
        num_frames=num_frames,
        steps=steps,
        guidance_scale=guidance_scale,
        guidance_interval=guidance_interval,
        seed=seed,
    )
    generate(source, _counted([scene for scene, _ in scenes], progress), out_dir, settings)
    evaluation = score(out_dir, progress=progress)
    evaluation = with_perceptual_figures(evaluation, out_dir, extractors or Extractors())
    write_report(evaluation, out_dir)
    return evaluation


class BenchmarkSource(AnimatorSource):
    """Clips by a model, of regions that are known beforehand: scene's index -> mask."""

    def __init__(self, animator: Any, regions: dict[int, Mask], seed: int = 0, **settings: Any):
        super().__init__(animator, seed, **settings)
        self._regions = regions

    def region(self, scene: HeldOutScene) -> Mask:
        return self._regions[scene.index]


def read_entries(folder: str | Path) -> list[dict[str, Any]]:
    """The checked entries of a benchmark's file.

    Raises:
        FileNotFoundError: There is none.
        ValueError: It is no JSON of this form; the entry's number is named.
    """
    path = Path(folder) / FILE
    if not path.is_file():
        raise FileNotFoundError(f"There is no {FILE} in {folder}; docs/EVALUATION.md shows its form.")
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["clips"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no benchmark ({error}); docs/EVALUATION.md shows its form.") from error
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{path} lists no clips; docs/EVALUATION.md shows its form.")
    for number, entry in enumerate(entries, start=1):
        _check(entry, f"Clip {number} of {path}")
    return entries


def _check(entry: Any, name: str) -> None:
    if not isinstance(entry, dict) or not isinstance(entry.get("image"), str):
        raise ValueError(f'{name} names no image; give {{"image": …, "prompt": …, "clicks": … or "mask": …}}.')
    if not isinstance(entry.get("prompt"), str) or not entry["prompt"].strip():
        raise ValueError(f'{name} has no prompt; say what the object does, such as "run".')
    if not entry.get("clicks") and not entry.get("mask"):
        raise ValueError(f"{name} has neither clicks nor a mask; give one of them, or both.")
    clicks = entry.get("clicks") or []
    if not isinstance(clicks, list) or not all(isinstance(click, list) and len(click) == 3 for click in clicks):
        raise ValueError(f"{name} has clicks {clicks!r}; give a list of [x, y, label].")
    magnitude = entry.get("magnitude", DEFAULT_MAGNITUDE)
    if isinstance(magnitude, bool) or not isinstance(magnitude, int | float):
        raise ValueError(f"{name} has the magnitude {magnitude!r}; give pixels per frame at 512 pixels of width.")


def _scene(
    index: int, entry: dict[str, Any], animator: Any, folder: Path, num_frames: int
) -> tuple[HeldOutScene, Mask]:
    """The scene at the clip's size, and the region that the model is given."""
    photo = load_image(folder / entry["image"])
    canvas = _stable_canvas(animator, photo)
    clicks = [(x, y, int(label)) for x, y, label in entry.get("clicks") or []]
    clicked = given = None
    if clicks:
        clicks_from_pixels(clicks, (photo.shape[1], photo.shape[0]))
        clicked = canvas.cut_mask(canvas.place_mask(animator.segment(photo, clicks).best))
    if entry.get("mask"):
        mask = load_mask(folder / entry["mask"])
        if mask.shape != photo.shape[:2]:
            raise ValueError(
                f"{entry['mask']} has {mask.shape[1]}x{mask.shape[0]} pixels, {entry['image']} "
                f"{photo.shape[1]}x{photo.shape[0]}; make the sizes equal."
            )
        given = canvas.cut_mask(canvas.place_mask(mask))
    region = clicked if clicked is not None else given
    if region is None:
        raise ValueError(f"{entry['image']} has neither clicks nor a mask.")
    image = canvas.cut(canvas.place(photo)[:, :, None])[0]
    scale = canvas.width / photo.shape[1], canvas.height / photo.shape[0]
    both = clicked is not None and given is not None
    first = next(((x, y) for x, y, label in clicks if label), None)
    scene = HeldOutScene(
        index=index,
        image=image,
        mask=given if given is not None else region,
        distractors=np.zeros_like(region),
        # Without a mask to hold it against, the click's own is no measure of the click.
        click=(int(first[0] * scale[0]), int(first[1] * scale[1])) if both and first else None,
        prompt=entry["prompt"],
        verb=canonical_verb(entry["prompt"]) or "",
        magnitude=float(entry.get("magnitude", DEFAULT_MAGNITUDE)),
        frames=np.repeat(image[None], num_frames, axis=0),
    )
    return scene, region


def _stable_canvas(animator: Any, photo: Image) -> Canvas:
    """The clip's size, such that a picture of this very size is animated without scaling it again."""
    canvas = animator.canvas(photo)
    for _ in range(8):
        again = animator.canvas(np.empty((canvas.height, canvas.width, 3), np.uint8))
        if again == canvas:
            break
        canvas = again
    return canvas


def _counted(scenes: list[HeldOutScene], progress: Progress | None) -> Iterator[HeldOutScene]:
    for done, scene in enumerate(scenes, start=1):
        yield scene
        if progress is not None:
            progress("generate", done, len(scenes))
