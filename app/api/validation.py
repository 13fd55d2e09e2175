"""Pydantic's complaints as our own: where in the request, and what, without the value itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from app.api.errors import FieldProblem, InvalidRequest

_MAX_PROBLEMS = 20
_OWN_WORDS = {"extra_forbidden": "this is not known here", "missing": "this is required"}


def invalid(error: ValueError, place: Sequence[str], value: object) -> InvalidRequest:
    """The refusal that a validation error stands for.

    Args:
        place: which part of the request was read: body, query, path or header, and the name if it was a single value.
        value: what was validated; it tells the real parts of a location from the names that Pydantic gives to
            the members of a union.
    """
    if not isinstance(error, ValidationError):
        return InvalidRequest.at(str(error), *place)
    details = error.errors(include_url=False, include_context=False, include_input=False)
    return InvalidRequest(
        [FieldProblem((*place, *_real(detail, value)), _message(detail)) for detail in details[:_MAX_PROBLEMS]]
    )


def _message(detail: ErrorDetails) -> str:
    text = _OWN_WORDS.get(detail["type"], detail["msg"]).removeprefix("Value error, ")
    return text[:1].lower() + text[1:]


def _real(detail: ErrorDetails, value: object) -> list[str | int]:
    found: list[str | int] = []
    parts = detail["loc"]
    for index, part in enumerate(parts):
        if isinstance(value, dict) and part in value:
            value = cast("dict[str | int, object]", value)[part]
        elif isinstance(value, list) and isinstance(part, int):
            value = cast("list[object]", value)[part] if part < len(cast("list[object]", value)) else None
        elif not (detail["type"] == "missing" and index == len(parts) - 1):
            continue
        found.append(part)
    return found
