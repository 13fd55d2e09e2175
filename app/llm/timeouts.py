"""The longest waits of a model call: for the first piece of the answer, and between two pieces."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

from app.engine.errors import ModelError, ModelErrorCode
from app.engine.model import ModelClient, ModelEvent, ModelRequest

# How long an answer that is always ready may keep the event loop to itself: until the loop has a turn, no timer rings,
# no other run goes on, and the replica's lease runs out.
TURN_EVERY_S = 0.01


class TimeoutClient:
    """A `ModelClient` that gives up on another one by `request.policies` and closes its connection."""

    def __init__(self, inner: ModelClient) -> None:
        self._inner = inner

    async def stream(self, request: ModelRequest) -> AsyncGenerator[ModelEvent]:
        """See `ModelClient.stream`; raises `ModelError` TIMEOUT where a wait was too long."""
        policies = request.policies
        watchdog = _Watchdog()
        limit_s, waited_for = policies.first_byte_s, "the first piece of the answer"
        async with aclosing(self._inner.stream(request)) as events:
            try:
                while True:
                    event = await watchdog.next_event(events, limit_s)
                    if event is None:
                        return
                    yield event
                    limit_s, waited_for = policies.between_chunks_s, "the next piece of the answer"
            except _Expired:
                raise ModelError(
                    ModelErrorCode.TIMEOUT, f"{request.model}: {waited_for} took longer than {limit_s:g} s"
                ) from None
            finally:
                watchdog.stop()

    async def aclose(self) -> None:
        """See `ModelClient.aclose`."""
        await self._inner.aclose()


class _Expired(Exception):
    """A wait was longer than its limit."""


class _Watchdog:
    """`asyncio.timeout` for many waits in a row, with one timer for all of them.

    A timer for each piece costs more than reading the piece. Here a wait only notes its deadline, and the
    timer, when it rings, looks whether the deadline of the moment has passed and is set again if not.
    """

    __slots__ = ("_deadline", "_expired", "_limit_s", "_loop", "_task", "_timer", "_turn_at")

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[object] | None = None
        self._deadline: float | None = None  # None while nothing is waited for
        self._limit_s = 0.0
        self._turn_at = self._loop.time() + TURN_EVERY_S
        self._expired = False

    async def next_event(self, events: AsyncIterator[ModelEvent], limit_s: float) -> ModelEvent | None:
        """The next event, or None after the last. Raises _Expired after `limit_s` seconds without one."""
        task = self._task = asyncio.current_task(self._loop)  # looking for the loop costs as much as all of the rest
        cancels_before = task.cancelling() if task is not None else 0
        now = self._loop.time()
        if now >= self._turn_at:
            await asyncio.sleep(0)
            now = self._loop.time()
            self._turn_at = now + TURN_EVERY_S
        self._deadline = now + limit_s
        if limit_s != self._limit_s:
            self._limit_s = limit_s
            self._set_timer(self._deadline)
        try:
            return await anext(events, None)
        except asyncio.CancelledError as cancelled:
            # A cancel from outside that came at the same time wins, as with asyncio.timeout.
            if self._expired and task is not None and task.uncancel() <= cancels_before:
                raise _Expired from cancelled
            raise
        finally:
            self._deadline = None

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _set_timer(self, when: float) -> None:
        self.stop()
        self._timer = self._loop.call_at(when, self._ring)

    def _ring(self) -> None:
        now = self._loop.time()
        if self._deadline is None:
            self._set_timer(now + self._limit_s)
        elif now < self._deadline:
            self._set_timer(self._deadline)
        elif self._task is not None:
            self._expired = True
            self._task.cancel()
