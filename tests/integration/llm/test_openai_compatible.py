"""The native client against a real server over real connections, with all that goes wrong there."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import pytest

from app.engine.errors import ModelError, ModelErrorCode
from app.engine.messages import Message, Role, ToolCall
from app.engine.model import (
    FinishReason,
    ModelEvent,
    ModelRequest,
    ModelResponse,
    ReasoningDelta,
    TextDelta,
    ToolCallDelta,
)
from app.engine.tools import ToolSpec
from app.engine.usage import Usage
from app.llm.openai_compatible import OpenAICompatibleClient
from tests.model_server import ModelServer, Reply

NOON = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
KEY = "sk-not-to-be-seen"
REQUEST = ModelRequest("openai/echo", [Message(Role.USER, "Hi there")])


@pytest.fixture
async def client(server: ModelServer) -> AsyncIterator[OpenAICompatibleClient]:
    client = OpenAICompatibleClient(server.base_url, KEY, now=lambda: NOON)
    yield client
    await client.aclose()


async def _events(client: OpenAICompatibleClient, request: ModelRequest = REQUEST) -> list[ModelEvent]:
    return [event async for event in client.stream(request)]


async def _answer(client: OpenAICompatibleClient, request: ModelRequest = REQUEST) -> ModelResponse:
    last = (await _events(client, request))[-1]
    assert isinstance(last, ModelResponse)
    return last


async def _failure(client: OpenAICompatibleClient, request: ModelRequest = REQUEST) -> ModelError:
    with pytest.raises(ModelError) as caught:
        await _events(client, request)
    assert KEY not in caught.value.message
    assert "\n" not in caught.value.message
    return caught.value


def _chunk(content: str, finish: str | None = None) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": content}, "finish_reason": finish}]}


async def test_text_streams_piece_by_piece(server: ModelServer, client: OpenAICompatibleClient) -> None:
    server.script([Reply(text=["Grüße", " 👋"], reasoning=["hm"])])
    assert await _events(client) == [
        ReasoningDelta("hm"),
        TextDelta("Grüße"),
        TextDelta(" 👋"),
        ModelResponse("openai", "echo", "Grüße 👋", (), FinishReason.STOP, Usage(1, 11, 7), None, reasoning="hm"),
    ]


async def test_tool_calls_stream_and_add_up(server: ModelServer, client: OpenAICompatibleClient) -> None:
    calls = [{"id": "a", "name": "add", "arguments": {"x": 1}}, {"id": "b", "name": "now", "arguments": "{}"}]
    server.script([Reply(text="", tool_calls=calls)])
    *deltas, response = await _events(client)
    assert isinstance(response, ModelResponse)
    assert response.tool_calls == (ToolCall("a", "add", '{"x":1}'), ToolCall("b", "now", "{}"))
    assert response.finish_reason is FinishReason.TOOL_CALLS
    assert {d.tool_call_id for d in deltas if isinstance(d, ToolCallDelta)} == {"a", "b"}


async def test_the_request_is_what_a_chat_completions_server_expects(
    server: ModelServer, client: OpenAICompatibleClient
) -> None:
    call = ToolCall("a", "add", '{"x":1}')
    request = ModelRequest(
        "openai/org/model",
        [
            Message(Role.SYSTEM, "Be brief."),
            Message(Role.USER, [{"type": "text", "text": "Hi"}]),
            Message(Role.ASSISTANT, "", (call,)),
            Message(Role.TOOL, "2", tool_call_id="a"),
        ],
        (ToolSpec("add", "adds", {"type": "object"}),),
        {"temperature": 0, "max_tokens": 5},
    )
    await _answer(client, request)
    received = server.requests[-1]
    assert received.headers["authorization"] == f"Bearer {KEY}"
    assert received.headers["content-type"] == "application/json"
    assert received.body == {
        "model": "org/model",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": "a", "type": "function", "function": {"name": "add", "arguments": '{"x":1}'}}],
            },
            {"role": "tool", "content": "2", "tool_call_id": "a"},
        ],
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0,
        "max_tokens": 5,
        "tools": [
            {
                "type": "function",
                "function": {"name": "add", "description": "adds", "parameters": {"type": "object"}},
            }
        ],
    }


async def test_without_a_key_no_authorization_is_sent(server: ModelServer) -> None:
    client = OpenAICompatibleClient(server.base_url + "/")
    await _answer(client)
    await client.aclose()
    assert "authorization" not in server.requests[-1].headers


async def test_a_connection_serves_one_call_after_the_other(
    server: ModelServer, client: OpenAICompatibleClient
) -> None:
    for _ in range(5):
        await _answer(client)
    assert server.connections == 1


async def test_a_body_that_ends_late_leaves_its_connection_for_the_next_call(server: ModelServer) -> None:
    client = OpenAICompatibleClient(server.base_url, end_grace_s=600)
    server.script([Reply(end_delay_s=0.05)] * 3)
    for _ in range(3):
        await _answer(client)
    await client.aclose()
    assert server.connections == 1


async def test_many_calls_at_once_do_not_wait_for_each_other(
    server: ModelServer, client: OpenAICompatibleClient
) -> None:
    server.script([Reply(hold=True)] * 150)
    tasks = [asyncio.create_task(_events(client)) for _ in range(150)]
    await server.until(lambda server: server.open == 150)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await server.until(lambda server: server.aborted == 150)


@pytest.mark.parametrize(
    "reply",
    [
        Reply(text="Hi", plain=True),
        Reply(text="Hi", done=False),
        Reply(text="Hi", headers={"X-Odd": "1"}),
        Reply(events=[": ping\n\n", _chunk("Hi"), ": ping\n\n", _chunk("", "stop"), "data:[DONE]\n\n"]),
        Reply(events=['data: {"choices":[{"delta":{"content":"Hi"},"finish_reason":"stop"}]}\r\n\r\n']),
        Reply(
            body=b'data: {"choices":[{"delta":{"content":"Hi"},"finish_reason":"stop"}]}\n\n',
            content_type="text/plain",
        ),
        Reply(events=[{"choices": []}, _chunk("Hi", "stop"), {"choices": [], "usage": None}]),
    ],
    ids=["plain JSON", "no [DONE]", "header", "comments", "CRLF", "a wrong content type", "empty choices"],
)
async def test_servers_that_are_a_little_different_are_understood(
    server: ModelServer, client: OpenAICompatibleClient, reply: Reply
) -> None:
    server.script([reply])
    assert (await _answer(client)).text == "Hi"


async def test_usage_with_cached_and_reasoning_tokens(server: ModelServer, client: OpenAICompatibleClient) -> None:
    usage = {
        "prompt_tokens": 10,
        "completion_tokens": 5,
        "prompt_tokens_details": {"cached_tokens": 4},
        "completion_tokens_details": {"reasoning_tokens": 3},
    }
    server.script([Reply(usage=usage)])
    assert (await _answer(client)).usage == Usage(1, 10, 5, 4, 3)


async def test_a_server_without_usage_gets_an_estimate(server: ModelServer, client: OpenAICompatibleClient) -> None:
    server.script([Reply(text="x" * 40, usage=None)])
    answer = await _answer(client)
    assert answer.usage_estimated
    assert answer.usage.output_tokens == 10


@pytest.mark.parametrize(
    ("reply", "code", "said"),
    [
        (Reply.error(401, f"bad key {KEY}"), ModelErrorCode.AUTHENTICATION, "bad key ***"),
        (Reply.error(404, "no such model"), ModelErrorCode.MODEL_NOT_FOUND, "no such model"),
        (Reply.error(408), ModelErrorCode.TIMEOUT, "HTTP 408"),
        (Reply.error(409), ModelErrorCode.CONFLICT, "HTTP 409"),
        (Reply.error(429, "slow down"), ModelErrorCode.RATE_LIMITED, "slow down"),
        (Reply.error(500, "oops"), ModelErrorCode.SERVER_ERROR, "oops"),
        (Reply.error(400, "no"), ModelErrorCode.INVALID_REQUEST, "no"),
        (
            Reply.error(400, "too long", code="context_length_exceeded"),
            ModelErrorCode.CONTEXT_OVERFLOW,
            "too long",
        ),
        (
            Reply(status=502, body=b"<html>\n", content_type="text/html"),
            ModelErrorCode.SERVER_ERROR,
            "<html>",
        ),
        (
            Reply(status=307, body=b"", headers={"Location": "http://127.0.0.1:1/"}),
            ModelErrorCode.INVALID_REQUEST,
            "HTTP 307",
        ),
    ],
)
async def test_an_http_error_has_its_class_and_the_providers_words(
    server: ModelServer, client: OpenAICompatibleClient, reply: Reply, code: ModelErrorCode, said: str
) -> None:
    server.script([reply])
    error = await _failure(client)
    assert (error.code, error.status) == (code, reply.status)
    assert said in error.message


@pytest.mark.parametrize(("value", "seconds"), [("7", 7.0), ("Sun, 01 Mar 2026 12:01:00 GMT", 60.0)])
async def test_retry_after_is_passed_on(
    server: ModelServer, client: OpenAICompatibleClient, value: str, seconds: float
) -> None:
    server.script([Reply.error(429, headers={"Retry-After": value})])
    assert (await _failure(client)).retry_after_s == seconds


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        (Reply(body=b"<html>log in</html>", content_type="text/html"), ModelErrorCode.INVALID_RESPONSE),
        (Reply(body=b"{oops"), ModelErrorCode.INVALID_RESPONSE),
        (Reply(body=b""), ModelErrorCode.INVALID_RESPONSE),
        (Reply(body={"hello": 1}), ModelErrorCode.INVALID_RESPONSE),
        (Reply(body=[1]), ModelErrorCode.INVALID_RESPONSE),
        (Reply(finish_reason=None), ModelErrorCode.INVALID_RESPONSE),
        (Reply(finish_reason=None, done=False, usage=None), ModelErrorCode.INVALID_RESPONSE),
        (Reply(events=[]), ModelErrorCode.INVALID_RESPONSE),
        (Reply(events=[_chunk("Hi"), "data: {oops\n\n"]), ModelErrorCode.INVALID_RESPONSE),
        (Reply(events=[_chunk("Hi"), "data: \xff\n\n"]), ModelErrorCode.INVALID_RESPONSE),
        (Reply(events=["data: 3\n\n"]), ModelErrorCode.INVALID_RESPONSE),
        (Reply(events=[{"error": {"message": "odd"}}]), ModelErrorCode.INVALID_RESPONSE),
        (Reply(events=[_chunk("Hi"), {"error": {"message": "x", "code": 503}}]), ModelErrorCode.SERVER_ERROR),
        (
            Reply(body={"error": {"message": "x", "type": "rate_limit_error"}}),
            ModelErrorCode.RATE_LIMITED,
        ),
    ],
)
async def test_a_200_that_is_no_completion_is_an_error(
    server: ModelServer, client: OpenAICompatibleClient, reply: Reply, code: ModelErrorCode
) -> None:
    server.script([reply])
    error = await _failure(client)
    assert error.code is code
    assert error.retryable
    # The connection is not left in an unknown state for the next call.
    assert (await _answer(client)).text == "Hi there"


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("cut_after", [0, 2])
async def test_a_connection_that_breaks_in_an_answer_is_a_connection_error(
    server: ModelServer, client: OpenAICompatibleClient, cut_after: int, reset: bool
) -> None:
    server.script([Reply(text=["a"] * 5, cut_after=cut_after, reset=reset)])
    assert (await _failure(client)).code is ModelErrorCode.CONNECTION


async def test_a_connection_that_breaks_after_the_finish_reason_takes_nothing(
    server: ModelServer, client: OpenAICompatibleClient
) -> None:
    server.script([Reply(text=["a", "b"], cut_after=3)])
    answer = await _answer(client)
    assert (answer.text, answer.usage_estimated) == ("ab", True)


async def test_a_refused_connection_is_a_connection_error() -> None:
    with socket.socket() as taken:  # bound but not listening: nobody else gets the port, and it refuses
        taken.bind(("127.0.0.1", 0))
        client = OpenAICompatibleClient(f"http://127.0.0.1:{taken.getsockname()[1]}/v1", KEY)
        error = await _failure(client)
        await client.aclose()
    assert error.code is ModelErrorCode.CONNECTION
    assert "ssl:" not in error.message


async def test_closing_the_stream_closes_the_connection_at_once(
    server: ModelServer, client: OpenAICompatibleClient
) -> None:
    server.script([Reply(text="Hi", hold=True)])
    stream = client.stream(REQUEST)
    assert await anext(stream) == TextDelta("Hi")
    await stream.aclose()
    await server.until(lambda server: server.aborted == 1 and server.open == 0)


@pytest.mark.parametrize("reply", [Reply(delay_s=600), Reply(first_chunk_delay_s=600), Reply(hold=True)])
async def test_cancelling_the_reader_closes_the_connection_at_once(
    server: ModelServer, client: OpenAICompatibleClient, reply: Reply
) -> None:
    server.script([reply])
    task = asyncio.create_task(_events(client))
    await server.until(lambda server: server.open == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await server.until(lambda server: server.aborted == 1 and server.open == 0)


async def test_a_server_that_stays_silent_after_done_does_not_hold_the_answer_back(
    server: ModelServer, client: OpenAICompatibleClient
) -> None:
    server.script([Reply(text="Hi", hold=True)])
    assert (await _answer(client)).text == "Hi"
