"""Reading JSON that somebody else wrote: a value of the shape asked for, or an empty one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, cast

# More of anything than one call can have. Beyond it a count is nonsense; sums of counts below it stay within the 64
# bits of a column.
_MOST = 2**40
_HALVES = re.compile("[\ud800-\udfff]")


def as_object(value: object) -> dict[str, Any]:
    """The value if it is a JSON object, else an empty one."""
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def as_array(value: object) -> list[Any]:
    """The value if it is a JSON array, else an empty one."""
    return cast("list[Any]", value) if isinstance(value, list) else []


def as_text(value: object) -> str:
    """The value if it is a string, else an empty one.

    Halves of surrogate pairs, which JSON can say and UTF-8 cannot, are replaced.
    """
    if not isinstance(value, str):
        return ""
    return value if value.isascii() else _HALVES.sub("\ufffd", value)


def as_name(value: object) -> str:
    """The same for what is stored as text by itself: without NUL, which no Postgres text holds."""
    return as_text(value).replace("\0", "\ufffd")


def as_count(value: object) -> int:
    """The value if it is a number of things, else 0: a negative count is 0 too, and one that cannot be."""
    return int(value) if isinstance(value, (int, float)) and 0 <= value <= _MOST else 0


def text_of(value: object) -> str:
    """Text as providers send it: a string, or a list of parts that hold strings; thinking is left out."""
    if isinstance(value, str):
        return as_text(value)
    pieces: list[str] = []
    for item in as_array(value):
        part = as_object(item)
        if part.get("type") != "thinking":
            pieces.append(as_text(item) or as_text(part.get("text")))
    return "".join(pieces)


def one_line(text: str, limit: int = 400) -> str:
    """The text on one line, cut with an ellipsis beyond `limit` characters."""
    line = " ".join(as_text(text[: limit * 4]).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def plain_mapping(value: object) -> object:
    """`default` of orjson for values that are kept in read-only mappings."""
    if isinstance(value, Mapping):
        return dict(cast("Mapping[str, Any]", value))
    raise TypeError(f"{type(value).__name__} is no JSON value")
