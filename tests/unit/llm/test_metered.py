from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from decimal import Decimal
from itertools import count

import pytest

from app.engine.errors import ModelError, ModelErrorCode
from app.engine.messages import Message, Role
from app.engine.model import FinishReason, ModelEvent, ModelRequest, ModelResponse, TextDelta
from app.engine.usage import Spend, Usage
from app.llm.metered import MeteredClient
from app.llm.retry import RetryClient
from app.telemetry.metrics import Metrics
from tests.exposition import Exposition

REQUEST = ModelRequest("acme/m", [Message(Role.USER, "hi")])
ANSWER = ModelResponse("acme", "m-1", "ok", (), FinishReason.STOP, Usage(1, 30, 4), Decimal("0.5"))
DURATION = "gen_ai_client_operation_duration_seconds"


class FakeClient:
    """Each try yields what its list holds; an error in it is raised."""

    def __init__(self, *tries: list[ModelEvent | Exception]) -> None:
        self._tries = iter(tries)
        self.closed = False

    async def stream(self, request: ModelRequest) -> AsyncGenerator[ModelEvent]:
        for item in next(self._tries):
            if isinstance(item, Exception):
                raise item
            yield item

    async def aclose(self) -> None:
        self.closed = True


class Seconds:
    """A clock that is two seconds on whenever it is asked."""

    def __init__(self) -> None:
        self._ticks: Iterator[int] = count(0, 2)

    def __call__(self) -> float:
        return next(self._ticks)


async def test_an_answer_is_passed_on_and_counted_with_what_it_took() -> None:
    metrics = Metrics()
    client = MeteredClient(FakeClient([TextDelta("ok"), ANSWER]), metrics, clock=Seconds())
    assert [event async for event in client.stream(REQUEST)] == [TextDelta("ok"), ANSWER]
    seen = Exposition(metrics.exposition())
    whose = {"gen_ai_provider_name": "acme", "gen_ai_request_model": "m"}
    assert seen.value(f"{DURATION}_count", **whose) == 1
    assert seen.value(f"{DURATION}_sum", **whose) == 2.0
    assert seen.value("gen_ai_client_token_usage_sum", gen_ai_token_type="input") == 30
    assert seen.value("gen_ai_client_token_usage_sum", gen_ai_token_type="output") == 4
    assert seen.value("agent_runner_model_cost_usd_total", **whose) == 0.5


async def test_every_try_is_counted_by_how_it_ended() -> None:
    async def no_wait(seconds: float) -> None:
        pass

    metrics = Metrics()
    refusal = ModelError(ModelErrorCode.RATE_LIMITED, "slow down")
    client = RetryClient(MeteredClient(FakeClient([refusal], [refusal], [ANSWER]), metrics), sleep=no_wait)
    assert [event async for event in client.stream(REQUEST)] == [ANSWER]
    seen = Exposition(metrics.exposition())
    assert seen.value(f"{DURATION}_count", error_type="rate_limited") == 2
    assert seen.value(f"{DURATION}_count", error_type="") == 1
    assert seen.value("gen_ai_client_token_usage_count", gen_ai_token_type="input") == 1


async def test_a_call_that_its_reader_leaves_was_cancelled() -> None:
    metrics = Metrics()
    stream = MeteredClient(FakeClient([TextDelta("o"), ANSWER]), metrics).stream(REQUEST)
    await anext(stream)
    await stream.aclose()
    seen = Exposition(metrics.exposition())
    assert seen.value(f"{DURATION}_count", error_type="cancelled") == 1
    assert seen.value("gen_ai_client_token_usage_count") == 0


async def test_an_error_without_a_name_is_counted_and_raised() -> None:
    metrics = Metrics()
    client = MeteredClient(FakeClient([ZeroDivisionError()]), metrics)
    with pytest.raises(ZeroDivisionError):
        await anext(client.stream(REQUEST))
    assert Exposition(metrics.exposition()).value(f"{DURATION}_count", error_type="_OTHER") == 1


async def test_what_a_call_took_that_broke_off_is_counted() -> None:
    metrics = Metrics()
    broken = ModelError(ModelErrorCode.CONNECTION, "gone")
    broken.spent = Spend("acme/m", Usage(1, 30, 2), Decimal("0.25"), "it broke off")
    with pytest.raises(ModelError):
        _ = [event async for event in MeteredClient(FakeClient([TextDelta("o"), broken]), metrics).stream(REQUEST)]
    seen = Exposition(metrics.exposition())
    assert seen.value(f"{DURATION}_count", error_type="connection_failed") == 1
    assert seen.value("gen_ai_client_token_usage_sum", gen_ai_token_type="input") == 30
    assert seen.value("gen_ai_client_token_usage_sum", gen_ai_token_type="output") == 2
    assert seen.value("agent_runner_model_cost_usd_total") == 0.25


async def test_an_answer_of_unknown_price_costs_nothing_that_could_be_counted() -> None:
    metrics = Metrics()
    unpriced = ModelResponse("acme", "m", "ok", (), FinishReason.STOP, Usage(1, 1, 1), None)
    client = MeteredClient(FakeClient([unpriced]), metrics)
    assert [event async for event in client.stream(REQUEST)] == [unpriced]
    assert b"cost" not in metrics.exposition()


async def test_closing_the_client_closes_the_one_inside() -> None:
    inner = FakeClient()
    await MeteredClient(inner, Metrics()).aclose()
    assert inner.closed
