from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from decimal import Decimal

import pytest

from app.engine.errors import ModelError, ModelErrorCode
from app.engine.events import WarningCode
from app.engine.messages import Message, Role
from app.engine.model import (
    FinishReason,
    ModelEvent,
    ModelNotice,
    ModelPolicies,
    ModelRequest,
    ModelResponse,
    StreamRestarted,
    TextDelta,
)
from app.engine.usage import Usage
from app.llm.retry import RetryClient

REQUEST = ModelRequest("m", [Message(Role.USER, "hi")], policies=ModelPolicies(max_attempts=3))
ANSWER = ModelResponse("p", "m", "ok", (), FinishReason.STOP, Usage(1, 1, 1), Decimal(0))


class FakeClient:
    """Each try yields what its list holds; an error in it is raised."""

    def __init__(self, *tries: Sequence[ModelEvent | ModelError]) -> None:
        self.tries = list(tries)
        self.begun = 0
        self.closed = 0

    async def stream(self, request: ModelRequest) -> AsyncGenerator[ModelEvent]:
        self.begun += 1
        try:
            for item in self.tries[self.begun - 1]:
                if isinstance(item, ModelError):
                    raise item
                yield item
        finally:
            self.closed += 1

    async def aclose(self) -> None:
        self.begun = -1


class Waits(list[float]):
    async def sleep(self, seconds: float) -> None:
        self.append(seconds)


def _error(code: ModelErrorCode = ModelErrorCode.SERVER_ERROR, retry_after_s: float | None = None) -> ModelError:
    return ModelError(code, "it broke", retry_after_s=retry_after_s)


async def _events(client: FakeClient, waits: Waits, request: ModelRequest = REQUEST) -> list[ModelEvent]:
    retry = RetryClient(client, sleep=waits.sleep, uniform=lambda: 1.0)
    return [event async for event in retry.stream(request)]


async def test_an_answer_at_once_waits_for_nothing() -> None:
    client, waits = FakeClient([TextDelta("ok"), ANSWER]), Waits()
    assert await _events(client, waits) == [TextDelta("ok"), ANSWER]
    assert waits == []


async def test_a_retryable_error_is_tried_again_with_growing_waits() -> None:
    client, waits = FakeClient([_error()], [_error()], [ANSWER]), Waits()
    assert await _events(client, waits) == [ANSWER]
    assert waits == [0.5, 1.0]


async def test_max_attempts_counts_the_first_try() -> None:
    client, waits = FakeClient([_error()], [_error()], [_error()]), Waits()
    with pytest.raises(ModelError):
        await _events(client, waits)
    assert client.begun == 3
    assert len(waits) == 2


@pytest.mark.parametrize("code", [ModelErrorCode.INVALID_REQUEST, ModelErrorCode.AUTHENTICATION])
async def test_an_error_that_trying_again_cannot_help_is_raised_at_once(code: ModelErrorCode) -> None:
    client, waits = FakeClient([_error(code)]), Waits()
    with pytest.raises(ModelError):
        await _events(client, waits)
    assert (client.begun, waits) == (1, [])


async def test_retry_after_is_waited_for_besides_the_jitter() -> None:
    client, waits = FakeClient([_error(ModelErrorCode.RATE_LIMITED, 7.0)], [ANSWER]), Waits()
    await _events(client, waits)
    assert waits == [7.5]


async def test_a_very_long_retry_after_is_bounded() -> None:
    client, waits = FakeClient([_error(ModelErrorCode.RATE_LIMITED, 86_400.0)], [ANSWER]), Waits()
    await _events(client, waits)
    assert waits == [60.5]


async def test_who_reads_along_is_told_of_a_long_wait_before_it_begins() -> None:
    client, waits = FakeClient([_error()], [_error(ModelErrorCode.RATE_LIMITED, 7.0)], [ANSWER]), Waits()
    stream = RetryClient(client, sleep=waits.sleep, uniform=lambda: 1.0).stream(REQUEST)
    notice = await anext(stream)
    assert waits == [0.5]
    assert notice == ModelNotice(
        WarningCode.MODEL_RETRIED,
        "it broke; m is asked again in 8.0 s",
        {"model": "m", "reason": "rate_limited", "attempt": 3, "wait_s": 8.0},
    )
    assert [event async for event in stream] == [ANSWER]


async def test_backoff_has_a_ceiling() -> None:
    request = ModelRequest("m", [], policies=ModelPolicies(max_attempts=8))
    client, waits = FakeClient(*[[_error()]] * 7, [ANSWER]), Waits()
    await _events(client, waits, request)
    assert waits == [0.5, 1.0, 2.0, 4.0, 8.0, 8.0, 8.0]


async def test_a_stream_that_breaks_after_output_says_that_it_restarts() -> None:
    client = FakeClient([TextDelta("o"), _error()], [TextDelta("ok"), ANSWER])
    events = await _events(client, Waits())
    assert events == [TextDelta("o"), StreamRestarted("it broke"), TextDelta("ok"), ANSWER]


async def test_a_try_that_gave_no_output_voids_nothing() -> None:
    client = FakeClient([TextDelta("o"), _error()], [_error()], [ANSWER])
    events = await _events(client, Waits())
    assert events == [TextDelta("o"), StreamRestarted("it broke"), ANSWER]


async def test_closing_the_stream_closes_the_one_inside() -> None:
    client = FakeClient([TextDelta("a"), TextDelta("b")])
    stream = RetryClient(client).stream(REQUEST)
    assert await anext(stream) == TextDelta("a")
    await stream.aclose()
    assert client.closed == 1


async def test_closing_the_client_closes_the_one_inside() -> None:
    client = FakeClient()
    await RetryClient(client).aclose()
    assert client.begun == -1
