"""What answers of chat-completions servers bring beside text and calls: refusals, thoughts, schemas, images."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from app.engine.messages import Message, Reasoning, Role, ToolCall
from app.engine.model import FinishReason, ModelEvent, ModelRequest, ModelResponse, ReasoningDelta, TextDelta
from app.llm.openai_compatible import OpenAICompatibleClient
from tests.model_server import ModelServer, Reply

HI = Message(Role.USER, "Hi")
CLOSED = {"type": "object", "properties": {"n": {}}, "required": ["n"], "additionalProperties": False}
SIGNED = {"type": "reasoning.text", "text": "I think", "signature": "c2ln", "format": "anthropic-claude-v1", "index": 0}
SEALED = {"type": "reasoning.encrypted", "data": "c2VhbGVk", "index": 1}


@pytest.fixture
async def client(server: ModelServer) -> AsyncIterator[OpenAICompatibleClient]:
    client = OpenAICompatibleClient(server.base_url)
    yield client
    await client.aclose()


async def _events(client: OpenAICompatibleClient, *messages: Message, **more: Any) -> list[ModelEvent]:
    return [event async for event in client.stream(ModelRequest("openai/m", messages or [HI], **more))]


async def _answer(client: OpenAICompatibleClient, *messages: Message, **more: Any) -> ModelResponse:
    last = (await _events(client, *messages, **more))[-1]
    assert isinstance(last, ModelResponse)
    return last


def _stream(*deltas: dict[str, Any]) -> Reply:
    chunks = [{"choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]
    return Reply(
        events=[*chunks, {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}, "data: [DONE]\n\n"]
    )


async def test_a_refusal_is_told_apart_and_its_words_are_the_text(
    server: ModelServer, client: OpenAICompatibleClient
) -> None:
    server.script([_stream({"refusal": "I'm sorry, "}, {"refusal": "I can't."})])
    *deltas, response = await _events(client)
    assert isinstance(response, ModelResponse)
    assert deltas == [TextDelta("I'm sorry, "), TextDelta("I can't.")]
    assert (response.text, response.finish_reason) == ("I'm sorry, I can't.", FinishReason.REFUSAL)


async def test_an_answer_without_a_refusal_may_name_the_field(
    server: ModelServer, client: OpenAICompatibleClient
) -> None:
    server.script([_stream({"role": "assistant", "content": "", "refusal": None}, {"content": "Yes."})])
    assert (await _answer(client)).finish_reason is FinishReason.STOP


async def test_reasoning_details_are_put_together_and_come_back(
    server: ModelServer, client: OpenAICompatibleClient
) -> None:
    """https://openrouter.ai/docs/use-cases/reasoning-tokens#preserving-reasoning-blocks"""
    piece = {"type": "reasoning.text", "format": "anthropic-claude-v1", "index": 0}
    server.script(
        [
            _stream(
                {"reasoning": "I ", "reasoning_details": [{**piece, "text": "I "}]},
                {"reasoning": "think", "reasoning_details": [{**piece, "text": "think"}]},
                {"reasoning_details": [{**piece, "text": "", "signature": "c2ln"}]},
                {"reasoning_details": [SEALED]},
                {"content": "Yes."},
            )
        ]
    )
    *deltas, response = await _events(client)
    assert isinstance(response, ModelResponse)
    assert deltas == [ReasoningDelta("I "), ReasoningDelta("think"), TextDelta("Yes.")]
    assert (response.text, response.reasoning) == ("Yes.", "I think")
    assert response.kept == Reasoning("openai", (SIGNED, SEALED))
    await _answer(client, HI, Message(Role.ASSISTANT, response.text, kept=response.kept), HI)
    assert server.requests[-1].body["messages"][1] == {
        "role": "assistant",
        "content": "Yes.",
        "reasoning_details": [SIGNED, SEALED],
    }


async def test_thoughts_without_a_field_of_their_own_are_read_out_of_the_details(
    server: ModelServer, client: OpenAICompatibleClient
) -> None:
    server.script([_stream({"reasoning_details": [{"type": "reasoning.summary", "summary": "Hm."}]}, {"content": "x"})])
    assert (await _answer(client)).reasoning == "Hm."


