"""Clicks: where the user pointed, and the two forms in which they come and go as text.

A click is stored normalised, 0..1 over the whole picture, so that it survives a resize; x grows to the right, y
downwards, and pixel column i covers i/width .. (i+1)/width. On the wire there are two forms, told apart by their keys
and never by the size of the numbers:

    Ours, normalised, with the size of the picture that was clicked:
        {"image_size": [640, 427], "clicks": [{"x": 0.5, "y": 0.4, "label": 1, "object": 1}, …]}
    or the list alone, where every entry has a "label":
        [{"x": 0.5, "y": 0.4, "label": 1}, …]

    A pixel list, as the point editors of other node packs (KJNodes, SAM 2, SAM 3) write it: no "label" anywhere, x and
    y count pixels of the picture at hand. Included and excluded points come as two such lists.
        [{"x": 320, "y": 200}, …]

Label 1 includes what was clicked, 0 excludes it. Clicks with the same object number select one object together. The
first form may also say how the objects move ("objects", see motions.py).
"""

import json
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, SupportsFloat

from .json_values import EXAMPLE, decoded, is_integer, shortened
from .motions import ObjectMotion

INCLUDE, EXCLUDE = 1, 0

_ENTRY_KEYS = {"x", "y", "label", "object", "candidate"}
# Clicks made at one size serve every size of the same picture; beyond this the picture has been cropped or replaced.
_ASPECT_TOLERANCE = 0.02

logger = logging.getLogger("followclick")


