"""litellm against a real server, as one of its OpenAI-compatible providers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from app.engine.errors import ModelError, ModelErrorCode
from app.engine.messages import Message, Role, ToolCall
from app.engine.model import FinishReason, ModelEvent, ModelRequest, ModelResponse, ReasoningDelta, TextDelta
from app.engine.tools import ToolSpec
from app.engine.usage import Usage
from app.llm.litellm_client import LiteLLMClient
from tests.model_server import ModelServer, Reply

# What litellm and Pydantic warn each other of is not ours to mend. They do so while litellm builds its models, on their
# first use in a process: made an error, it would fail whichever of these tests comes first there.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")

KEY = "sk-not-to-be-seen"
REQUEST = ModelRequest("hosted_vllm/echo", [Message(Role.USER, "Hi there")])


@pytest.fixture
async def client(server: ModelServer, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[LiteLLMClient]:
    monkeypatch.setenv("HOSTED_VLLM_API_BASE", server.base_url)
    monkeypatch.setenv("HOSTED_VLLM_API_KEY", KEY)
    client = LiteLLMClient()
    yield client
    await client.aclose()


async def _events(client: LiteLLMClient, request: ModelRequest = REQUEST) -> list[ModelEvent]:
    return [event async for event in client.stream(request)]


async def test_text_reasoning_and_usage_come_through(server: ModelServer, client: LiteLLMClient) -> None:
    usage = {
        "prompt_tokens": 10,
        "completion_tokens": 5,
        "total_tokens": 15,
        "prompt_tokens_details": {"cached_tokens": 4},
        "completion_tokens_details": {"reasoning_tokens": 3},
    }
    server.script([Reply(text=["Grüße", " 👋"], reasoning=["hm"], usage=usage)])
    assert await _events(client) == [
        ReasoningDelta("hm"),
        TextDelta("Grüße"),
        TextDelta(" 👋"),
        ModelResponse(
            "hosted_vllm", "echo", "Grüße 👋", (), FinishReason.STOP, Usage(1, 10, 5, 4, 3), None, reasoning="hm"
        ),
    ]


async def test_tools_messages_and_settings_are_sent_and_calls_come_back(
    server: ModelServer, client: LiteLLMClient
) -> None:
    server.script([Reply(text="", tool_calls=[{"id": "b", "name": "add", "arguments": {"x": 2}}])])
    request = ModelRequest(
        "hosted_vllm/m",
        [
            Message(Role.USER, "Hi"),
            Message(Role.ASSISTANT, "", (ToolCall("a", "add", '{"x":1}'),)),
            Message(Role.TOOL, "1", tool_call_id="a"),
        ],
        (ToolSpec("add", "adds", {"type": "object", "properties": {"x": {"type": "integer"}}}),),
        {"temperature": 0.5},
    )
    response = (await _events(client, request))[-1]
    assert isinstance(response, ModelResponse)
    assert response.tool_calls == (ToolCall("b", "add", '{"x":2}'),)
    assert response.finish_reason is FinishReason.TOOL_CALLS
    received = server.requests[-1]
    assert received.headers["authorization"] == f"Bearer {KEY}"
    assert received.body["temperature"] == 0.5
    assert received.body["stream_options"] == {"include_usage": True}
    assert received.body["tools"][0]["function"]["name"] == "add"
    assert [message["role"] for message in received.body["messages"]] == ["user", "assistant", "tool"]


@pytest.mark.parametrize(
    ("reply", "code", "said"),
    [
        (Reply.error(401, f"bad key {KEY}"), ModelErrorCode.AUTHENTICATION, "hosted_vllm: bad key ***"),
        (Reply.error(404, "no such model"), ModelErrorCode.MODEL_NOT_FOUND, "hosted_vllm: no such model"),
        (Reply.error(408, "late"), ModelErrorCode.TIMEOUT, "hosted_vllm: late"),
        (Reply.error(409, "busy"), ModelErrorCode.CONFLICT, "hosted_vllm: busy"),
        (Reply.error(429, "slow down"), ModelErrorCode.RATE_LIMITED, "hosted_vllm: slow down"),
        (Reply.error(500, "oops"), ModelErrorCode.SERVER_ERROR, "hosted_vllm: oops"),
        (Reply.error(503, "away"), ModelErrorCode.SERVER_ERROR, "hosted_vllm: away"),
        (Reply.error(400, "no"), ModelErrorCode.INVALID_REQUEST, "hosted_vllm: no"),
        (
            Reply.error(400, "maximum context length is 10 tokens", code="context_length_exceeded"),
            ModelErrorCode.CONTEXT_OVERFLOW,
            "hosted_vllm: maximum context length is 10 tokens",
        ),
    ],
)
async def test_an_http_error_has_its_class_and_is_not_tried_again_by_litellm(
    server: ModelServer, client: LiteLLMClient, reply: Reply, code: ModelErrorCode, said: str
) -> None:
    server.script([reply])
    with pytest.raises(ModelError) as caught:
        await _events(client)
    assert (caught.value.code, caught.value.status, caught.value.message) == (code, reply.status, said)
    assert len(server.requests) == 1


async def test_retry_after_is_passed_on(server: ModelServer, client: LiteLLMClient) -> None:
    server.script([Reply.error(429, headers={"Retry-After": "7"})])
    with pytest.raises(ModelError) as caught:
        await _events(client)
    assert caught.value.retry_after_s == 7.0


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        (Reply(text=["a"] * 5, cut_after=2), ModelErrorCode.CONNECTION),
        (Reply(text=["a"] * 5, cut_after=2, reset=True), ModelErrorCode.CONNECTION),
        (Reply(body=b"<html>", content_type="text/html"), ModelErrorCode.INVALID_RESPONSE),
        (Reply(events=[{"error": {"message": "overloaded", "code": 503}}]), ModelErrorCode.SERVER_ERROR),
        (Reply(events=[{"error": {"message": "slow down", "code": 429}}]), ModelErrorCode.RATE_LIMITED),
    ],
)
async def test_a_stream_that_breaks_has_its_class(
    server: ModelServer, client: LiteLLMClient, reply: Reply, code: ModelErrorCode
) -> None:
    server.script([reply])
    with pytest.raises(ModelError) as caught:
        await _events(client)
    assert caught.value.code is code
    assert caught.value.retryable


async def test_a_refused_connection_is_a_connection_error(
    client: LiteLLMClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOSTED_VLLM_API_BASE", "http://127.0.0.1:1/v1")
    with pytest.raises(ModelError) as caught:
        await _events(client)
    assert (caught.value.code, caught.value.status) == (ModelErrorCode.CONNECTION, None)
    assert "ssl:" not in caught.value.message


async def test_closing_the_stream_closes_the_connection(server: ModelServer, client: LiteLLMClient) -> None:
    server.script([Reply(text="Hi", hold=True)])
    stream = client.stream(REQUEST)
    assert await anext(stream) == TextDelta("Hi")
    await stream.aclose()
    await server.until(lambda server: server.aborted == 1 and server.open == 0)


@pytest.mark.parametrize("reply", [Reply(delay_s=600), Reply(hold=True, finish_reason=None, done=False)])
async def test_cancelling_the_reader_closes_the_connection(
    server: ModelServer, client: LiteLLMClient, reply: Reply
) -> None:
    server.script([reply])
    task = asyncio.create_task(_events(client))
    await server.until(lambda server: server.open == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await server.until(lambda server: server.aborted == 1 and server.open == 0)
