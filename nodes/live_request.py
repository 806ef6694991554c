"""What the click editor asks for, read from a request that anybody may have sent: everything is bounded and checked."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .host import EMBEDDED

MAX_BODY = 64 * 1024
MAX_CLICKS = 64
MAX_OBJECTS = 8
MAX_GROW = 64  # as the node's widget
MAX_PAINTED_SIDE = 4096


@dataclass(frozen=True)
class NamedPicture:
    """A file of the host's folders, by name."""

    filename: str
    subfolder: str
    folder_type: str


@dataclass(frozen=True)
class ExamplePicture:
    """A picture that comes with the pack, by name."""

    name: str


@dataclass(frozen=True)
class LiveRequest:
    """Masks are wanted for the clicks on a picture.

    Args:
        clicks: The editor's value, as decoded JSON.
        editor: Whose earlier requests this one replaces.
        size: (width, height) at which the mask is painted; None, the picture's own.
    """

    image: NamedPicture | ExamplePicture
    segmenter: str
    clicks: dict[str, Any]
    grow: int
    drawn_mask: NamedPicture | None
    editor: str
    size: tuple[int, int] | None


def parse_request(body: bytes) -> LiveRequest:
    """The request in a JSON body.

    Raises:
        ValueError: It is no such request.
    """
    try:
        content = json.loads(body.decode("utf-8"), parse_constant=_refuse_constant)
    # Bad UTF-8 and syntax, thousands of digits; thousands of nested brackets.
    except (ValueError, RecursionError) as error:
        raise ValueError("The body is no JSON text in UTF-8 with finite numbers; send one object.") from error
    if not isinstance(content, dict):
        raise ValueError("The body is no JSON object; send one with image, clicks and editor.")
    drawn = content.get("drawn_mask")
    return LiveRequest(
        image=_picture(content.get("image"), "image"),
        segmenter=_text(content.get("segmenter", EMBEDDED), "segmenter", 1024),
        clicks=_clicks(content.get("clicks")),
        grow=_integer(content.get("grow", 0), "grow", -MAX_GROW, MAX_GROW),
        drawn_mask=None if drawn is None else _named(drawn, "drawn_mask"),
        editor=_editor(content.get("editor")),
        size=_size(content.get("size")),
    )


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


def _picture(value: Any, key: str) -> NamedPicture | ExamplePicture:
    if isinstance(value, dict) and "example" in value:
        return ExamplePicture(_text(value["example"], "example", 100))
    return _named(value, key)


def _named(value: Any, key: str) -> NamedPicture:
    if not isinstance(value, dict):
        raise ValueError(f"The {key} is named by an object with filename, subfolder and type; send one.")
    return NamedPicture(
        _text(value.get("filename"), "filename", 1024),
        _text(value.get("subfolder", ""), "subfolder", 1024),
        _text(value.get("type", "input"), "type", 20),
    )


def _clicks(value: Any) -> dict[str, Any]:
    """The editor's value, within bounds; what the clicks say is checked where they are used."""
    if not isinstance(value, dict) or not isinstance(value.get("clicks"), list):
        raise ValueError('The clicks come as {"image_size": [width, height], "clicks": [...]}; send them so.')
    if len(value["clicks"]) > MAX_CLICKS:
        raise ValueError(f"There are {len(value['clicks'])} clicks; send at most {MAX_CLICKS}.")
    objects = {repr(click.get("object", 1)) for click in value["clicks"] if isinstance(click, Mapping)}
    if len(objects) > MAX_OBJECTS:
        raise ValueError(f"The clicks name {len(objects)} objects; a mask holds at most {MAX_OBJECTS}.")
    return value


def _editor(value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9-]{1,64}", value):
        raise ValueError("The editor is named by its UUID; send it.")
    return value


def _size(value: Any) -> tuple[int, int] | None:
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != 2:
        raise ValueError("The size is [width, height], or null for the picture's own.")
    width, height = (_integer(side, "size", 1, MAX_PAINTED_SIDE) for side in value)
    return width, height


def _text(value: Any, key: str, longest: int) -> str:
    if not isinstance(value, str) or len(value) > longest:
        raise ValueError(f"The {key} is a text of at most {longest} characters; send one.")
    return value


def _integer(value: Any, key: str, lowest: int, highest: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not lowest <= value <= highest:
        raise ValueError(f"The {key} is a whole number from {lowest} to {highest}; send one.")
    return value
