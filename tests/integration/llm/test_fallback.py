"""Another model in place of one that cannot answer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from app.engine.errors import ModelErrorCode
from app.engine.events import WarningCode
from app.engine.model import ModelNotice, ModelPolicies, ModelRequest, ModelResponse, StreamRestarted, TextDelta
from app.engine.usage import Spend
from app.llm.circuit_breaker import CircuitLimits
from tests.integration.llm.calls import a_client, a_provider, a_request, answer_of, events_of, failure_of, only
from tests.model_server import ModelServer, Reply


def _request(*fallback_models: str, tries: int = 2, **more: Any) -> ModelRequest:
    return a_request(fallback_models=fallback_models, policies=ModelPolicies(tries), **more)


@pytest.mark.parametrize(
    ("reply", "tries", "reason"),
    [
        (Reply.error(500), 2, "provider_error"),
        (Reply.error(429), 2, "rate_limited"),
        (Reply.error(401), 1, "authentication_failed"),
        (Reply.error(404), 1, "model_not_found"),
        (Reply(cut_after=0), 2, "connection_failed"),
    ],
)
async def test_the_next_model_is_asked_when_the_tries_of_one_are_spent_or_cannot_help(
    server: ModelServer, other: ModelServer, reply: Reply, tries: int, reason: str
) -> None:
    server.script([reply] * 2)
    async with a_client({"openai": a_provider(server), "spare": a_provider(other)}) as client:
        events = await events_of(client, _request("spare/small"))
    assert len(server.requests) == tries
    assert [request.body["model"] for request in other.requests] == ["small"]
    assert [type(event) for event in events] == [ModelNotice, TextDelta, ModelResponse]
    (notice,) = only(events, ModelNotice)
    assert notice.code is WarningCode.FALLBACK_USED
    assert notice.data == {"from_model": "openai/gpt-4o", "to_model": "spare/small", "reason": reason}
    (answer,) = only(events, ModelResponse)
    assert answer.provider == "spare"


@pytest.mark.parametrize("reply", [Reply.error(400, "no such field"), Reply.error(400, "maximum context length")])
async def test_what_the_caller_got_wrong_is_not_asked_of_another_model(
    server: ModelServer, other: ModelServer, reply: Reply
) -> None:
    server.script([reply])
    async with a_client({"openai": a_provider(server), "spare": a_provider(other)}) as client:
        error = await failure_of(client, _request("spare/small"))
    assert not error.retryable
    assert "asked in order" not in error.message
    assert not other.requests


async def test_output_of_the_model_that_failed_is_void_and_charged(server: ModelServer, other: ModelServer) -> None:
    server.script([Reply(text=["Hal"], cut_after=1)])
    async with a_client({"openai": a_provider(server), "spare": a_provider(other)}) as client:
        events = await events_of(client, _request("spare/small", tries=1))
    kinds = [type(event) for event in events]
    assert kinds == [TextDelta, Spend, StreamRestarted, ModelNotice, TextDelta, ModelResponse]


async def test_output_is_made_void_once(server: ModelServer, other: ModelServer) -> None:
    server.script([Reply(text=["Hal"], cut_after=1), Reply.error(500)])
    async with a_client({"openai": a_provider(server), "spare": a_provider(other)}) as client:
        events = await events_of(client, _request("spare/small"))
    assert len(only(events, StreamRestarted)) == 1


async def test_if_all_models_fail_the_last_error_names_every_one_that_was_asked(
    server: ModelServer, other: ModelServer
) -> None:
    server.script([Reply.error(500, "first")])
    other.script([Reply.error(503, "second"), Reply(text=["Hal"], cut_after=1)])
    async with a_client({"openai": a_provider(server), "spare": a_provider(other)}) as client:
        error = await failure_of(client, _request("spare/one", "openai/gpt-4o", "spare/two", tries=1))
    assert error.code is ModelErrorCode.CONNECTION
    assert error.message.endswith("(asked in order: openai/gpt-4o, spare/one, spare/two)")
    assert error.spent is not None
    assert error.spent.model == "spare/two"
    assert len(server.requests) == 1


async def test_each_model_is_asked_in_its_turn_and_none_twice(server: ModelServer, other: ModelServer) -> None:
    server.script([Reply.error(500)] * 9)
    other.script([Reply.error(500)] * 9)
    async with a_client({"openai": a_provider(server), "spare": a_provider(other)}) as client:
        await failure_of(client, _request("spare/a", "openai/b", "spare/c", tries=1))
    assert [request.body["model"] for request in server.requests] == ["gpt-4o", "b"]
    assert [request.body["model"] for request in other.requests] == ["a", "c"]


async def test_an_open_circuit_leads_to_the_next_model_without_waiting(server: ModelServer, other: ModelServer) -> None:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    server.script([Reply.error(500)])
    providers = {"openai": a_provider(server, circuit=CircuitLimits(1, open_s=5.0)), "spare": a_provider(other)}
    async with a_client(providers, sleep=sleep) as client:
        assert (await answer_of(client, _request("spare/small"))).provider == "spare"
        assert (await answer_of(client, _request("spare/small"))).provider == "spare"
        assert len(server.requests) == 1
        assert waits == [0.0]  # between the first failure, which opened the circuit, and the try that met it open
        error = await failure_of(client, _request())
    assert error.code is ModelErrorCode.CIRCUIT_OPEN
    assert 0 < waits[-1] <= 5


@pytest.mark.parametrize(("asked_s", "tries"), [("9", 2), ("11", 1)])
async def test_a_model_that_asks_for_a_long_wait_is_left_for_the_next(
    server: ModelServer, other: ModelServer, asked_s: str, tries: int
) -> None:
    server.script([Reply.error(429, headers={"Retry-After": asked_s})] * tries)
    async with a_client({"openai": a_provider(server), "spare": a_provider(other)}) as client:
        assert (await answer_of(client, _request("spare/small"))).provider == "spare"
        assert len(server.requests) == tries
        server.script([Reply.error(429, headers={"Retry-After": asked_s})])
        assert (await answer_of(client, replace(_request(), messages=[]))).provider == "openai"
