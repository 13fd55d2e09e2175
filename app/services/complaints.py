"""Pydantic's complaints as our own: where in what a caller wrote, and what, without the value itself."""

from __future__ import annotations

import re
from typing import cast

from pydantic import ValidationError
from pydantic_core import ErrorDetails

Location = tuple[str | int, ...]

_MAX = 20
_OWN_WORDS = {"extra_forbidden": "this is not known here", "missing": "this is required"}
# A validator of a whole model says itself which field it means: "quorum: stated with …".
_OF_A_FIELD = re.compile(r"([a-z][a-z_]*): (.+)", re.DOTALL)


def complaints_of(error: ValidationError, value: object) -> list[tuple[Location, str]]:
    """Each complaint with its place in `value`, the first ones if there are very many.

    Args:
        value: what was validated; it tells the real parts of a location from the names that Pydantic gives to the
            members of a union.
    """
    details = error.errors(include_url=False, include_context=False, include_input=False)
    return [_complaint(detail, value) for detail in details[:_MAX]]


def _complaint(detail: ErrorDetails, value: object) -> tuple[Location, str]:
    location, found = _real(detail, value)
    text = _OWN_WORDS.get(detail["type"], detail["msg"]).removeprefix("Value error, ")
    said = _OF_A_FIELD.fullmatch(text) if detail["type"] == "value_error" and isinstance(found, dict) else None
    if said is not None:
        location, text = (*location, said[1]), said[2]
    return location, text[:1].lower() + text[1:]


def _real(detail: ErrorDetails, value: object) -> tuple[Location, object]:
    """The parts of a location that are in the value, and what stands there."""
    location: list[str | int] = []
    found = value
    parts = detail["loc"]
    for index, part in enumerate(parts):
        if isinstance(found, dict) and part in found:
            found = cast("dict[str | int, object]", found)[part]
        elif isinstance(found, list) and isinstance(part, int):
            members = cast("list[object]", found)
            found = members[part] if part < len(members) else None
        elif not (detail["type"] == "missing" and index == len(parts) - 1):
            continue
        location.append(part)
    return tuple(location), cast("object", found)
