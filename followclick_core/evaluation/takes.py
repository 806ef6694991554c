"""Clips to be judged, on disk: what was asked in each held-out scene and what came out.

The folder holds everything that the judging needs, so a machine with a GPU can generate and another one score:

    run.json                       how the clips were made
    scenes/000/scene.json          verb, click, what was asked, seconds; written last, so its scene is whole
               photo.webp          the first frame as given       target.png, distractors.png   its true silhouettes
               round_trip.webp     photo through the autoencoder  click.png                     the click's mask
               take_0.webp …       one clip each: its frames in a grid, lossless; 0 is the scene as it is
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from PIL import Image as PillowImage

from ..files import atomic_path, write_json
from ..images import load_mask, save_mask
from ..shapes import Frames8, Image, Mask
from .phrasings import KINDS, unseen_phrasing

SWEEP_MAGNITUDES = (2.0, 4.0, 8.0, 16.0)
MAGNITUDE_TOLERANCE = 0.01  # relative: scenes are drawn in floats, whose last bits depend on the processor
GRID_COLUMNS = 4
_COLUMNS = ("kinds", "prompts", "magnitudes", "seconds")  # of scene.json, an entry per take


@dataclass(frozen=True, eq=False)
class HeldOutScene:
    """One question to the model, with the true answer. Masks are of the first frame, the click is a pixel of it."""

    index: int
    image: Image
    mask: Mask  # the target's silhouette
    distractors: Mask
    click: tuple[int, int] | None  # x, y; None: the model is given the mask
    prompt: str
    verb: str
    magnitude: float  # of the true clip
    frames: Frames8  # the true clip


@dataclass(frozen=True, eq=False)
class Take:
    """One clip made for a scene: the magnitude asked, the frames, and the mask that the click gave."""

    magnitude: float
    frames: Frames8
    mask: Mask
    seconds: float = 0.0
    kind: str = "own"
    prompt: str = ""


@dataclass(frozen=True)
class Ask:
    """One clip to be asked for in a scene.

    Args:
        kind: "own", the scene as it is; "sweep", at another magnitude; or one of phrasings.KINDS, in other words.
    """

    kind: str
    prompt: str
    magnitude: float

    def same_as(self, other: "Ask") -> bool:
        return (self.kind, self.prompt) == (other.kind, other.prompt) and same_magnitude(
            self.magnitude, other.magnitude
        )


@dataclass(frozen=True)
class Plan:
    """What is asked in which scenes, beside each as it is.

    Args:
        sweep_verbs, sweep_scenes: The first `sweep_scenes` scenes of these verbs are also asked for every one of
            SWEEP_MAGNITUDES.
        unseen_scenes: The first so many scenes are also asked for in words that training never used (phrasings.py).
    """

    sweep_verbs: Sequence[str] = ()
    sweep_scenes: int = 0
    unseen_scenes: int = 0

    def asks(self, scenes: Iterable["HeldOutScene"]) -> Iterator[tuple["HeldOutScene", list[Ask]]]:
        """Each scene with what to ask in it, as it is first."""
        swept = 0
        for scene in scenes:
            asks = [Ask("own", scene.prompt, scene.magnitude)]
            if scene.verb in self.sweep_verbs and swept < self.sweep_scenes:
                swept += 1
                asks += [Ask("sweep", scene.prompt, magnitude) for magnitude in SWEEP_MAGNITUDES]
            if scene.index < self.unseen_scenes:
                asks += [Ask(kind, unseen_phrasing(scene.verb, kind, scene.index), scene.magnitude) for kind in KINDS]
            yield scene, asks


AS_THEY_ARE = Plan()
"""Every scene once."""


@dataclass(frozen=True, eq=False)
class SceneTakes:
    """A scene as it lies on disk: what to score, against what; `takes[0]` is at the scene's own magnitude."""

    index: int
    verb: str
    prompt: str
    click: tuple[int, int] | None
    image: Image
    round_trip: Image
    mask: Mask
    distractors: Mask
    takes: tuple[Take, ...]


