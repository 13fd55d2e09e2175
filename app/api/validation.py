"""What Pydantic refuses, as the refusal of a request."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import ValidationError

from app.api.errors import FieldProblem, InvalidRequest
from app.services.complaints import complaints_of


def invalid(error: ValueError, place: Sequence[str], value: object) -> InvalidRequest:
    """The refusal that a validation error stands for.

    Args:
        place: which part of the request was read: body, query, path or header, and the name if it was a single value.
        value: what was validated.
    """
    if not isinstance(error, ValidationError):
        return InvalidRequest.at(str(error), *place)
    return InvalidRequest([FieldProblem((*place, *loc), text) for loc, text in complaints_of(error, value)])
