"""Answers put together by hand, as bytes: our own records need no validation on their way out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import orjson
from starlette.responses import Response

from app.api.schemas.fields import JsonObject

_MEDIA_TYPE = "application/json"


def json_answer(value: JsonObject, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(orjson.dumps(value), status, headers, _MEDIA_TYPE)


def raw_answer(text: bytes, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """An answer whose JSON is written already."""
    return Response(text, status, headers, _MEDIA_TYPE)


def page_answer(items: Sequence[JsonObject], next_cursor: str | int | None) -> Response:
    return json_answer({"items": items, "next_cursor": next_cursor})


def no_content() -> Response:
    return Response(status_code=204)
