"""Equal calls at the same time, made once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing
from dataclasses import replace
from decimal import Decimal
from typing import NamedTuple

from app.engine.errors import ModelError
from app.engine.model import (
    ModelClient,
    ModelEvent,
    ModelNotice,
    ModelPolicies,
    ModelRequest,
    ModelResponse,
    StreamRestarted,
)
from app.engine.usage import Spend, Usage
from app.llm.request_key import request_key


class _Key(NamedTuple):
    """Calls with the same one are made once: they ask the same, as hard, of the same models."""

    request: bytes
    policies: ModelPolicies
    fallback_models: tuple[str, ...]


class CoalescingClient:
    """A `ModelClient` that makes equal calls of another one once while they are under way, where
    `request.policies.coalesce` is set.

    Every caller gets the whole stream, or the error, whenever it joined. The one that comes to the end first is charged
    with all of it; for the others the answer is `reused`. A caller that leaves takes nothing from the rest, and the
    last one to leave ends the call.
    """

    def __init__(self, inner: ModelClient) -> None:
        self._inner = inner
        self._under_way: dict[_Key, _SharedCall] = {}

    def stream(self, request: ModelRequest) -> AsyncGenerator[ModelEvent]:
        """See `ModelClient.stream`."""
        return self._joined(request) if request.policies.coalesce else self._inner.stream(request)

    async def aclose(self) -> None:
        """See `ModelClient.aclose`."""
        await self._inner.aclose()

    async def _joined(self, request: ModelRequest) -> AsyncGenerator[ModelEvent]:
        key = _Key(request_key(request), request.policies, tuple(request.fallback_models))
        call = self._under_way.get(key)
        if call is None:
            call = self._under_way[key] = _SharedCall(self._inner.stream(request), lambda: self._over(key))
        call.readers += 1
        try:
            async with aclosing(call.read()) as events:
                async for event in events:
                    yield event
        finally:
            call.readers -= 1
            if call.readers == 0:
                await call.cancel()

    def _over(self, key: _Key) -> None:
        """From now on an equal call is another one."""
        self._under_way.pop(key, None)


class _SharedCall:
    """One call with any number of readers, in a task of its own.

    Args:
        over: called once when it has ended, or nobody reads it any more.
    """

    def __init__(self, events: AsyncGenerator[ModelEvent], over: Callable[[], None]) -> None:
        self.readers = 0
        self._over = over
        self._open = True
        self._events: list[ModelEvent] = []  # since it last began anew
        self._restarts = 0
        self._restart_reason = ""
        self._notices: list[ModelNotice] = []
        self._spent: list[Spend] = []
        self._response: ModelResponse | None = None
        self._error: ModelError | None = None
        self._crash: Exception | None = None
        self._charged = False
        self._news = asyncio.Event()
        self._task = asyncio.create_task(self._run(events), name="shared-model-call")

    async def read(self) -> AsyncGenerator[ModelEvent]:
        """All of it, from the beginning; what others have read of a try that broke off is left out.

        Raises:
            ModelError: it failed.
        """
        place = told = 0
        restarts, has_output = self._restarts, False
        while True:
            news = self._news
            if restarts != self._restarts:
                restarts, place = self._restarts, 0
                if has_output:
                    has_output = False
                    yield StreamRestarted(self._restart_reason)
            elif told < len(self._notices):
                told += 1
                yield self._notices[told - 1]
            elif place < len(self._events):
                place, has_output = place + 1, True
                yield self._events[place - 1]
            elif self._open:
                await news.wait()
            else:
                break
        charged, self._charged = not self._charged, True
        for event in self._end_for(charged=charged):
            yield event

    async def cancel(self) -> None:
        """Nobody reads it any more: end it, and have its connection closed."""
        self._end()
        self._task.cancel()
        await asyncio.wait({self._task})

    async def _run(self, events: AsyncGenerator[ModelEvent]) -> None:
        try:
            async with aclosing(events):
                async for event in events:
                    self._take(event)
        except ModelError as error:
            self._error = error
        except Exception as error:  # noqa: BLE001 - every reader raises it
            self._crash = error
        finally:
            self._end()

    def _take(self, event: ModelEvent) -> None:
        match event:
            case Spend():
                self._spent.append(event)
                return
            case ModelResponse():
                self._response = event
                return
            case StreamRestarted(reason):
                self._events = []
                self._restarts += 1
                self._restart_reason = reason
            case ModelNotice():
                self._notices.append(event)
            case _:
                self._events.append(event)
        self._tell()

    def _end(self) -> None:
        if self._open:
            self._open = False
            self._over()
            self._tell()

    def _tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    def _end_for(self, *, charged: bool) -> Iterator[ModelEvent]:
        """How it ended, for the one that is charged with it or for another.

        Raises:
            ModelError: it failed.
        """
        if charged:
            yield from self._spent
        if self._crash is not None:
            raise self._crash
        if self._error is not None:
            error = self._error
            own = ModelError(error.code, error.message, status=error.status, retry_after_s=error.retry_after_s)
            own.spent = error.spent if charged else None
            raise own
        if self._response is not None:
            yield self._response if charged else _reused(self._response)


def _reused(response: ModelResponse) -> ModelResponse:
    return replace(
        response, usage=Usage(), cost_usd=Decimal(0), usage_estimated=False, cache_write_tokens=0, reused=True
    )