@runtime_checkable
class Source(Protocol):
    """Where clips come from: a model, or a reference (the truth, a still)."""

    def animate(self, requests: Sequence[tuple[HeldOutScene, float]]) -> Sequence[Take]:
        """One take per (scene, magnitude)."""
        ...

    def autoencode(self, image: np.ndarray) -> np.ndarray:
        """The image after encoding and decoding: what no clip of this model can beat."""
        ...


def generate(
    source: Source,
    scenes: Iterable[HeldOutScene],
    out_dir: str | Path,
    settings: dict[str, Any],
    plan: Plan = AS_THEY_ARE,
    scenes_at_once: int = 1,
) -> None:
    """Make and write the takes that the folder lacks; what it holds already is kept, so a run can resume or ask more.

    Args:
        settings: Written to run.json. A folder made with other settings is refused.
        scenes_at_once: How many scenes' requests `source` gets in one call.
    """
    out_dir = Path(out_dir)
    missing = missing_takes(scenes, out_dir, settings, plan)
    while chunk := list(islice(missing, scenes_at_once)):
        takes = list(source.animate([request for scene, asks in chunk for request in requests_of(scene, asks)]))
        for scene, asks in chunk:
            write_scene(out_dir, scene, asks, takes[: len(asks)], source.autoencode(scene.image))
            del takes[: len(asks)]


def requests_of(scene: HeldOutScene, asks: Sequence[Ask]) -> list[tuple[HeldOutScene, float]]:
    """What a Source is asked: the scene with each prompt, and the magnitude."""
    return [(replace(scene, prompt=ask.prompt), ask.magnitude) for ask in asks]


def missing_takes(
    scenes: Iterable[HeldOutScene], out_dir: Path, settings: dict[str, Any], plan: Plan
) -> Iterator[tuple[HeldOutScene, list[Ask]]]:
    """The scenes that lack a take in `out_dir`, with what is still to be asked in each; arguments as of `generate`.

    Raises:
        ValueError: `out_dir` was filled with other settings, or with other scenes.
    """
    (out_dir / "scenes").mkdir(parents=True, exist_ok=True)
    _claim(out_dir, settings)
    for scene, asks in plan.asks(scenes):
        made = _asks_in(_read_content(_folder(out_dir, scene.index)))
        if made and not asks[0].same_as(made[0]):
            raise ValueError(
                f"Scene {scene.index} of {out_dir} is '{made[0].prompt}' at magnitude {made[0].magnitude:g}, not "
                f"'{scene.prompt}' at {scene.magnitude:g}: other scenes lie there; choose another folder."
            )
        if missing := [ask for ask in asks if not any(map(ask.same_as, made))]:
            yield scene, missing


def write_scene(
    out_dir: Path, scene: HeldOutScene, asks: Sequence[Ask], takes: Sequence[Take], round_trip: np.ndarray
) -> None:
    """Write one scene's files, scene.json last; to a scene that lies there already, add the takes."""
    folder = _folder(out_dir, scene.index)
    content = _read_content(folder)
    if content is None:
        folder.mkdir(parents=True, exist_ok=True)
        _write_lossless(folder / "photo.webp", scene.image)
        _write_lossless(folder / "round_trip.webp", round_trip)
        save_mask(folder / "target.png", scene.mask)
        save_mask(folder / "distractors.png", scene.distractors)
        save_mask(folder / "click.png", takes[0].mask)
        content = {
            "verb": scene.verb,
            "prompt": scene.prompt,
            "click": list(scene.click) if scene.click else None,
            "num_frames": len(takes[0].frames),
            **{column: [] for column in _COLUMNS},
        }
    for ask, take in zip(asks, takes, strict=True):
        if take.frames.shape[1:] != scene.image.shape:
            raise ValueError(
                f"The clip of scene {scene.index} has frames of {take.frames.shape[1:3]} and its photo "
                f"{scene.image.shape[:2]}; draw the scenes at the model's own size."
            )
        _write_lossless(folder / f"take_{len(content['kinds'])}.webp", _grid(take.frames))
        for column, value in zip(_COLUMNS, (ask.kind, ask.prompt, take.magnitude, take.seconds), strict=True):
            content[column].append(value)
    write_json(folder / "scene.json", content)


