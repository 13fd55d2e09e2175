"""Errors, as RFC 9457 has them."""

from __future__ import annotations

from pydantic import Field

from app.api.errors import ProblemCode
from app.api.schemas.fields import Resource
from app.engine.status import RunStatus


class FieldError(Resource):
    loc: list[str | int] = Field(description="The path of the value, its first part body, query, path or header.")
    msg: str


class Problem(Resource):
    """What went wrong. Members after `request_id` are there with some codes only."""

    type: str
    title: str
    status: int
    detail: str
    code: ProblemCode
    request_id: str
    errors: list[FieldError] = Field(default=[], description="With status 422: each value that was refused.")
    current_status: RunStatus | None = Field(default=None, description="With `conflict`: the run's status.")
    first_seq: int = Field(default=0, description="With `events_trimmed`: the first event that is left.")
