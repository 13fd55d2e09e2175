"""Summaries of conversations, over HTTP: long ones piece by piece, and what they take."""

from __future__ import annotations

from collections.abc import AsyncIterator
from decimal import Decimal

import pytest

from app.engine.errors import ModelError, ModelErrorCode
from app.engine.messages import Message, Role
from app.engine.model import ModelClient, ModelPolicies, ModelRequest
from app.engine.usage import Usage
from app.llm.factory import ModelConfig, build_model_client
from app.llm.summary import summarise
from tests.model_server import ModelServer, Reply

LIKE = ModelRequest("openai/gpt-4o-mini", (), policies=ModelPolicies(max_attempts=1))
OVERFLOW = Reply.error(400, "too long", code="context_length_exceeded")


@pytest.fixture
async def server() -> AsyncIterator[ModelServer]:
    async with ModelServer() as server:
        yield server


@pytest.fixture
async def client(server: ModelServer) -> AsyncIterator[ModelClient]:
    client = build_model_client(ModelConfig(openai_base_url=server.base_url))
    yield client
    await client.aclose()


def asked(server: ModelServer, number: int) -> str:
    """What the model was given to read in one of the calls."""
    return server.requests[number].body["messages"][-1]["content"]


async def test_a_conversation_is_given_as_data_and_the_summary_comes_back(
    server: ModelServer, client: ModelClient
) -> None:
    server.script([Reply(text=" They greeted.\n")])
    messages = [Message(Role.USER, "Hello"), Message(Role.ASSISTANT, "Hi" * 100)]
    summary = await summarise(client, LIKE, messages)
    assert (summary.text, summary.model, summary.usage) == ("They greeted.", "gpt-4o-mini", Usage(1, 11, 7))
    assert summary.cost_usd == Decimal("0.00000585")
    (request,) = server.requests
    assert [message["role"] for message in request.body["messages"]] == ["system", "user"]
    assert asked(server, 0).endswith("user: Hello\n\nassistant: " + "Hi" * 100)
    assert "tools" not in request.body


async def test_a_conversation_too_long_for_one_call_is_summarised_piece_by_piece(
    server: ModelServer, client: ModelClient
) -> None:
    messages = [Message(Role.USER, f"{number} " + "x" * 7_000) for number in range(40)]
    server.script([Reply(text="The first."), Reply(text="The first and the second.")])
    summary = await summarise(client, LIKE, messages)
    assert summary.text == "The first and the second."
    assert summary.usage.llm_calls == 2
    assert "The first." in asked(server, 1)
    read = asked(server, 0) + asked(server, 1)
    assert all(f"user: {number} x" in read for number in range(40)), "nothing is left out"


async def test_where_the_model_finds_a_piece_too_long_smaller_ones_are_tried(
    server: ModelServer, client: ModelClient
) -> None:
    messages = [Message(Role.USER, f"{number} " + "x" * 5_000) for number in range(8)]
    server.script([OVERFLOW, OVERFLOW, *[Reply(text=f"Summary {number}.") for number in range(5)]])
    summary = await summarise(client, LIKE, messages)
    answered = [asked(server, number) for number in range(2, len(server.requests))]
    assert len(answered) == summary.usage.llm_calls > 1
    assert all(any(f"user: {number} x" in text for text in answered) for number in range(8))


async def test_a_model_that_can_read_nothing_is_not_asked_without_end(server: ModelServer, client: ModelClient) -> None:
    server.script([OVERFLOW] * 50)
    with pytest.raises(ModelError) as raised:
        await summarise(client, LIKE, [Message(Role.USER, "x" * 8_000)] * 20)
    assert raised.value.code is ModelErrorCode.CONTEXT_OVERFLOW
    assert len(server.requests) < 10


async def test_what_calls_took_is_told_although_a_later_one_failed(server: ModelServer, client: ModelClient) -> None:
    server.script([Reply(text="The first."), Reply.error(500)])
    with pytest.raises(ModelError) as raised:
        await summarise(client, LIKE, [Message(Role.USER, "x" * 8_000)] * 40)
    assert raised.value.spent is not None
    assert raised.value.spent.usage == Usage(1, 11, 7)


REFUSAL = Reply(
    events=[
        {"choices": [{"index": 0, "delta": {"refusal": "I cannot help with that."}}]},
        {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
        "data: [DONE]\n\n",
    ]
)


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        (Reply(text=" \n"), "gave no summary"),
        (Reply(text="They spoke of", finish_reason="length"), "cut off at the model's output limit"),
        (Reply(text="They spoke of", finish_reason="content_filter"), "filtered"),
        (Reply(text="I cannot help with that.", finish_reason="refusal"), "refused to write a summary: I cannot help"),
        (REFUSAL, "refused to write a summary: I cannot help"),
        (Reply(text="Hm.", tool_calls=[{"name": "f", "arguments": {}}]), "called tools"),
        (Reply(text="word " * 10_001), "longer than 50000 characters"),
    ],
)
async def test_an_answer_that_is_not_whole_is_no_summary_and_is_paid_for(
    server: ModelServer, client: ModelClient, reply: Reply, why: str
) -> None:
    server.script([reply])
    with pytest.raises(ModelError) as raised:
        await summarise(client, LIKE, [Message(Role.USER, "x" * 8_000)] * 40)
    assert why in raised.value.message
    assert raised.value.spent is not None
    assert raised.value.spent.usage.llm_calls == 1


async def test_a_piece_that_is_not_summarised_whole_ends_it(server: ModelServer, client: ModelClient) -> None:
    server.script([Reply(text="The first", finish_reason="length"), Reply(text="Both.")])
    with pytest.raises(ModelError, match="cut off"):
        await summarise(client, LIKE, [Message(Role.USER, "x" * 8_000)] * 40)
    assert len(server.requests) == 1


async def test_a_summary_that_is_no_shorter_than_what_it_stands_for_is_none(
    server: ModelServer, client: ModelClient
) -> None:
    messages = [Message(Role.USER, "x" * 1_596)]  # 399 tokens, and 4 for the message
    fits = "y" * (4 * 398 - 49)  # with its heading one token less
    server.script([Reply(text=[fits]), Reply(text=[fits + "yyyy"])])
    assert (await summarise(client, LIKE, messages)).text == fits
    with pytest.raises(ModelError, match=r"no shorter than what it stands for \(403 tokens for 403\)") as raised:
        await summarise(client, LIKE, messages)
    assert raised.value.spent is not None
    assert raised.value.spent.usage == Usage(1, 11, 7)
