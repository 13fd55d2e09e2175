"""Reading JSON that somebody else wrote: a value of the shape asked for, or an empty one."""

from __future__ import annotations

from typing import Any, cast


def as_object(value: object) -> dict[str, Any]:
    """The value if it is a JSON object, else an empty one."""
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def as_array(value: object) -> list[Any]:
    """The value if it is a JSON array, else an empty one."""
    return cast("list[Any]", value) if isinstance(value, list) else []


def as_text(value: object) -> str:
    """The value if it is a string, else an empty one."""
    return value if isinstance(value, str) else ""


def as_count(value: object) -> int:
    """The value if it is a number of things, else 0; a negative count is 0 too."""
    return max(0, int(value)) if isinstance(value, (int, float)) and value == value else 0


def text_of(value: object) -> str:
    """Text as providers send it: a string, or a list of parts that hold strings; thinking is left out."""
    if isinstance(value, str):
        return value
    pieces: list[str] = []
    for item in as_array(value):
        part = as_object(item)
        if part.get("type") != "thinking":
            pieces.append(item if isinstance(item, str) else as_text(part.get("text")))
    return "".join(pieces)


def one_line(text: str, limit: int = 400) -> str:
    """The text on one line, cut with an ellipsis beyond `limit` characters."""
    line = " ".join(text[: limit * 4].split())
    return line if len(line) <= limit else line[: limit - 1] + "…"
