"""Waits here end by an event or never; the limits are short, but no outcome hangs on how short."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest

from app.engine.errors import ModelError, ModelErrorCode
from app.engine.model import ModelEvent, ModelPolicies, ModelRequest, TextDelta
from app.llm.timeouts import TimeoutClient

LONG_S = 3600.0


class SilentAfter:
    """Yields so many pieces, then says nothing for ever."""

    def __init__(self, pieces: int) -> None:
        self.pieces = pieces
        self.waiting = asyncio.Event()
        self.closed = asyncio.Event()

    async def stream(self, request: ModelRequest) -> AsyncGenerator[ModelEvent]:
        try:
            for _ in range(self.pieces):
                yield TextDelta("x")
            self.waiting.set()
            await asyncio.Event().wait()
        finally:
            self.closed.set()

    async def aclose(self) -> None: ...


def _request(first_byte_s: float, between_chunks_s: float) -> ModelRequest:
    policies = ModelPolicies(first_byte_s=first_byte_s, between_chunks_s=between_chunks_s)
    return ModelRequest("openai/m", [], policies=policies)


async def _read(client: SilentAfter, request: ModelRequest) -> list[ModelEvent]:
    return [event async for event in TimeoutClient(client).stream(request)]


@pytest.mark.parametrize(
    ("pieces", "request_", "what"),
    [
        (0, _request(0.01, LONG_S), "first piece of the answer took longer than 0.01 s"),
        (1, _request(LONG_S, 0.01), "next piece of the answer took longer than 0.01 s"),
        (50, _request(LONG_S, 0.01), "next piece of the answer took longer than 0.01 s"),
    ],
)
async def test_silence_is_a_timeout_and_closes_the_stream(pieces: int, request_: ModelRequest, what: str) -> None:
    client = SilentAfter(pieces)
    with pytest.raises(ModelError, match=what) as caught:
        await _read(client, request_)
    assert caught.value.code is ModelErrorCode.TIMEOUT
    assert caught.value.retryable
    assert client.closed.is_set()


async def test_a_stream_that_never_pauses_leaves_the_loop_its_turns() -> None:
    class Flood(SilentAfter):
        async def stream(self, request: ModelRequest) -> AsyncGenerator[ModelEvent]:
            for _ in range(self.pieces):
                yield TextDelta("x")

    stream = TimeoutClient(Flood(10_000_000)).stream(_request(LONG_S, LONG_S))
    turned = asyncio.Event()
    asyncio.get_running_loop().call_soon(turned.set)
    read = 0
    async for _ in stream:
        read += 1
        if turned.is_set():
            break
    await stream.aclose()
    assert 0 < read < 10_000_000


async def test_the_task_is_not_left_cancelled_by_a_timeout() -> None:
    with pytest.raises(ModelError):
        await _read(SilentAfter(0), _request(0.01, LONG_S))
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    await asyncio.sleep(0)


async def test_the_time_that_the_reader_takes_is_not_the_models() -> None:
    client = SilentAfter(3)
    stream = TimeoutClient(client).stream(_request(LONG_S, 0.01))
    rang = asyncio.Event()
    for _ in range(3):
        await anext(stream)
        asyncio.get_running_loop().call_later(0.05, rang.set)  # five times the limit, spent by the reader
        await rang.wait()
        rang.clear()
    await stream.aclose()
    assert client.closed.is_set()


async def test_a_cancel_from_outside_stays_a_cancel() -> None:
    client = SilentAfter(1)
    task = asyncio.create_task(_read(client, _request(LONG_S, LONG_S)))
    await client.waiting.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert client.closed.is_set()


async def test_a_stream_that_ends_leaves_no_timer() -> None:
    class Short(SilentAfter):
        async def stream(self, request: ModelRequest) -> AsyncGenerator[ModelEvent]:
            yield TextDelta("x")

    assert await _read(Short(1), _request(LONG_S, LONG_S)) == [TextDelta("x")]