async def test_thoughts_that_led_to_a_call_come_back_with_it(
    server: ModelServer, client: OpenAICompatibleClient
) -> None:
    """https://api-docs.deepseek.com/guides/thinking_mode: without them the next request is refused."""
    server.script([Reply(text="", reasoning=["I ", "add"], tool_calls=[{"id": "a", "name": "add", "arguments": {}}])])
    first = await _answer(client)
    answered = Message(Role.ASSISTANT, "", first.tool_calls, kept=first.kept)
    await _answer(client, HI, answered, Message(Role.TOOL, "1", tool_call_id="a"))
    assert server.requests[-1].body["messages"][1]["reasoning_content"] == "I add"


async def test_thoughts_of_an_answer_in_text_are_not_sent_again(
    server: ModelServer, client: OpenAICompatibleClient
) -> None:
    server.script([Reply(text="Yes.", reasoning=["hm"])])
    assert (await _answer(client)).kept is None


async def test_thoughts_of_other_providers_are_dropped(server: ModelServer, client: OpenAICompatibleClient) -> None:
    kept = Reasoning("anthropic", ({"type": "thinking", "thinking": "x", "signature": "c2ln"},))
    await _answer(client, HI, Message(Role.ASSISTANT, "Yes.", (ToolCall("a", "add", "{}"),), kept=kept))
    assert server.requests[-1].body["messages"][1].keys() == {"role", "content", "tool_calls"}


async def test_images_pass_through(server: ModelServer, client: OpenAICompatibleClient) -> None:
    urls = ["https://example.org/a.png", "data:image/png;base64,iVBORw0KGgo="]
    content: Any = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    await _answer(client, Message(Role.USER, content))
    assert server.requests[-1].body["messages"][0]["content"] == content


async def test_an_image_counts_in_an_estimate(server: ModelServer, client: OpenAICompatibleClient) -> None:
    server.script([Reply(usage=None)] * 2)
    bare = await _answer(client, Message(Role.USER, ""))
    image: Any = [{"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 100_000}}]
    seen = await _answer(client, Message(Role.USER, image))
    assert seen.usage.input_tokens - bare.usage.input_tokens == 1600


@pytest.mark.parametrize(("schema", "strict"), [(CLOSED, True), ({"type": "object"}, False)])
async def test_a_schema_is_strict_only_where_it_can_be(
    server: ModelServer, client: OpenAICompatibleClient, schema: dict[str, Any], strict: bool
) -> None:
    await _answer(client, response_schema=schema)
    assert server.requests[-1].body["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "answer", "schema": schema, "strict": strict},
    }


@pytest.mark.parametrize(
    "refusal",
    [
        Reply.error(400, "This response_format type is unavailable now"),
        Reply.error(422, "body.response_format: Extra inputs are not permitted"),
        Reply.error(400, "'json_schema' is not one of ['text', 'json_object']"),
    ],
)
async def test_a_server_that_refuses_schemas_is_asked_in_words_from_then_on(
    server: ModelServer, client: OpenAICompatibleClient, refusal: Reply
) -> None:
    server.script([refusal])
    for _ in range(2):
        await _answer(client, response_schema=CLOSED)
    asked = [("response_format" in r.body, [m["role"] for m in r.body["messages"]]) for r in server.requests]
    assert asked == [(True, ["user"]), (False, ["system", "user"]), (False, ["system", "user"])]


async def test_cache_writes_that_a_gateway_tells_are_passed_on(
    server: ModelServer, client: OpenAICompatibleClient
) -> None:
    details = {"cached_tokens": 30, "cache_write_tokens": 50}
    server.script([Reply(usage={"prompt_tokens": 100, "completion_tokens": 1, "prompt_tokens_details": details})])
    answer = await _answer(client)
    assert (answer.usage.cached_input_tokens, answer.cache_write_tokens) == (30, 50)
