"""What calls without an answer have cost."""

from __future__ import annotations

from decimal import Decimal

import pytest

from app.engine.errors import ModelErrorCode
from app.engine.model import ModelPolicies, ModelResponse, StreamRestarted
from app.engine.usage import Spend
from app.llm.pricing import bundled_prices
from tests.integration.llm.calls import ONCE, a_client, a_provider, a_request, events_of, failure_of, only
from tests.model_server import ModelServer, Reply

# 40 characters in a message: 10 tokens, and 4 for the message itself.
REQUEST = a_request("x" * 40)


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        (Reply(text=["word "] * 8, cut_after=8), ModelErrorCode.CONNECTION),
        (Reply(text=["word "] * 8, done=False, usage=None, finish_reason=None), ModelErrorCode.INVALID_RESPONSE),
        (Reply(text=["word "] * 8, done=False, usage=None, finish_reason=None, hold=True), ModelErrorCode.TIMEOUT),
        (Reply(text=["word "] * 4, reasoning=["word "] * 4, cut_after=8), ModelErrorCode.CONNECTION),
        (
            Reply(text="", tool_calls=[{"name": "lookup", "arguments": "y" * 34}], cut_after=3),
            ModelErrorCode.CONNECTION,
        ),
    ],
)
async def test_a_stream_that_breaks_off_has_cost_its_input_and_what_it_said(
    server: ModelServer, reply: Reply, code: ModelErrorCode
) -> None:
    server.script([reply])
    async with a_client({"openai": a_provider(server)}) as client:
        error = await failure_of(client, a_request("x" * 40, policies=ModelPolicies(1, between_chunks_s=0.2)))
    assert error.code is code
    spend = error.spent
    assert spend is not None
    assert (spend.usage.llm_calls, spend.usage.input_tokens, spend.usage.output_tokens) == (1, 14, 10)
    assert spend.cost_usd == bundled_prices().cost_of("openai/gpt-4o", spend.usage)
    assert spend.cost_usd != Decimal(0)
    assert "openai/gpt-4o" in spend.reason


@pytest.mark.parametrize(
    "reply",
    [
        Reply.error(429),
        Reply.error(400),
        Reply.error(503),
        Reply(cut_after=0),
        Reply(delay_s=600),
        Reply(first_chunk_delay_s=600),
        Reply(events=[{"error": {"message": "overloaded", "code": 503}}]),
    ],
)
async def test_a_call_that_was_refused_or_never_began_to_answer_has_cost_nothing(
    server: ModelServer, reply: Reply
) -> None:
    server.script([reply])
    async with a_client({"openai": a_provider(server)}) as client:
        error = await failure_of(client, a_request(policies=ModelPolicies(1, first_byte_s=0.2)))
    assert error.spent is None


async def test_each_try_that_broke_off_is_told_before_the_next_and_the_last_with_its_error(
    server: ModelServer,
) -> None:
    cut = [Reply(text=["word "] * 8, cut_after=pieces) for pieces in (4, 8)]
    request = a_request("x" * 40, policies=ModelPolicies(3))
    async with a_client({"openai": a_provider(server)}) as client:
        server.script([*cut, Reply()])
        events = await events_of(client, request)
        outputs = [spend.usage.output_tokens for spend in only(events, Spend)]
        kinds = [type(event) for event in events if isinstance(event, Spend | StreamRestarted | ModelResponse)]
        assert outputs == [5, 10]
        assert kinds == [Spend, StreamRestarted, Spend, StreamRestarted, ModelResponse]
        server.script([cut[0], Reply.error(500), cut[1]])
        error = await failure_of(client, request)
    assert error.spent is not None
    assert error.spent.usage.output_tokens == 10


async def test_what_breaks_off_at_a_model_without_a_price_costs_what_nobody_knows(server: ModelServer) -> None:
    server.script([Reply(cut_after=1)])
    async with a_client({"local": a_provider(server)}) as client:
        error = await failure_of(client, a_request(model="local/llama3", policies=ONCE))
    assert error.spent is not None
    assert error.spent.cost_usd is None
