"""A second call beside one that says nothing."""

from __future__ import annotations

import pytest

from app.engine.errors import ModelErrorCode
from app.engine.model import ModelPolicies, ModelResponse, TextDelta
from app.engine.usage import Spend
from app.llm.rate_limit import RateLimit
from tests.integration.llm.calls import (
    a_client,
    a_provider,
    a_request,
    answer_of,
    begun,
    ended,
    events_of,
    failure_of,
    only,
    spent,
)
from tests.model_server import ModelServer, Reply

REQUEST = a_request(policies=ModelPolicies(1, hedge_after_s=0.1))
SILENT = Reply(first_chunk_delay_s=600)
BUSY = Reply(delay_s=600)
LATER = 600.0


@pytest.mark.parametrize("silent", [SILENT, BUSY])
async def test_the_first_to_answer_wins_and_the_other_is_left_and_counted(server: ModelServer, silent: Reply) -> None:
    server.script([silent, Reply(usage={"prompt_tokens": 1000, "completion_tokens": 5})])
    async with a_client({"openai": a_provider(server)}) as client:
        events = await events_of(client, REQUEST)
        await server.until(lambda server: server.aborted == 1 and server.open == 0)
    assert [type(event) for event in events] == [TextDelta, Spend, ModelResponse]
    assert spent(events) == [(1000, 0)]  # as many tokens as the same request was counted for
    (spend,) = only(events, Spend)
    assert spend.cost_usd is not None
    assert spend.cost_usd > 0
    assert server.requests[0].body == server.requests[1].body


async def test_a_call_that_answers_in_time_is_made_once(server: ModelServer) -> None:
    async with a_client({"openai": a_provider(server)}) as client:
        events = await events_of(client, a_request(policies=ModelPolicies(1, hedge_after_s=LATER)))
    assert [type(event) for event in events] == [TextDelta, ModelResponse]
    assert len(server.requests) == 1


async def test_a_slow_first_call_may_still_win(server: ModelServer) -> None:
    server.script([Reply(text="first", delay_s=0.3), BUSY])
    async with a_client({"openai": a_provider(server)}) as client:
        events = await events_of(client, REQUEST)
        await server.until(lambda server: server.aborted == 1 and server.open == 0)
    assert only(events, ModelResponse)[0].text == "first"
    assert len(only(events, Spend)) == 1


async def test_where_one_of_them_fails_the_other_goes_on_and_nothing_is_charged(server: ModelServer) -> None:
    server.script([Reply(text="first", delay_s=0.4), Reply.error(500)])
    async with a_client({"openai": a_provider(server)}) as client:
        events = await events_of(client, REQUEST)
        assert only(events, ModelResponse)[0].text == "first"
        server.script([Reply(status=500, body="no", delay_s=0.4), Reply(text="second", delay_s=0.6)])
        more = await events_of(client, REQUEST)
    assert only(more, ModelResponse)[0].text == "second"
    assert not spent(events)
    assert not spent(more)


async def test_where_both_fail_the_call_has_failed(server: ModelServer) -> None:
    server.script([Reply(status=500, body="one", delay_s=0.3), Reply(status=503, body="two", delay_s=0.4)])
    async with a_client({"openai": a_provider(server)}) as client:
        error = await failure_of(client, REQUEST)
    assert error.status == 503


async def test_a_failure_before_the_time_is_not_hedged(server: ModelServer) -> None:
    server.script([Reply.error(500)])
    async with a_client({"openai": a_provider(server)}) as client:
        await failure_of(client, REQUEST)
    assert len(server.requests) == 1


async def test_the_loser_counts_although_the_winner_breaks_off(server: ModelServer) -> None:
    server.script([SILENT, Reply(text=["word "] * 4, cut_after=4)])
    async with a_client({"openai": a_provider(server)}) as client:
        events = await events_of(client, a_request(policies=ModelPolicies(2, hedge_after_s=0.1)))
    assert spent(events) == [(5, 0), (5, 5)]


async def test_a_call_that_never_left_costs_nothing(server: ModelServer) -> None:
    provider = a_provider(
        server,
        rate_limit=RateLimit(requests=1, wait_s=60),
    )
    server.script([Reply(delay_s=0.4)])
    async with a_client({"openai": provider}) as client:
        events = await events_of(client, REQUEST)
    assert not spent(events)
    assert len(server.requests) == 1


async def test_cancelling_the_caller_ends_both_calls(server: ModelServer) -> None:
    server.script([SILENT, SILENT])
    async with a_client({"openai": a_provider(server)}) as client:
        call = await begun(client, REQUEST)
        await server.until(lambda server: server.open == 2)
        await ended(call)
        await server.until(lambda server: server.aborted == 2 and server.open == 0)


async def test_both_calls_have_the_timeouts_of_one(server: ModelServer) -> None:
    server.script([SILENT, SILENT, Reply()])
    async with a_client({"openai": a_provider(server)}) as client:
        policies = ModelPolicies(1, first_byte_s=0.4, hedge_after_s=0.1)
        assert (await failure_of(client, a_request(policies=policies))).code is ModelErrorCode.TIMEOUT
        assert (await answer_of(client, REQUEST)).text == "Hello."
