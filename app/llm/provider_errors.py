"""What a provider says went wrong, as a `ModelError`: by HTTP status and body, or inside a stream."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import orjson

from app.engine.errors import ModelError, ModelErrorCode, class_of_status
from app.llm.json_values import as_array, as_object, as_text, one_line

Clock = Callable[[], datetime]

# Codes and types that providers put into error objects, beside numeric HTTP statuses.
_NAMED: Mapping[str, ModelErrorCode] = {
    "rate_limit_exceeded": ModelErrorCode.RATE_LIMITED,
    "rate_limit_error": ModelErrorCode.RATE_LIMITED,
    "insufficient_quota": ModelErrorCode.RATE_LIMITED,
    "server_error": ModelErrorCode.SERVER_ERROR,
    "internal_error": ModelErrorCode.SERVER_ERROR,
    "internal_server_error": ModelErrorCode.SERVER_ERROR,
    "internalservererror": ModelErrorCode.SERVER_ERROR,
    "api_error": ModelErrorCode.SERVER_ERROR,
    "overloaded_error": ModelErrorCode.SERVER_ERROR,
    "service_unavailable": ModelErrorCode.SERVER_ERROR,
    "timeout": ModelErrorCode.TIMEOUT,
    "timeout_error": ModelErrorCode.TIMEOUT,
    "conflict_error": ModelErrorCode.CONFLICT,
    "invalid_api_key": ModelErrorCode.AUTHENTICATION,
    "authentication_error": ModelErrorCode.AUTHENTICATION,
    "permission_error": ModelErrorCode.AUTHENTICATION,
    "model_not_found": ModelErrorCode.MODEL_NOT_FOUND,
    "not_found_error": ModelErrorCode.MODEL_NOT_FOUND,
    "context_length_exceeded": ModelErrorCode.CONTEXT_OVERFLOW,
    "string_above_max_length": ModelErrorCode.CONTEXT_OVERFLOW,
    "request_too_large": ModelErrorCode.CONTEXT_OVERFLOW,
    "invalid_request_error": ModelErrorCode.INVALID_REQUEST,
    "badrequesterror": ModelErrorCode.INVALID_REQUEST,
}

_OVERFLOW = re.compile(
    r"context[ _](length|window|size)|prompt is too long|maximum context|too many (input )?tokens",
    re.IGNORECASE,
)


def error_of_response(
    status: int, body: bytes, headers: Mapping[str, str], *, provider: str, now: Clock, secret: str | None
) -> ModelError:
    """A response with another status than 200.

    Args:
        now: the clock that a Retry-After date is held against; timezone-aware.
        secret: a text that the message must not repeat, such as the API key.
    """
    code = class_of_status(status)
    error = _error_object(body)
    said = message_in(body)
    if code is ModelErrorCode.INVALID_REQUEST:
        code = _class_of_bad_request(error, said)
    return ModelError(
        code,
        _sentence(provider, f"HTTP {status}", said, secret),
        status=status,
        retry_after_s=_asked_wait_s(headers, now),
    )


def error_in_stream(chunk: Mapping[str, Any], *, provider: str, secret: str | None) -> ModelError | None:
    """The error that a stream's chunk, or a 200 body, carries instead of an answer; None if it carries none.

    OpenAI and most others send `{"error": {…}}`, vLLM `{"object": "error", "message": …, "code": …}`.
    """
    if chunk.get("object") == "error":
        error = dict(chunk)
    elif chunk.get("error"):
        value = chunk["error"]
        error = as_object(value) or {"message": value}
    else:
        return None
    status = _status_in(error)
    said = _message_of(error) or "no reason given"
    code = class_of_status(status) if status is not None else _class_by_name(error)
    if code is None:
        code = ModelErrorCode.INVALID_RESPONSE
    if code in (ModelErrorCode.INVALID_REQUEST, ModelErrorCode.INVALID_RESPONSE) and says_context_overflow(said):
        code = ModelErrorCode.CONTEXT_OVERFLOW
    return ModelError(code, _sentence(provider, "error in its answer", said, secret), status=status)


def message_in(body: bytes) -> str:
    """What an error body says, however the provider wraps it; the body itself where it is not JSON."""
    return _message_of(_error_object(body)) or body.decode("utf-8", "replace")


def says_context_overflow(said: str) -> bool:
    """Whether a refusal is about a request that is longer than the model can read."""
    return _OVERFLOW.search(said) is not None


def _asked_wait_s(headers: Mapping[str, str], now: Clock) -> float | None:
    """What a provider asks to wait; OpenAI, and Azure after it, also say it in milliseconds, which is more exact."""
    try:
        milliseconds = float(headers.get("retry-after-ms", ""))
    except ValueError:
        milliseconds = math.nan
    if math.isfinite(milliseconds) and milliseconds >= 0:
        return milliseconds / 1000
    return retry_after_s(headers.get("Retry-After"), now)


def retry_after_s(value: str | None, now: Clock) -> float | None:
    """A Retry-After header in seconds: a number or an HTTP date (RFC 9110, 10.2.3); None if it is neither."""
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        pass
    else:
        return max(0.0, seconds) if math.isfinite(seconds) else None
    try:
        date = parsedate_to_datetime(value)
    except ValueError:
        return None
    if date.tzinfo is None:
        date = date.replace(tzinfo=UTC)
    return max(0.0, (date - now()).total_seconds())


def utc_now() -> datetime:
    return datetime.now(UTC)


def _error_object(body: bytes) -> dict[str, Any]:
    try:
        parsed = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {}
    document = as_object((as_array(parsed) or [parsed])[0])  # Google wraps its errors in a list
    error = document.get("error")
    if isinstance(error, str):
        return {"message": error}
    return as_object(error) or document


def _message_of(error: Mapping[str, Any]) -> str:
    for key in ("message", "detail", "error_description"):
        value = error.get(key)
        if value:
            return value if isinstance(value, str) else orjson.dumps(value).decode()
    return ""


def _class_by_name(error: Mapping[str, Any]) -> ModelErrorCode | None:
    for key in ("code", "type"):
        code = _NAMED.get(as_text(error.get(key)).lower())
        if code is not None:
            return code
    return None


def _class_of_bad_request(error: Mapping[str, Any], said: str) -> ModelErrorCode:
    named = _class_by_name(error)
    if named is ModelErrorCode.CONTEXT_OVERFLOW or named is ModelErrorCode.MODEL_NOT_FOUND:
        return named
    return ModelErrorCode.CONTEXT_OVERFLOW if says_context_overflow(said) else ModelErrorCode.INVALID_REQUEST


def _status_in(error: Mapping[str, Any]) -> int | None:
    for key in ("code", "status", "status_code"):
        value = error.get(key)
        if isinstance(value, str) and value.isascii() and value.isdigit():
            value = int(value)
        if isinstance(value, int) and 400 <= value <= 599:
            return value
    return None


def _sentence(provider: str, what: str, said: str, secret: str | None) -> str:
    if secret:
        said = said.replace(secret, "***")
    said = one_line(said)
    return f"{provider}: {what}: {said}" if said else f"{provider}: {what}"
