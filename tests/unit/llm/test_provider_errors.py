from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import orjson
import pytest

from app.engine.errors import ModelError, ModelErrorCode
from app.llm.provider_errors import error_in_stream, error_of_response, retry_after_s

NOON = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)


def _error(status: int, body: Any = None, headers: dict[str, str] | None = None) -> ModelError:
    data = body if isinstance(body, bytes) else orjson.dumps({"error": body})
    return error_of_response(status, data, headers or {}, provider="openai", now=lambda: NOON, secret="sk-secret")


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("7", 7.0),
        ("0.5", 0.5),
        ("-3", 0.0),
        ("Sun, 01 Mar 2026 12:00:30 GMT", 30.0),
        ("Sun, 01 Mar 2026 11:00:00 GMT", 0.0),
        ("soon", None),
        ("nan", None),
        ("inf", None),
        ("", None),
        (None, None),
    ],
)
def test_retry_after_is_read_as_seconds_or_as_a_date(value: str | None, seconds: float | None) -> None:
    assert retry_after_s(value, lambda: NOON) == seconds


@pytest.mark.parametrize(
    ("status", "code", "retryable"),
    [
        (400, ModelErrorCode.INVALID_REQUEST, False),
        (401, ModelErrorCode.AUTHENTICATION, False),
        (404, ModelErrorCode.MODEL_NOT_FOUND, False),
        (408, ModelErrorCode.TIMEOUT, True),
        (409, ModelErrorCode.CONFLICT, True),
        (429, ModelErrorCode.RATE_LIMITED, True),
        (503, ModelErrorCode.SERVER_ERROR, True),
        (302, ModelErrorCode.INVALID_REQUEST, False),
    ],
)
def test_a_status_gives_the_class(status: int, code: ModelErrorCode, retryable: bool) -> None:
    error = _error(status, {"message": "no"})
    assert (error.code, error.status, error.retryable) == (code, status, retryable)


@pytest.mark.parametrize(
    "body",
    [
        {"message": "too long", "code": "context_length_exceeded"},
        {"message": "This model's maximum context length is 8192 tokens."},
        {"message": "prompt is too long: 210000 tokens > 200000 maximum"},
    ],
)
def test_a_400_about_length_is_a_context_overflow(body: dict[str, str]) -> None:
    assert _error(400, body).code is ModelErrorCode.CONTEXT_OVERFLOW


def test_a_400_about_the_model_is_model_not_found() -> None:
    assert _error(400, {"message": "x", "code": "model_not_found"}).code is ModelErrorCode.MODEL_NOT_FOUND


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"error":{"message":"slow\\ndown"}}', "slow down"),
        (b'{"error":"plain text"}', "plain text"),
        (b'{"detail":"of FastAPI"}', "of FastAPI"),
        (b'{"detail":[{"loc":["body"]}]}', '[{"loc":["body"]}]'),
        (b'[{"error":{"message":"of Google"}}]', "of Google"),
        (b'{"object":"error","message":"of vLLM"}', "of vLLM"),
        (b"<html>Bad gateway</html>", "<html>Bad gateway</html>"),
        (b"[]", "[]"),
    ],
)
def test_the_message_is_the_providers_own_on_one_line(body: bytes, said: str) -> None:
    assert _error(500, body).message == f"openai: HTTP 500: {said}"


def test_an_empty_body_leaves_the_status() -> None:
    assert _error(500, b"").message == "openai: HTTP 500"


def test_the_message_is_bounded_and_never_holds_the_key() -> None:
    message = _error(401, {"message": "bad key sk-secret " + "x" * 5000}).message
    assert len(message) < 450
    assert "sk-secret" not in message
    assert "***" in message


@pytest.mark.parametrize(
    ("chunk", "code"),
    [
        ({"error": {"message": "x", "code": 429}}, ModelErrorCode.RATE_LIMITED),
        ({"error": {"message": "x", "code": "503"}}, ModelErrorCode.SERVER_ERROR),
        ({"error": {"message": "x", "code": "rate_limit_exceeded"}}, ModelErrorCode.RATE_LIMITED),
        ({"error": {"message": "x", "type": "overloaded_error"}}, ModelErrorCode.SERVER_ERROR),
        ({"error": {"message": "x", "code": "context_length_exceeded"}}, ModelErrorCode.CONTEXT_OVERFLOW),
        ({"error": {"message": "x"}}, ModelErrorCode.INVALID_RESPONSE),
        ({"error": "x"}, ModelErrorCode.INVALID_RESPONSE),
        ({"object": "error", "message": "x", "code": 400}, ModelErrorCode.INVALID_REQUEST),
    ],
)
def test_an_error_inside_a_stream_keeps_its_class(chunk: dict[str, Any], code: ModelErrorCode) -> None:
    error = error_in_stream(chunk, provider="openai", secret=None)
    assert error is not None
    assert error.code is code


@pytest.mark.parametrize("chunk", [{}, {"error": None}, {"choices": []}, {"object": "chat.completion.chunk"}])
def test_a_chunk_without_an_error_has_none(chunk: dict[str, Any]) -> None:
    assert error_in_stream(chunk, provider="openai", secret=None) is None
