"""What is wrong with a call's arguments, told so that a model can correct itself."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from app.tools.errors import CallError

MAX_LINES = 10
_MAX_INPUT_CHARS = 60
_MAX_LINE_CHARS = 180
_EXCERPT_CHARS = 30
_NO_JSON = ("json_invalid", "string_unicode")
_NO_OBJECT = ("dict_type", "model_type", "model_attributes_type", "dataclass_type")
_POSITION = re.compile(r"at line (\d+) column (\d+)$")
_JSON_NAMES = {"list": "an array", "str": "a string", "bool": "a boolean", "NoneType": "null"}


def argument_error(error: ValidationError, text: str, known: tuple[str, ...]) -> CallError:
    """The error of a call whose arguments did not validate.

    Args:
        text: the arguments as the model wrote them.
        known: the names of the tool's arguments.
    """
    details = error.errors(include_url=False)
    first = details[0]
    if not first["loc"] and first["type"] in _NO_JSON:
        return CallError(f"the arguments are not valid JSON: {_json_problem(first, text)}")
    if not first["loc"] and first["type"] in _NO_OBJECT:
        given = _JSON_NAMES.get(type(first["input"]).__name__, "a number")
        return CallError(f"the arguments must be a JSON object, not {given}")
    lines = [_line(detail, known) for detail in details[:MAX_LINES]]
    if len(details) > MAX_LINES:
        lines.append(f"and {len(details) - MAX_LINES} more")
    return CallError("the arguments do not fit the tool's schema", tuple(lines))


def _json_problem(detail: ErrorDetails, text: str) -> str:
    problem = detail["msg"].removeprefix("Invalid JSON: ")
    if detail["type"] == "string_unicode":
        return "the text holds half a surrogate pair"
    place = _POSITION.search(problem)
    if place is None:
        return problem
    lines = text.splitlines() or [""]
    line = lines[min(int(place[1]), len(lines)) - 1]
    # The parser counts columns in bytes; the excerpt is wide enough for the difference seldom to matter.
    end = min(int(place[2]), len(line))
    excerpt = line[max(0, end - _EXCERPT_CHARS) : end + _EXCERPT_CHARS]
    return f"{problem}, near {excerpt!r}"


def _line(detail: ErrorDetails, known: tuple[str, ...]) -> str:
    path = argument_path(detail["loc"])
    match detail["type"]:
        case "missing":
            problem = "required, but missing"
        case "extra_forbidden" if len(detail["loc"]) == 1:
            problem = f"no such argument; the arguments are: {', '.join(known) or 'none'}"
        case "extra_forbidden":
            problem = "no such field"
        case _:
            problem = detail["msg"] + given(detail["input"])
    return bounded_line(f"{path}: {problem}" if path else problem)


def given(value: object) -> str:
    """A note of what stood there, with its own leading space; empty for objects and arrays."""
    if not isinstance(value, str | int | float | None):
        return ""
    shown = value[: _MAX_INPUT_CHARS + 1] if isinstance(value, str) else value
    text = "null" if shown is None else repr(shown)
    return f" (given: {text[:_MAX_INPUT_CHARS]})"


def argument_path(location: Sequence[int | str]) -> str:
    """Where in the arguments, as `items[0].name`."""
    path = ""
    for step in location:
        path += f"[{step}]" if isinstance(step, int) else f".{step}" if path else step
    return path


def bounded_line(line: str) -> str:
    """The text on one line, at most 180 characters of it."""
    line = " ".join(line.split())
    return line if len(line) <= _MAX_LINE_CHARS else line[: _MAX_LINE_CHARS - 1] + "…"
