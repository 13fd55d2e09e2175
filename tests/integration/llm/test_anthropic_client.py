"""The native Anthropic client against a server that speaks the Messages API as Anthropic documents it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from app.engine.errors import ModelError, ModelErrorCode
from app.engine.events import WarningCode
from app.engine.messages import Message, Reasoning, Role, ToolCall
from app.engine.model import (
    FinishReason,
    ModelEvent,
    ModelNotice,
    ModelRequest,
    ModelResponse,
    ReasoningDelta,
    TextDelta,
    ToolCallDelta,
)
from app.engine.tools import ToolSpec
from app.engine.usage import Usage
from app.llm.anthropic.client import AnthropicClient
from app.llm.factory import ModelConfig, build_model_client
from tests.model_server import ModelServer
from tests.model_server.anthropic import AnthropicReply, anthropic_server

NOON = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
KEY = "sk-ant-not-to-be-seen"
REQUEST = ModelRequest("anthropic/claude-sonnet-4-5", [Message(Role.USER, "Hi there")])
TOOLS = (
    ToolSpec("add", "adds", {"type": "object", "properties": {"x": {"type": "integer"}}}),
    ToolSpec("now", "tells the time", {"type": "object"}),
)
MARK = {"type": "ephemeral"}
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 1}}, "required": ["n"]}


@pytest.fixture
async def server() -> AsyncIterator[ModelServer]:
    async with anthropic_server() as server:
        yield server


@pytest.fixture
async def client(server: ModelServer) -> AsyncIterator[AnthropicClient]:
    client = AnthropicClient(server.root_url, KEY, now=lambda: NOON)
    yield client
    await client.aclose()


async def _events(client: AnthropicClient, request: ModelRequest = REQUEST) -> list[ModelEvent]:
    return [event async for event in client.stream(request)]


async def _answer(client: AnthropicClient, request: ModelRequest = REQUEST) -> ModelResponse:
    last = (await _events(client, request))[-1]
    assert isinstance(last, ModelResponse)
    return last


async def _failure(client: AnthropicClient, request: ModelRequest = REQUEST) -> ModelError:
    with pytest.raises(ModelError) as caught:
        await _events(client, request)
    assert KEY not in caught.value.message
    return caught.value


def _asking(messages: Sequence[Message] = REQUEST.messages, **more: Any) -> ModelRequest:
    return ModelRequest(more.pop("model", REQUEST.model), messages, **more)


async def test_text_and_thoughts_stream_apart(server: ModelServer, client: AnthropicClient) -> None:
    server.script([AnthropicReply(text="Grüße 👋", reasoning=["hm"])])
    assert await _events(client) == [
        ReasoningDelta("hm"),
        TextDelta("Grüße "),
        TextDelta("👋"),
        ModelResponse(
            "anthropic",
            "claude-sonnet-4-5",
            "Grüße 👋",
            (),
            FinishReason.STOP,
            Usage(1, 11, 7),
            None,
            reasoning="hm",
            kept=Reasoning("anthropic", ({"type": "thinking", "thinking": "hm", "signature": "c2lnbmVk"},)),
        ),
    ]


async def test_tool_calls_stream_and_add_up(server: ModelServer, client: AnthropicClient) -> None:
    calls = [{"id": "toolu_a", "name": "add", "arguments": {"x": 1}}, {"id": "toolu_b", "name": "now"}]
    server.script([AnthropicReply(text="Wait.", tool_calls=calls)])
    *deltas, response = await _events(client, _asking(tools=TOOLS))
    assert isinstance(response, ModelResponse)
    assert response.tool_calls == (ToolCall("toolu_a", "add", '{"x":1}'), ToolCall("toolu_b", "now", "{}"))
    assert (response.finish_reason, response.text) == (FinishReason.TOOL_CALLS, "Wait.")
    pieces = [delta for delta in deltas if isinstance(delta, ToolCallDelta)]
    assert [(delta.index, delta.name) for delta in pieces if delta.name] == [(0, "add"), (1, "now")]
    assert "".join(delta.delta for delta in pieces if delta.index == 0) == '{"x":1}'


async def test_the_request_is_what_the_messages_api_expects(server: ModelServer, client: AnthropicClient) -> None:
    messages = [
        Message(Role.SYSTEM, "Be brief."),
        Message(Role.USER, [{"type": "text", "text": "Hi"}]),
        Message(Role.ASSISTANT, "", (ToolCall("a", "add", '{"x": 1.0}'), ToolCall("b", "add", "{oops"))),
        Message(Role.TOOL, "2", tool_call_id="a"),
        Message(Role.TOOL, "no JSON", tool_call_id="b", failed=True),
        Message(Role.USER, "And now?"),
    ]
    settings = {"temperature": 0.5, "stop": "END", "parallel_tool_calls": False, "max_tokens": 100}
    await _answer(client, _asking(messages, tools=TOOLS, settings=settings))
    received = server.requests[-1]
    assert received.path == "/v1/messages"
    assert received.headers["x-api-key"] == KEY
    assert received.headers["anthropic-version"] == "2023-06-01"
    assert "authorization" not in received.headers
    assert received.body == {
        "model": "claude-sonnet-4-5",
        "stream": True,
        "max_tokens": 100,
        "temperature": 0.5,
        "stop_sequences": ["END"],
        "tool_choice": {"type": "auto", "disable_parallel_tool_use": True},
        "system": [{"type": "text", "text": "Be brief.", "cache_control": MARK}],
        "tools": [
            {
                "name": "add",
                "description": "adds",
                "input_schema": {"type": "object", "properties": {"x": {"type": "integer"}}},
            },
            {
                "name": "now",
                "description": "tells the time",
                "input_schema": {"type": "object"},
                "cache_control": MARK,
            },
        ],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "Hi", "cache_control": MARK}]},
            {
                "role": "assistant",
                "content": [
                    {"type": "tool_use", "id": "a", "name": "add", "input": {"x": 1.0}},
                    {"type": "tool_use", "id": "b", "name": "add", "input": {"invalid_json": "{oops"}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "a", "content": [{"type": "text", "text": "2"}]},
                    {
                        "type": "tool_result",
                        "tool_use_id": "b",
                        "content": [{"type": "text", "text": "no JSON"}],
                        "is_error": True,
                    },
                    {"type": "text", "text": "And now?", "cache_control": MARK},
                ],
            },
        ],
    }


async def test_images_are_sent_as_a_url_or_as_their_bytes(server: ModelServer, client: AnthropicClient) -> None:
    await _answer(
        client,
        _asking(
            [
                Message(
                    Role.USER,
                    [
                        {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}},
                        {"type": "image_url", "image_url": {"url": "data:image/jpg;base64,iVBORw0KGgo="}},
                    ],
                )
            ]
        ),
    )
    assert server.requests[-1].body["messages"][0]["content"] == [
        {"type": "image", "source": {"type": "url", "url": "https://example.org/a.png"}},
        {
            "type": "image",
            "source": {"type": "base64", "media_type": "image/jpeg", "data": "iVBORw0KGgo="},
            "cache_control": MARK,
        },
    ]


async def test_an_image_in_a_system_message_is_not_lost(server: ModelServer, client: AnthropicClient) -> None:
    picture: Any = {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}
    asked = [Message(Role.SYSTEM, [{"type": "text", "text": "Our logo:"}, picture]), Message(Role.USER, "What is it?")]
    await _answer(client, _asking(asked))
    body = server.requests[-1].body
    assert [block["text"] for block in body["system"]] == ["Our logo:"]
    assert [block["type"] for block in body["messages"][0]["content"]] == ["image", "text"]


async def test_thoughts_come_back_to_anthropic_before_the_calls_that_followed_from_them(
    server: ModelServer, client: AnthropicClient
) -> None:
    call = {"id": "a", "name": "now"}
    server.script([AnthropicReply(text="", reasoning=["I need", " it"], redacted="c2VhbGVk", tool_calls=[call])])
    first = await _answer(client, _asking(tools=TOOLS))
    answered = Message(Role.ASSISTANT, first.text, first.tool_calls, kept=first.kept)
    await _answer(client, _asking([answered, Message(Role.TOOL, "noon", tool_call_id="a")], tools=TOOLS))
    assert server.requests[-1].body["messages"][1]["content"] == [
        {"type": "thinking", "thinking": "I need it", "signature": "c2lnbmVk"},
        {"type": "redacted_thinking", "data": "c2VhbGVk"},
        {"type": "tool_use", "id": "a", "name": "now", "input": {}},
    ]


async def test_thoughts_of_other_providers_are_dropped(server: ModelServer, client: AnthropicClient) -> None:
    kept = Reasoning("openai", ({"type": "reasoning.text", "text": "secret"},))
    await _answer(client, _asking([Message(Role.USER, "Hi"), Message(Role.ASSISTANT, "Hello", kept=kept)]))
    assert server.requests[-1].body["messages"][1]["content"] == [
        {"type": "text", "text": "Hello", "cache_control": MARK}
    ]


async def test_ids_of_other_providers_are_replaced_alike_in_the_call_and_its_result(
    server: ModelServer, client: AnthropicClient
) -> None:
    messages = [
        Message(Role.USER, "Hi"),
        Message(
            Role.ASSISTANT, "", (ToolCall("functions.now:0", "now", "{}"), ToolCall("functions.now:1", "now", "{}"))
        ),
        Message(Role.TOOL, "1", tool_call_id="functions.now:0"),
        Message(Role.TOOL, "2", tool_call_id="functions.now:1"),
    ]
    await _answer(client, _asking(messages, tools=TOOLS))
    calls, results = (turn["content"] for turn in server.requests[-1].body["messages"][1:])
    assert [call["id"] for call in calls] == [result["tool_use_id"] for result in results]
    assert len({call["id"] for call in calls}) == 2
    assert all(call["id"].replace("_", "").isalnum() for call in calls)


async def test_a_thread_with_calls_can_go_on_without_tools(server: ModelServer, client: AnthropicClient) -> None:
    messages = [
        Message(Role.ASSISTANT, "", (ToolCall("a", "gone", "{}"),)),
        Message(Role.TOOL, "", tool_call_id="a"),
    ]
    await _answer(client, _asking(messages, settings={"tool_choice": "required"}))
    body = server.requests[-1].body
    assert ([tool["name"] for tool in body["tools"]], body["tool_choice"]) == (["gone"], {"type": "none"})
    assert [turn["role"] for turn in body["messages"]] == ["user", "assistant", "user"]
    assert "content" not in body["messages"][2]["content"][0]


async def test_an_agents_steps_mark_where_the_one_before_ended(server: ModelServer, client: AnthropicClient) -> None:
    """At most four marks, the most that the API takes, on the ends of tools, system, and the last two user turns."""
    messages: list[Message] = [Message(Role.SYSTEM, "Be brief."), Message(Role.USER, "Go")]
    ends: list[list[Any]] = []
    for step in range(3):
        await _answer(client, _asking(messages, tools=TOOLS))
        turns = server.requests[-1].body["messages"]
        marked = [place for place, turn in enumerate(turns) if "cache_control" in turn["content"][-1]]
        ends.append(marked)
        assert str(server.requests[-1].body).count("cache_control") == 2 + len(marked)
        messages += [
            Message(Role.ASSISTANT, "", (ToolCall(f"c{step}", "now", "{}"),)),
            Message(Role.TOOL, "noon", tool_call_id=f"c{step}"),
        ]
    assert ends == [[0], [0, 2], [2, 4]]


async def test_without_caching_nothing_is_marked(server: ModelServer) -> None:
    client = AnthropicClient(server.root_url, KEY, caching=False)
    await _answer(client, _asking([Message(Role.SYSTEM, "Be brief."), *REQUEST.messages], tools=TOOLS))
    await client.aclose()
    assert "cache_control" not in str(server.requests[-1].body)


async def test_all_input_is_counted_and_paid_for_at_its_price(server: ModelServer) -> None:
    """claude-sonnet-4-5: $3 a million in, 3.75 written to the cache, 0.30 read from it, 15 out."""
    usage = {
        "input_tokens": 100,
        "cache_creation_input_tokens": 2000,
        "cache_read_input_tokens": 30_000,
        "output_tokens": 500,
        "output_tokens_details": {"thinking_tokens": 300},
    }
    server.script([AnthropicReply(usage=usage)])
    client = build_model_client(ModelConfig(anthropic_base_url=server.root_url, anthropic_api_key=KEY))
    response = [event async for event in client.stream(REQUEST)][-1]
    await client.aclose()
    assert isinstance(response, ModelResponse)
    assert response.usage == Usage(1, 32_100, 500, 30_000, 300)
    assert response.cache_write_tokens == 2000
    millionths = 100 * 3 + 2000 * Decimal("3.75") + 30_000 * Decimal("0.30") + 500 * 15
    assert response.cost_usd == millionths / 1_000_000


async def test_counts_at_the_end_take_the_place_of_those_at_the_beginning(
    server: ModelServer, client: AnthropicClient
) -> None:
    begun, *rest, ended, stop = AnthropicReply().pieces("m")
    ended = ended.replace(b'"output_tokens":7', b'"output_tokens":9,"input_tokens":50')
    server.script([AnthropicReply(events=[piece.decode() for piece in (begun, *rest, ended, stop)])])
    assert (await _answer(client)).usage == Usage(1, 50, 9)


async def test_a_server_without_usage_gets_an_estimate(server: ModelServer, client: AnthropicClient) -> None:
    server.script([AnthropicReply(text="x" * 40, usage=None)])
    answer = await _answer(client)
    assert (answer.usage_estimated, answer.usage.output_tokens) == (True, 10)


@pytest.mark.parametrize(
    ("stop_reason", "reason"),
    [
        ("end_turn", FinishReason.STOP),
        ("stop_sequence", FinishReason.STOP),
        ("max_tokens", FinishReason.LENGTH),
        ("model_context_window_exceeded", FinishReason.LENGTH),
        ("pause_turn", FinishReason.LENGTH),
        ("refusal", FinishReason.REFUSAL),
        ("something_new", FinishReason.STOP),
    ],
)
async def test_stop_reasons(
    server: ModelServer, client: AnthropicClient, stop_reason: str, reason: FinishReason
) -> None:
    server.script([AnthropicReply(finish_reason=stop_reason)])
    assert (await _answer(client)).finish_reason is reason


async def test_a_refusal_without_text_says_why(server: ModelServer, client: AnthropicClient) -> None:
    server.script([AnthropicReply(text="", finish_reason="refusal", explanation="It could do harm.")])
    answer = await _answer(client)
    assert (answer.finish_reason, answer.text) == (FinishReason.REFUSAL, "It could do harm.")


async def test_a_call_cut_off_at_the_limit_keeps_what_came(server: ModelServer, client: AnthropicClient) -> None:
    call = {"id": "a", "name": "add", "arguments": '{"x": '}
    server.script([AnthropicReply(text="", tool_calls=[call], finish_reason="max_tokens")])
    answer = await _answer(client, _asking(tools=TOOLS))
    assert (answer.finish_reason, answer.tool_calls) == (FinishReason.LENGTH, (ToolCall("a", "add", '{"x": '),))


async def test_a_server_that_does_not_stream_is_understood(server: ModelServer, client: AnthropicClient) -> None:
    call = {"id": "a", "name": "add", "arguments": {"x": 1}}
    server.script([AnthropicReply(text="Hi", reasoning=["hm"], tool_calls=[call], plain=True)])
    answer = await _answer(client, _asking(tools=TOOLS))
    assert (answer.text, answer.reasoning) == ("Hi", "hm")
    assert answer.tool_calls == (ToolCall("a", "add", '{"x":1}'),)
    assert answer.kept is not None


async def test_events_and_blocks_that_nobody_knows_are_passed_over(
    server: ModelServer, client: AnthropicClient
) -> None:
    first, *rest = AnthropicReply(text="Hi").pieces("m")
    odd = [
        {"type": "tomorrow"},
        {"type": "content_block_start", "index": 9, "content_block": {"type": "server_tool_use", "id": "s"}},
        {"type": "content_block_delta", "index": 9, "delta": {"type": "citations_delta"}},
        {"type": "content_block_stop", "index": 9},
    ]
    server.script([AnthropicReply(events=[first.decode(), *odd, *(piece.decode() for piece in rest)])])
    answer = await _answer(client)
    assert (answer.text, answer.tool_calls) == ("Hi", ())


@pytest.mark.parametrize(
    ("reply", "code", "retryable"),
    [
        (AnthropicReply.error(400, "no"), ModelErrorCode.INVALID_REQUEST, False),
        (
            AnthropicReply.error(400, "prompt is too long: 210000 tokens > 200000 maximum"),
            ModelErrorCode.CONTEXT_OVERFLOW,
            False,
        ),
        (AnthropicReply.error(401, f"invalid x-api-key {KEY}"), ModelErrorCode.AUTHENTICATION, False),
        (AnthropicReply.error(403), ModelErrorCode.AUTHENTICATION, False),
        (AnthropicReply.error(404, "model: claude-0"), ModelErrorCode.MODEL_NOT_FOUND, False),
        (AnthropicReply.error(413), ModelErrorCode.CONTEXT_OVERFLOW, False),
        (AnthropicReply.error(429), ModelErrorCode.RATE_LIMITED, True),
        (AnthropicReply.error(500), ModelErrorCode.SERVER_ERROR, True),
        (AnthropicReply.error(504, code="timeout_error"), ModelErrorCode.TIMEOUT, True),
        (AnthropicReply.error(529, "Overloaded"), ModelErrorCode.SERVER_ERROR, True),
    ],
)
async def test_an_http_error_has_its_class(
    server: ModelServer, client: AnthropicClient, reply: AnthropicReply, code: ModelErrorCode, retryable: bool
) -> None:
    server.script([reply])
    error = await _failure(client)
    assert (error.code, error.status, error.retryable) == (code, reply.status, retryable)
    assert error.message.startswith(f"anthropic: HTTP {reply.status}: ")


async def test_retry_after_is_passed_on(server: ModelServer, client: AnthropicClient) -> None:
    server.script([AnthropicReply.error(429, headers={"Retry-After": "7"})])
    assert (await _failure(client)).retry_after_s == 7.0


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        ("overloaded_error", ModelErrorCode.SERVER_ERROR),
        ("api_error", ModelErrorCode.SERVER_ERROR),
        ("rate_limit_error", ModelErrorCode.RATE_LIMITED),
        ("timeout_error", ModelErrorCode.TIMEOUT),
        ("news", ModelErrorCode.INVALID_RESPONSE),
    ],
)
async def test_an_error_event_has_its_class(
    server: ModelServer, client: AnthropicClient, kind: str, code: ModelErrorCode
) -> None:
    pieces = [piece.decode() for piece in AnthropicReply(text="Hi").pieces("m")[:4]]
    server.script([AnthropicReply(events=[*pieces, {"type": "error", "error": {"type": kind, "message": "later"}}])])
    error = await _failure(client)
    assert (error.code, error.retryable) == (code, True)
    assert "later" in error.message
    assert (await _answer(client)).text == "Hello."


@pytest.mark.parametrize(
    "reply",
    [
        AnthropicReply(body=b"<html>", content_type="text/html"),
        AnthropicReply(body={"hello": 1}),
        AnthropicReply(finish_reason=None),
        AnthropicReply(events=["data: {oops\n\n"]),
        AnthropicReply(events=["data: 3\n\n"]),
        AnthropicReply(events=[]),
    ],
)
async def test_a_200_that_is_no_answer_is_an_error(
    server: ModelServer, client: AnthropicClient, reply: AnthropicReply
) -> None:
    server.script([reply])
    assert (await _failure(client)).code is ModelErrorCode.INVALID_RESPONSE
    assert (await _answer(client)).text == "Hello."


@pytest.mark.parametrize("reset", [False, True])
async def test_a_connection_that_breaks_in_an_answer_is_a_connection_error(
    server: ModelServer, client: AnthropicClient, reset: bool
) -> None:
    server.script([AnthropicReply(text="a b c", cut_after=4, reset=reset)])
    assert (await _failure(client)).code is ModelErrorCode.CONNECTION


async def test_a_missing_key_is_an_error_that_names_the_setting() -> None:
    client = AnthropicClient()
    error = await _failure(client)
    assert error.code is ModelErrorCode.AUTHENTICATION
    assert "set ANTHROPIC_API_KEY" in error.message
    await client.aclose()


async def test_a_connection_serves_one_call_after_the_other(server: ModelServer, client: AnthropicClient) -> None:
    server.script([AnthropicReply(end_delay_s=0.02)] * 3)
    for _ in range(3):
        await _answer(client)
    assert server.connections == 1


async def test_a_server_that_stays_silent_after_the_end_does_not_hold_the_answer_back(
    server: ModelServer, client: AnthropicClient
) -> None:
    server.script([AnthropicReply(text="Hi", hold=True)])
    assert (await _answer(client)).text == "Hi"


@pytest.mark.parametrize(
    "reply", [AnthropicReply(delay_s=600), AnthropicReply(done=False, finish_reason=None, hold=True)]
)
async def test_cancelling_the_reader_closes_the_connection_at_once(
    server: ModelServer, client: AnthropicClient, reply: AnthropicReply
) -> None:
    server.script([reply])
    task = asyncio.create_task(_events(client))
    await server.until(lambda server: server.open == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await server.until(lambda server: server.aborted == 1 and server.open == 0)


async def test_a_setting_that_the_model_does_not_take_is_left_out_and_said(
    server: ModelServer, client: AnthropicClient
) -> None:
    request = _asking(model="anthropic/claude-sonnet-5", settings={"temperature": 0, "seed": 1})
    events = await _events(client, request)
    notices = [event for event in events if isinstance(event, ModelNotice)]
    assert [(n.code, n.data["setting"]) for n in notices] == [
        (WarningCode.SETTING_IGNORED, "temperature"),
        (WarningCode.SETTING_IGNORED, "seed"),
    ]
    assert notices[0].message == "anthropic/claude-sonnet-5 was called without temperature: the model takes none"
    assert not {"temperature", "seed"} & server.requests[-1].body.keys()


async def test_a_schema_goes_the_providers_own_way(server: ModelServer, client: AnthropicClient) -> None:
    request = _asking(settings={"reasoning_effort": "low"}, model="anthropic/claude-opus-4-6", response_schema=SCHEMA)
    await _answer(client, request)
    body = server.requests[-1].body
    assert body["output_config"] == {
        "effort": "low",
        "format": {
            "type": "json_schema",
            "schema": {
                "type": "object",
                "properties": {"n": {"type": "integer", "description": "{minimum: 1}"}},
                "required": ["n"],
                "additionalProperties": False,
            },
        },
    }
    assert "system" not in body


async def test_a_schema_that_is_refused_is_asked_for_in_words_from_then_on(
    server: ModelServer, client: AnthropicClient
) -> None:
    server.script([AnthropicReply.error(400, "output_config.format: structured outputs are not supported")])
    for _ in range(2):
        await _answer(client, _asking(response_schema=SCHEMA))
    native, *others = [request.body for request in server.requests]
    assert "output_config" in native
    assert len(others) == 2
    for body in others:
        assert "output_config" not in body
        assert '"minimum":1' in body["system"][0]["text"]


async def test_a_schema_that_cannot_be_said_there_is_asked_for_in_words(
    server: ModelServer, client: AnthropicClient
) -> None:
    any_keys = {"type": "object", "additionalProperties": {"type": "string"}}
    await _answer(client, _asking(response_schema=any_keys))
    assert [("output_config" in r.body, "system" in r.body) for r in server.requests] == [(False, True)]
