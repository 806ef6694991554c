"""How each clicked object moves, as it stands beside the clicks in our wire form:

    {"clicks": […], "objects": {"1": {"motion_prompt": "run", "motion_magnitude": 6.0}}}

An object may say only one of the two, or nothing; numbers without clicks are left over from objects that are gone.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .json_values import decoded, is_integer, shortened

_EXAMPLE = 'such as {"1": {"motion_prompt": "run", "motion_magnitude": 6}}'


@dataclass(frozen=True)
class ObjectMotion:
    """What one object does, and how strongly; empty and None: it does not say.

    Args:
        motion_magnitude: Pixels per frame at 512 pixels of width.
    """

    motion_prompt: str = ""
    motion_magnitude: float | None = None

    def to_dict(self) -> dict[str, Any]:
        entry: dict[str, Any] = {"motion_prompt": self.motion_prompt} if self.motion_prompt else {}
        return entry if self.motion_magnitude is None else entry | {"motion_magnitude": self.motion_magnitude}


def parse_motions(clicks: str | Mapping[str, Any] | list[Any]) -> dict[int, ObjectMotion]:
    """The motion of each object that says one, by object number, from the clicks in any of their forms.

    Raises:
        ValueError: No JSON, or "objects" of another structure.
    """
    content = decoded(clicks) if isinstance(clicks, str) else clicks
    entries = content.get("objects") if isinstance(content, Mapping) else None
    if entries is None:
        return {}
    if not isinstance(entries, Mapping):
        raise ValueError(f'The "objects" of the clicks are {shortened(entries)}; give them by number, {_EXAMPLE}.')
    return {_number(key): _motion(entry) for key, entry in entries.items()}


def _number(key: Any) -> int:
    # A long row of digits is no number of an object, and Python refuses to convert it.
    if not (isinstance(key, str) and key.isascii() and key.isdigit() and len(key) < 10 and int(key) > 0):
        raise ValueError(f"An object has the number {shortened(key)}; objects are counted from 1, {_EXAMPLE}.")
    return int(key)


def _motion(entry: Any) -> ObjectMotion:
    if not isinstance(entry, Mapping) or not entry.keys() <= {"motion_prompt", "motion_magnitude"}:
        raise ValueError(f"An object reads {shortened(entry)}; give motion_prompt and motion_magnitude, {_EXAMPLE}.")
    prompt, magnitude = entry.get("motion_prompt", ""), entry.get("motion_magnitude")
    if not isinstance(prompt, str):
        raise ValueError(f"The motion prompt of an object is {shortened(prompt)}; give a text, {_EXAMPLE}.")
    number = is_integer(magnitude) or (isinstance(magnitude, float) and math.isfinite(magnitude))
    if magnitude is not None and not number:
        raise ValueError(f"The motion magnitude of an object is {shortened(magnitude)}; give a number, {_EXAMPLE}.")
    return ObjectMotion(prompt, None if magnitude is None else float(magnitude))
