"""Every request has an id: in its answer's `X-Request-Id`, in its problems and in the log."""

from __future__ import annotations

import re

from starlette.types import Scope
from uuid_utils import uuid7

_KEY = "app.request_id"
_SANE = re.compile(rb"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")


def request_id_of(scope: Scope) -> str:
    """The id of a request: the caller's own `X-Request-Id` if it is a sane one, else a UUIDv7; the same every time."""
    request_id: str | None = scope.get(_KEY)
    if request_id is None:
        request_id = scope[_KEY] = _given(scope) or str(uuid7())
    return request_id


def _given(scope: Scope) -> str | None:
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _SANE.fullmatch(value):
            return value.decode()
    return None