def read_settings(out_dir: str | Path) -> dict[str, Any]:
    """What `generate` was told about the run; FileNotFoundError where no run lies."""
    path = Path(out_dir) / "run.json"
    if not path.is_file():
        raise FileNotFoundError(f"There is no run.json in {out_dir}; generate the clips to score first.")
    return json.loads(path.read_text(encoding="utf-8"))


def read_scenes(out_dir: str | Path) -> Iterator[SceneTakes]:
    """Every whole scene of a folder, in order."""
    for path in scene_files(out_dir):
        yield read_scene(path)


def scene_files(out_dir: str | Path) -> list[Path]:
    """The scene.json of every whole scene, in order."""
    return sorted(Path(out_dir).glob("scenes/*/scene.json"))


def read_scene(path: Path) -> SceneTakes:
    folder, content = path.parent, json.loads(path.read_text(encoding="utf-8"))
    image = _read(folder / "photo.webp")
    click_mask = load_mask(folder / "click.png")
    columns = (content[column] for column in _COLUMNS)
    takes = [
        Take(
            magnitude,
            _ungrid(_read(folder / f"take_{number}.webp"), content["num_frames"], image.shape),
            click_mask,
            seconds,
            kind,
            prompt,
        )
        for number, (kind, prompt, magnitude, seconds) in enumerate(zip(*columns, strict=True))
    ]
    return SceneTakes(
        index=int(folder.name),
        verb=content["verb"],
        prompt=content["prompt"],
        click=tuple(content["click"]) if content["click"] else None,
        image=image,
        round_trip=_read(folder / "round_trip.webp"),
        mask=load_mask(folder / "target.png"),
        distractors=load_mask(folder / "distractors.png"),
        takes=tuple(takes),
    )


def _claim(out_dir: Path, settings: dict[str, Any]) -> None:
    if not (out_dir / "run.json").is_file():
        write_json(out_dir / "run.json", settings)
        return
    present = read_settings(out_dir)
    if present != settings:
        changed = sorted(key for key in present.keys() | settings.keys() if present.get(key) != settings.get(key))
        raise ValueError(f"{out_dir} holds clips made with another {', '.join(changed)}; choose another folder.")


def same_magnitude(magnitude: float, other: float) -> bool:
    """Whether two magnitudes are one, drawn on different machines."""
    return abs(magnitude - other) <= MAGNITUDE_TOLERANCE * (1 + other)


def _read_content(folder: Path) -> dict[str, Any] | None:
    """scene.json; None where the scene is not whole."""
    path = folder / "scene.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _asks_in(content: dict[str, Any] | None) -> list[Ask]:
    """What the takes of a scene were asked for."""
    if content is None:
        return []
    return [Ask(*columns) for columns in zip(*(content[column] for column in _COLUMNS[:3]), strict=True)]


def _folder(out_dir: Path, index: int) -> Path:
    return out_dir / "scenes" / f"{index:03d}"


def _write_lossless(path: Path, pixels: np.ndarray) -> None:
    with atomic_path(path) as temporary:
        PillowImage.fromarray(pixels).save(temporary, "WEBP", lossless=True, quality=50, method=2)


def _read(path: Path) -> np.ndarray:
    with PillowImage.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def _grid(frames: np.ndarray) -> np.ndarray:
    """Frames in rows of GRID_COLUMNS: an animated WebP would merge frames that are equal."""
    count, height, width, _ = frames.shape
    rows = -(-count // GRID_COLUMNS)
    padded = np.concatenate([frames, np.zeros((rows * GRID_COLUMNS - count, height, width, 3), np.uint8)])
    grid = padded.reshape(rows, GRID_COLUMNS, height, width, 3).swapaxes(1, 2)
    return np.ascontiguousarray(grid.reshape(rows * height, GRID_COLUMNS * width, 3))


def _ungrid(grid: np.ndarray, count: int, shape: tuple[int, ...]) -> np.ndarray:
    height, width = shape[:2]
    tiles = grid.reshape(-1, height, GRID_COLUMNS, width, 3).swapaxes(1, 2)
    return np.ascontiguousarray(tiles.reshape(-1, height, width, 3)[:count])