@dataclass(frozen=True)
class Click:
    """A point of the picture, normalised 0..1.

    `candidate` is the user's choice among the masks that a segmenter offers for the object: 0 is the best one, None
    leaves the choice to the segmenter.

    Raises:
        ValueError: A coordinate outside 0..1 or not finite, an unknown label, an object below 1, a candidate below 0.
    """

    x: float
    y: float
    label: int = INCLUDE
    object: int = 1
    candidate: int | None = None

    def __post_init__(self):
        if not (0 <= self.x <= 1 and 0 <= self.y <= 1):  # false for NaN too
            raise ValueError(
                f"A click lies at ({self.x:g}, {self.y:g}), outside the image, which spans 0 to 1; click on the image."
            )
        if self.label not in (INCLUDE, EXCLUDE):
            raise ValueError(f"A click has the label {self.label!r}; give 1 to include what is there, 0 to exclude it.")
        if self.object < 1:
            raise ValueError(f"A click has the object number {self.object}; objects are counted from 1.")
        if self.candidate is not None and self.candidate < 0:
            raise ValueError(f"A click has the candidate {self.candidate}; candidates are counted from 0, the best.")

    def pixel(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """The (x, y) of the pixel that the click hits in a picture of this (width, height)."""
        width, height = image_size
        return min(int(self.x * width), width - 1), min(int(self.y * height), height - 1)


def parse_clicks(
    clicks: str | Mapping[str, Any] | Sequence[Mapping[str, Any]],
    image_size: tuple[int, int],
    pixel_label: int = INCLUDE,
) -> list[Click]:
    """The clicks in a JSON text, or in what such a text decodes to; see the module's docstring for the forms.

    Args:
        image_size: (width, height) of the picture at hand, which pixel lists refer to.
        pixel_label: The label of all entries of a pixel list, which has none of its own.

    Raises:
        ValueError: No JSON, another structure, no click at all, an object with nothing but excluding clicks, or a
            click that is outside the picture or otherwise invalid.
    """
    parsed = read_clicks(clicks, image_size, pixel_label)
    # A list of excluded points is half of an answer; it is joined with the included ones before it is used.
    if pixel_label == INCLUDE or any(click.label == INCLUDE for click in parsed):
        check_clicks(parsed)
    return parsed


def read_clicks(
    clicks: str | Mapping[str, Any] | Sequence[Mapping[str, Any]],
    image_size: tuple[int, int],
    pixel_label: int = INCLUDE,
) -> list[Click]:
    """As parse_clicks, for clicks that are a part of the whole: there may be none, or only excluding ones."""
    content = decoded(clicks) if isinstance(clicks, str) else clicks
    entries, clicked_size = _entries(content)
    labelled = [isinstance(entry, Mapping) and "label" in entry for entry in entries]
    if clicked_size is not None or all(labelled):
        _warn_of_another_picture(clicked_size, image_size)
        return [_normalised_click(entry) for entry in entries]
    if any(labelled):
        raise ValueError(
            "Some clicks have a label, some have none: it is unclear whether they count pixels or go from 0 to 1; "
            f"give every click a label, {EXAMPLE}."
        )
    points = [(*_coordinates(entry), pixel_label) for entry in entries]
    return [_pixel_click(point, image_size, _object(entry)) for point, entry in zip(points, entries, strict=True)]


def gather_clicks(
    clicks: str | Mapping[str, Any] | Sequence[Mapping[str, Any]],
    image_size: tuple[int, int],
    positive_points: str = "",
    negative_points: str = "",
) -> list[Click]:
    """The clicks in any of their forms, then the points of other node packs, which go to object 1 unless they say.

    Raises:
        ValueError: As read_clicks.
    """
    gathered = read_clicks(clicks, image_size)
    for points, label in ((positive_points, INCLUDE), (negative_points, EXCLUDE)):
        if points.strip():
            gathered += read_clicks(points, image_size, label)
    return gathered


def clicks_from_pixels(clicks: Iterable[Sequence[SupportsFloat]], image_size: tuple[int, int]) -> list[Click]:
    """Clicks given as (x, y, label), where x, y name a pixel of a picture of this (width, height).

    Raises:
        ValueError: As parse_clicks.
    """
    parsed = [_pixel_click(click, image_size) for click in clicks]
    check_clicks(parsed)
    return parsed


def clicks_to_json(
    clicks: Iterable[Click], image_size: tuple[int, int], motions: Mapping[int, ObjectMotion] | None = None
) -> str:
    """Our wire form, one line; parse_clicks gives the same clicks back, parse_motions the same motions."""
    entries = []
    for click in clicks:
        entry = {"x": click.x, "y": click.y, "label": click.label, "object": click.object}
        entries.append(entry if click.candidate is None else entry | {"candidate": click.candidate})
    envelope: dict[str, Any] = {"image_size": list(image_size), "clicks": entries}
    if motions:
        envelope["objects"] = {str(number): motion.to_dict() for number, motion in motions.items()}
    return json.dumps(envelope)


def clicks_to_pixel_json(clicks: Iterable[Click], image_size: tuple[int, int], label: int = INCLUDE) -> str:
    """The clicks of one label as a pixel list for other node packs; what is lost: objects and candidates."""
    pixels = (click.pixel(image_size) for click in clicks if click.label == label)
    return json.dumps([{"x": x, "y": y} for x, y in pixels])


def clicks_by_object(clicks: Iterable[Click]) -> dict[int, list[Click]]:
    """The clicks of each object, in ascending order of the object numbers."""
    grouped: dict[int, list[Click]] = {}
    for click in clicks:
        grouped.setdefault(click.object, []).append(click)
    return dict(sorted(grouped.items()))


def check_clicks(clicks: Iterable[Click]) -> None:
    """Raise ValueError unless there is a click, and for every object one that includes something."""
    grouped = clicks_by_object(clicks)
    if not grouped:
        raise ValueError("There is no click; click on the object that should move.")
    for number, own in grouped.items():
        if all(click.label == EXCLUDE for click in own):
            which = f"Object {number}" if len(grouped) > 1 else "The selection"
            raise ValueError(f"{which} has only excluding clicks ({len(own)}); add one on the object that should move.")


def _entries(content: Any) -> tuple[Sequence[Any], tuple[int, int] | None]:
    """The list of click entries, and the size of the picture they were made on if the text names one."""
    clicked_size = None
    if isinstance(content, Mapping):
        if "clicks" not in content:
            raise ValueError(f'The clicks come as a JSON object without "clicks"; give a list {EXAMPLE}.')
        clicked_size = _clicked_size(content.get("image_size"))
        content = content["clicks"]
    if isinstance(content, (str, bytes)) or not isinstance(content, Sequence):
        raise ValueError(f"The clicks are a {type(content).__name__}, not a list; give one {EXAMPLE}.")
    return content, clicked_size


def _clicked_size(size: Any) -> tuple[int, int]:
    if not (isinstance(size, Sequence) and len(size) == 2 and all(is_integer(side) and side > 0 for side in size)):
        raise ValueError(f'The "image_size" of the clicks is {shortened(size)}; give [width, height] in pixels.')
    return size[0], size[1]


def _normalised_click(entry: Any) -> Click:
    x, y = _coordinates(entry)
    # Within an envelope, a click without a label includes.
    label, candidate = entry.get("label", INCLUDE), entry.get("candidate")
    if not is_integer(label) or not (candidate is None or is_integer(candidate)):
        raise ValueError(f"The label and the candidate of a click are whole numbers, not {shortened(dict(entry))}.")
    return Click(x, y, label, _object(entry), candidate)


def _pixel_click(click: Sequence[SupportsFloat], image_size: tuple[int, int], object: int = 1) -> Click:
    """The click in the middle of the pixel (x, y): the same pixel again after any round trip."""
    if len(click) != 3:
        raise ValueError(f"A click is (x, y, label), not {shortened(click)}; give three numbers.")
    x, y, label = (float(value) for value in click)
    width, height = image_size
    if not (0 <= x < width and 0 <= y < height):  # true for NaN too
        raise ValueError(
            f"A click at pixel ({x:g}, {y:g}) lies outside the image of {width}x{height} pixels; "
            f"give x from 0 to {width - 1} and y from 0 to {height - 1}."
        )
    if label not in (INCLUDE, EXCLUDE):
        raise ValueError(f"A click has the label {label:g}; give 1 to include what is there, 0 to exclude it.")
    return Click((math.floor(x) + 0.5) / width, (math.floor(y) + 0.5) / height, int(label), object)


def _coordinates(entry: Any) -> tuple[float, float]:
    if not isinstance(entry, Mapping) or not {"x", "y"} <= entry.keys() <= _ENTRY_KEYS:
        raise ValueError(f"A click reads {shortened(entry)}; give it x, y and, if need be, label and object.")
    for axis in ("x", "y"):
        if isinstance(entry[axis], bool) or not isinstance(entry[axis], (int, float)):
            raise ValueError(f"The {axis} of a click is {shortened(entry[axis])}; give a number.")
        if not abs(entry[axis]) < 1e9:  # true for NaN too; longer integers do not fit a float
            raise ValueError(f"The {axis} of a click is {shortened(entry[axis])}, which is no position; click again.")
    return float(entry["x"]), float(entry["y"])


def _object(entry: Mapping[str, Any]) -> int:
    number = entry.get("object", 1)
    if not is_integer(number):
        raise ValueError(f"The object of a click is {shortened(number)}; give a whole number from 1.")
    return number


def _warn_of_another_picture(clicked_size: tuple[int, int] | None, image_size: tuple[int, int]) -> None:
    if clicked_size is None:
        return
    clicked_aspect, aspect = clicked_size[0] / clicked_size[1], image_size[0] / image_size[1]
    if abs(clicked_aspect / aspect - 1) > _ASPECT_TOLERANCE:
        logger.warning(
            "The clicks were made on an image of %dx%d pixels, this one has %dx%d: they may miss; click again.",
            *clicked_size,
            *image_size,
        )
