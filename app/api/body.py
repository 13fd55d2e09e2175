"""Reading JSON bodies: bounded while they arrive, and strict about what JSON can say and we cannot keep."""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn, TypeVar, cast

import orjson
from pydantic import BaseModel
from starlette.requests import ClientDisconnect, Request

from app.api.errors import InvalidRequest, PayloadTooLarge, UnsupportedMediaType
from app.api.validation import invalid

# Far below what serialising can follow (254 levels), as what is stored stands a few levels deep in other JSON.
MAX_DEPTH = 100

_JSON_TYPE = re.compile(r"application/(?:[\w!#$&^.+-]+\+)?json\s*(?:;.*)?", re.IGNORECASE | re.ASCII)
_LONG_NUMBER = re.compile(rb"[0-9]{19}")
_INT64 = range(-(2**63), 2**63)

_Model = TypeVar("_Model", bound=BaseModel)


async def read_body(request: Request, model: type[_Model]) -> _Model:
    """The request's body as a model; an empty body is `{}`.

    Raises:
        InvalidRequest: it is no JSON, holds what cannot be stored, or does not fit the model.
        PayloadTooLarge: it is longer than the application's bound; what is left of it is not read.
        UnsupportedMediaType: its Content-Type says that it is not JSON.
        ClientDisconnect: the caller went away before the end.
    """
    raw = await _read(request)
    if not raw:
        raw = b"{}"
    else:
        _check_media_type(request)
    value = parse(raw)
    try:
        # From the text once more, because only there strictness allows enums and times as the strings that they are.
        return model.model_validate_json(raw, strict=True)
    except ValueError as error:
        raise invalid(error, ("body",), value) from None


def parse(raw: bytes) -> object:
    """The value of a JSON text that can be stored.

    Raises:
        InvalidRequest: malformed JSON, NaN or an infinity, a lone surrogate, a NUL character, nesting deeper than
            `MAX_DEPTH`, or an integer beyond 64 bits.
    """
    try:
        value: object = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest.at(f"malformed JSON: {error}", "body") from None
    if raw.count(b"[") + raw.count(b"{") > MAX_DEPTH and _too_deep(value):
        raise InvalidRequest.at(f"nested deeper than {MAX_DEPTH} levels", "body")
    # JSON can say NUL in a string only as an escape, so one look at the text spares most bodies the walk.
    if b"\\u0000" in raw and (loc := _find_nul(value)) is not None:
        raise InvalidRequest.at("NUL characters cannot be stored", "body", *loc)
    if _LONG_NUMBER.search(raw):
        _check_integers(raw)
    return value


async def _read(request: Request) -> bytes:
    bound: int = request.app.state.max_body_bytes
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length[:20]) > bound:
        raise _too_large(bound)
    body = b""
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        body += message.get("body", b"")
        if len(body) > bound:
            raise _too_large(bound)
        if not message.get("more_body", False):
            return body


def _check_media_type(request: Request) -> None:
    given = request.headers.get("content-type")
    if given is not None and _JSON_TYPE.fullmatch(given.strip()) is None:
        raise UnsupportedMediaType("the body should be JSON, with Content-Type: application/json")


def _too_large(bound: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"the body is longer than {bound} bytes")


def _children(value: object) -> list[tuple[str | int, object]]:
    if isinstance(value, dict):
        return list(cast("dict[str | int, object]", value).items())
    if isinstance(value, list):
        return list(enumerate(cast("list[object]", value)))
    return []


def _too_deep(value: object) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [child for parent in level for _, child in _children(parent) if isinstance(child, dict | list)]
        if not level:
            return False
    return True


def _find_nul(value: object) -> tuple[str | int, ...] | None:
    """Where a string or a key holds NUL; a key is told by the object that has it."""
    pending: list[tuple[tuple[str | int, ...], object]] = [((), value)]
    while pending:
        loc, found = pending.pop()
        if isinstance(found, str) and "\0" in found:
            return loc
        for key, child in _children(found):
            if isinstance(key, str) and "\0" in key:
                return loc
            pending.append(((*loc, key), child))
    return None


def _check_integers(raw: bytes) -> None:
    """orjson reads integers beyond 64 bits as floats, silently; what is told apart nowhere else is refused here."""

    def check(digits: str) -> int:
        if len(digits) > 20 or int(digits) not in _INT64:
            _refuse_integer()
        return 0

    json.loads(raw, parse_int=cast("Any", check))


def _refuse_integer() -> NoReturn:
    raise InvalidRequest.at("integers beyond 64 bits cannot be stored; send them as strings", "body")
