"""Equal calls at the same time are made once."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from app.engine.errors import ModelError
from app.engine.messages import Message, Role
from app.engine.model import ModelPolicies, ModelRequest, ModelResponse, StreamRestarted, TextDelta
from app.engine.usage import Spend, Usage
from tests.integration.llm.calls import a_client, a_provider, a_request, begun, ended, events_of, only
from tests.model_server import ModelServer, Reply

POLICIES = ModelPolicies(2, coalesce=True)
SLOW = Reply(text=["one ", "two ", "three"], chunk_delay_s=0.1)
SILENT = Reply(delay_s=600)


def _request(text: str = "Hi", **more: Any) -> ModelRequest:
    return a_request(text, **{"policies": POLICIES, **more})


def _text(events: list[Any]) -> str:
    return "".join(delta.text for delta in only(events, TextDelta))


async def test_all_get_the_whole_stream_and_one_pays(server: ModelServer) -> None:
    server.script([SLOW])
    async with a_client({"openai": a_provider(server)}) as client:
        stream = client.stream(_request())
        first = [await anext(stream)]
        others = await asyncio.gather(*[events_of(client, _request()) for _ in range(3)])
        first += [event async for event in stream]
    assert len(server.requests) == 1
    assert {_text(events) for events in [first, *others]} == {"one two three"}
    answers = [only(events, ModelResponse)[0] for events in [first, *others]]
    (paid,) = [answer for answer in answers if not answer.reused]
    assert paid.usage.llm_calls == 1
    assert paid.cost_usd
    for answer in answers:
        assert answer.text == "one two three"
        if answer is not paid:
            assert (answer.usage, answer.cost_usd, answer.usage_estimated) == (Usage(), 0, False)


@pytest.mark.parametrize(
    "other",
    [
        {"text": "Ho"},
        {"model": "openai/gpt-4o-mini"},
        {"settings": {"temperature": 1}},
        {"tenant_id": "another"},
        {"response_schema": {"type": "object"}},
        {"fallback_models": ["openai/gpt-4o-mini"]},
        {"policies": replace(POLICIES, first_byte_s=1.0)},
    ],
)
async def test_calls_that_differ_in_anything_are_made_each(server: ModelServer, other: dict[str, Any]) -> None:
    server.script([SLOW, SLOW])
    async with a_client({"openai": a_provider(server)}) as client:
        answers = await asyncio.gather(events_of(client, _request()), events_of(client, _request(**other)))
    assert len(server.requests) == 2
    assert [only(events, ModelResponse)[0].reused for events in answers] == [False, False]


async def test_calls_one_after_the_other_are_made_each(server: ModelServer) -> None:
    async with a_client({"openai": a_provider(server)}) as client:
        for _ in range(2):
            assert not only(await events_of(client, _request()), ModelResponse)[0].reused
    assert len(server.requests) == 2


async def test_whoever_leaves_takes_nothing_from_the_others_and_one_of_those_pays(server: ModelServer) -> None:
    server.script([Reply(text=["one ", "two ", "three"], chunk_delay_s=0.2)])
    async with a_client({"openai": a_provider(server)}) as client:
        leader = client.stream(_request())
        await anext(leader)
        others = [await begun(client, _request()) for _ in range(2)]
        await leader.aclose()
        answers = [only(await other, ModelResponse)[0] for other in others]
    assert [answer.text for answer in answers] == ["one two three"] * 2
    assert sorted(answer.reused for answer in answers) == [False, True]
    assert (len(server.requests), server.aborted) == (1, 0)


async def test_the_last_to_leave_ends_the_call_and_the_next_one_is_new(server: ModelServer) -> None:
    server.script([SILENT])
    async with a_client({"openai": a_provider(server)}) as client:
        calls = [await begun(client, _request()) for _ in range(2)]
        await server.until(lambda server: server.open == 1)
        await ended(calls[0])
        assert server.open == 1
        await ended(calls[1])
        answer = only(await events_of(client, _request()), ModelResponse)[0]
        await server.until(lambda server: server.aborted == 1 and server.open == 0)
    assert not answer.reused
    assert len(server.requests) == 2


async def test_an_error_reaches_all_and_what_it_cost_only_one(server: ModelServer) -> None:
    cut = Reply(text=["word "] * 4, chunk_delay_s=0.05, cut_after=4)
    server.script([cut, cut])
    async with a_client({"openai": a_provider(server)}) as client:
        calls = [await begun(client, _request()) for _ in range(3)]
        ends = await asyncio.gather(*calls, return_exceptions=True)
    assert len(server.requests) == 2
    errors = [end for end in ends if isinstance(end, ModelError)]
    assert len(errors) == 3
    assert sum(error.spent is not None for error in errors) == 1
    assert len({id(error) for error in errors}) == 3


async def test_tries_that_broke_off_are_void_for_those_who_saw_them_and_charged_once(server: ModelServer) -> None:
    server.script([Reply(text=["lost "], cut_after=1), Reply(text=["kept"], delay_s=0.2)])
    async with a_client({"openai": a_provider(server)}) as client:
        first = client.stream(_request())
        seen: list[Any] = [await anext(first)]
        await server.until(lambda server: len(server.requests) == 2)
        late = await events_of(client, _request())
        seen += [event async for event in first]
    assert [type(event) for event in seen if not isinstance(event, Spend)] == [
        TextDelta,
        StreamRestarted,
        TextDelta,
        ModelResponse,
    ]
    assert [type(event) for event in late if not isinstance(event, Spend)] == [TextDelta, ModelResponse]
    spends = only(seen, Spend) + only(late, Spend)
    assert len(spends) == 1
    payer = seen if only(seen, Spend) else late
    assert not only(payer, ModelResponse)[0].reused


async def test_messages_that_only_differ_in_what_the_model_does_not_see_are_equal(server: ModelServer) -> None:
    server.script([SLOW])
    same = [Message(Role.USER, "Hi")]
    async with a_client({"openai": a_provider(server)}) as client:
        requests = [_request(settings=settings) for settings in ({"seed": 1, "top_p": 1}, {"top_p": 1, "seed": 1})]
        await asyncio.gather(*[events_of(client, replace(request, messages=same)) for request in requests])
    assert len(server.requests) == 1
