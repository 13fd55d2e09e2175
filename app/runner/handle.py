"""A run under way, as its caller holds it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from app.engine.events import StoredEvent
from app.engine.interactions import Answer, InteractionRecord
from app.engine.limits import Limits
from app.engine.ports import RunStore
from app.engine.result import AgentResult, result_of
from app.runner.engine import Engine
from app.runner.errors import RunAbandoned
from app.services.event_stream import ROWS_AT_ONCE, follow_run


@dataclass(frozen=True, slots=True)
class StreamEvent:
    """One event of a run, with the envelope's fields; `created_at` is as in the HTTP API."""

    seq: int
    type: str
    run_id: str
    thread_id: str
    agent_name: str
    state: str
    step: int
    message: str | None
    data: Mapping[str, Any]
    created_at: str
    schema_version: int


class RunHandle:
    """A run under way."""

    def __init__(self, store: RunStore, engine: Engine, run_id: str, leave: Callable[[], Awaitable[None]]) -> None:
        self._store = store
        self._engine = engine
        self._leave = leave
        self._closed = False
        self.run_id = run_id

    @property
    def events(self) -> AsyncGenerator[StreamEvent]:
        """The run's events from the first one on, until it is over; each access starts anew.

        Raises (while it is read): RunAbandoned.
        """
        return self._follow()

    async def pause(self) -> None:
        """Stop at the next step boundary. Raises: RunConflict."""
        await self._engine.control.pause(self.run_id)

    async def resume(self, limits: Limits | None = None) -> None:
        """Go on. Raises: RunConflict, LimitReached."""
        await self._engine.control.resume(self.run_id, limits)

    async def cancel(self) -> None:
        """End the run for good, now."""
        await self._engine.control.cancel(self.run_id)

    async def interrupt(self) -> None:
        """End the run now; it may be resumed."""
        await self._engine.control.interrupt(self.run_id)

    async def interactions(self) -> list[InteractionRecord]:
        """The run's questions, oldest first."""
        return await self._store.interactions(self.run_id)

    async def answer(self, interaction_id: str, answer: Answer) -> InteractionRecord:
        """Decide a question. Raises: InteractionNotFound, InteractionDecided."""
        return await self._engine.control.answer(self.run_id, interaction_id, answer)

    async def submit_tool_result(self, tool_call_id: str, *, output: Any = None, error: str | None = None) -> None:
        """Give the result of a call that the run waits for: a JSON value, or one line of `error`.

        Raises:
            ToolCallNotFound: the run has no such call.
            ResultConflict: the call has another result, or the run is over.
        """
        text = None if error is not None else orjson.dumps(output).decode()
        await self._engine.control.post_result(self.run_id, tool_call_id, text, error)

    async def await_result(self) -> AgentResult:
        """Wait until the run is over. A paused or waiting run is not: somebody has to do their part.

        Raises:
            RunAbandoned: it will not be over: its runner was closed, or its end cannot be stored.
        """
        try:
            async for _ in self._follow():
                pass
        except RunAbandoned:
            await self.close()
            raise
        await self.close()
        return result_of(await self._store.get(self.run_id))

    async def close(self) -> None:
        """Let go of the run's connections; done by `await_result`."""
        if not self._closed:
            self._closed = True
            await self._leave()

    async def _follow(self) -> AsyncGenerator[StreamEvent]:
        store = self._store

        async def rows(cursor: int) -> list[StoredEvent]:
            return await store.read_events(self.run_id, cursor, ROWS_AT_ONCE)

        async def ended(cursor: int) -> bool:
            run = await store.get(self.run_id, with_tools=False)
            if not run.status.terminal:
                self._engine.refuse_abandoned(self.run_id)
            return run.status.terminal and run.last_event_seq <= cursor

        async for event in follow_run(self._engine.bus, self.run_id, 0, rows, ended):
            yield StreamEvent(**event.as_dict())


class RunStream:
    """The events of a run: `async for event in stream`, then `stream.result`."""

    def __init__(self, handle: RunHandle) -> None:
        self._handle = handle
        self._result: AgentResult | None = None

    @property
    def result(self) -> AgentResult:
        """Raises RuntimeError while the events have not all been read."""
        if self._result is None:
            raise RuntimeError("the run's result is there when all of its events have been read")
        return self._result

    async def __aiter__(self) -> AsyncGenerator[StreamEvent]:
        async for event in self._handle.events:
            yield event
        self._result = await self._handle.await_result()
