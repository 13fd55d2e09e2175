"""Answers of earlier equal calls."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from structlog.testing import capture_logs

from app.engine.messages import Message, Reasoning, Role, ToolCall
from app.engine.model import (
    CachePolicy,
    FinishReason,
    ModelPolicies,
    ModelRequest,
    ModelResponse,
    ReasoningDelta,
    TextDelta,
    ToolCallDelta,
)
from app.engine.tools import ToolSpec
from app.engine.usage import Usage
from app.llm.cache import MAX_ENTRY_BYTES
from app.llm.memory_cache import MemoryModelCache
from tests.integration.llm.calls import a_client, a_provider, a_request, answer_of, events_of
from tests.model_server import ModelServer, Reply

POLICIES = ModelPolicies(1, cache=CachePolicy(3600))
LOOKUP = ToolSpec("lookup", "Looks.", {"type": "object", "properties": {"q": {"type": "string"}}})


def _request(text: str = "Hi", **more: Any) -> ModelRequest:
    return a_request(text, **{"policies": POLICIES, "settings": {"temperature": 0}, **more})


class Broken(MemoryModelCache):
    async def get(self, key: bytes, max_age_s: float) -> bytes | None:
        raise OSError("no cache today")

    async def put(self, key: bytes, answer: bytes, ttl_s: float) -> None:
        raise OSError("no cache today")


async def test_an_equal_call_is_answered_at_once_and_costs_nothing(server: ModelServer) -> None:
    call = {"id": "call_9", "name": "lookup", "arguments": {"q": "x"}}
    server.script([Reply(text="Well.", reasoning=["Hm."], tool_calls=[call])])
    async with a_client({"openai": a_provider(server)}) as client:
        first = await answer_of(client, _request(tools=(LOOKUP,)))
        events = await events_of(client, _request(tools=(LOOKUP,)))
    assert len(server.requests) == 1
    assert (first.reused, first.usage.llm_calls) == (False, 1)
    answer = events[-1]
    assert answer == replace(first, usage=Usage(), cost_usd=0, reused=True)
    assert events[:-1] == [
        ReasoningDelta("Hm."),
        TextDelta("Well."),
        ToolCallDelta(0, "call_9", "lookup", '{"q":"x"}'),
    ]


@pytest.mark.parametrize(
    "other",
    [
        {"text": "Ho"},
        {"model": "openai/gpt-4o-mini"},
        {"tenant_id": "another"},
        {"response_schema": {"type": "object"}},
        {"tools": [LOOKUP]},
        {"tools": [ToolSpec("lookup", "Looks well.", LOOKUP.parameters)]},
        *[{"settings": {"temperature": 0, name: value}} for name, value in (("top_p", 0.5), ("max_tokens", 9))],
        *[{"settings": {"temperature": 0, name: value}} for name, value in (("seed", 1), ("stop", ["x"]))],
        {"settings": {"temperature": 0, "reasoning_effort": "low"}},
        {"settings": {"temperature": 0, "tool_choice": "none"}},
        {"settings": {"temperature": 0, "parallel_tool_calls": False}},
    ],
)
async def test_what_an_answer_hangs_on_keeps_calls_apart(server: ModelServer, other: dict[str, Any]) -> None:
    async with a_client({"openai": a_provider(server)}) as client:
        await answer_of(client, _request())
        assert not (await answer_of(client, _request(**other))).reused
        assert (await answer_of(client, _request())).reused


@pytest.mark.parametrize(
    "message",
    [
        Message(Role.SYSTEM, "a"),
        Message(Role.USER, [{"type": "image_url", "image_url": {"url": "data:,1"}}]),
        Message(Role.USER, [{"type": "image_url", "image_url": {"url": "data:,2"}}]),
        Message(Role.ASSISTANT, "a"),
        Message(Role.ASSISTANT, "a", (ToolCall("1", "lookup", "{}"),)),
        Message(Role.ASSISTANT, "a", (ToolCall("2", "lookup", "{}"),)),
        Message(Role.ASSISTANT, "a", (ToolCall("1", "lookup", "{ }"),)),
        Message(Role.ASSISTANT, "a", kept=Reasoning("openai", ({"signature": "x"},))),
        Message(Role.TOOL, "a", tool_call_id="1"),
        Message(Role.TOOL, "a", tool_call_id="2"),
    ],
)
async def test_every_part_of_every_message_counts(server: ModelServer, message: Message) -> None:
    request = _request()
    server.answer = lambda _: Reply()
    async with a_client({"openai": a_provider(server)}) as client:
        await answer_of(client, replace(request, messages=[Message(Role.USER, "a")]))
        assert not (await answer_of(client, replace(request, messages=[message]))).reused
        assert (await answer_of(client, replace(request, messages=[message]))).reused


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.1}])
async def test_calls_with_some_chance_in_them_are_only_cached_when_told(
    server: ModelServer, settings: dict[str, Any]
) -> None:
    told = ModelPolicies(1, cache=CachePolicy(3600, any_temperature=True))
    async with a_client({"openai": a_provider(server)}) as client:
        for policies, reused in ((POLICIES, False), (POLICIES, False), (told, False), (told, True)):
            answer = await answer_of(client, _request(settings=settings, policies=policies))
            assert answer.reused is reused


async def test_nothing_is_cached_where_the_policy_is_off(server: ModelServer) -> None:
    async with a_client({"openai": a_provider(server)}, cache=Broken()) as client:
        with capture_logs() as lines:
            for _ in range(2):
                await answer_of(client, _request(policies=ModelPolicies(1)))
    assert len(server.requests) == 2
    assert not lines


@pytest.mark.parametrize(
    "reply",
    [
        Reply(finish_reason="length"),
        Reply(finish_reason="content_filter"),
        Reply(text=""),
        Reply(text="x" * MAX_ENTRY_BYTES),
    ],
)
async def test_only_whole_answers_of_a_bounded_length_are_kept(server: ModelServer, reply: Reply) -> None:
    server.script([reply])
    async with a_client({"openai": a_provider(server)}) as client:
        await answer_of(client, _request())
        assert not (await answer_of(client, _request())).reused


async def test_the_answer_of_another_model_is_not_kept_as_this_ones(server: ModelServer, other: ModelServer) -> None:
    server.script([Reply.error(500)])
    async with a_client({"openai": a_provider(server), "spare": a_provider(other)}) as client:
        asked = _request(fallback_models=["spare/small"])
        assert (await answer_of(client, asked)).provider == "spare"
        assert (await answer_of(client, asked)).provider == "openai"
        assert (await answer_of(client, asked)).reused


async def test_a_cache_that_fails_costs_nothing_but_a_line(server: ModelServer) -> None:
    async with a_client({"openai": a_provider(server)}, cache=Broken()) as client:
        with capture_logs() as lines:
            for _ in range(5):
                assert not (await answer_of(client, _request())).reused
    told = [line for line in lines if line["event"] == "model_cache_failed" and line["log_level"] == "warning"]
    assert sorted(line["operation"] for line in told) == ["get", "put"]
    assert {line["error"] for line in told} == {"no cache today"}


async def test_what_cannot_be_read_back_is_a_miss(server: ModelServer) -> None:
    class Odd(MemoryModelCache):
        async def get(self, key: bytes, max_age_s: float) -> bytes | None:
            return b"[]"

    async with a_client({"openai": a_provider(server)}, cache=Odd()) as client:
        answer = await answer_of(client, _request())
    assert (answer.finish_reason, answer.reused) == (FinishReason.STOP, False)


async def test_cached_answers_count_with_coalesced_ones(server: ModelServer) -> None:
    both = replace(POLICIES, coalesce=True)
    async with a_client({"openai": a_provider(server)}) as client:
        await answer_of(client, _request(policies=both))
        answer: ModelResponse = await answer_of(client, _request(policies=both))
    assert answer.reused
    assert len(server.requests) == 1
