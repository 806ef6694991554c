"""Reading the JSON that describes clicks, whoever wrote it."""

import json
from typing import Any

EXAMPLE = 'such as [{"x": 0.5, "y": 0.4, "label": 1}]'


def decoded(text: str) -> Any:
    """What the JSON text of the clicks holds.

    Raises:
        ValueError: It is none.
    """
    try:
        return json.loads(text)
    # Thousands of nested brackets, or of digits, are refused by other errors than bad syntax.
    except (ValueError, RecursionError) as error:
        raise ValueError(f"The clicks are not valid JSON ({shortened(text)}); give a list {EXAMPLE}.") from error


def is_integer(value: Any) -> bool:
    """Whether it is a whole number such as a label, a size or a count can be."""
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 10**9


def shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:60] + "…"
