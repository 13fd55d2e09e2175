"""The tool calls of one step, under way together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from app.engine.moves import CallMove, Deferred, Ended, Prepared
from app.engine.state import OpenCall
from app.engine.tools import Deferral, ToolInvocation, ToolPort, ToolResult

MAX_PARALLEL_TOOLS = 16


class ToolBatch:
    """Prepares and runs calls, at most `MAX_PARALLEL_TOOLS` at a time, and hands out what becomes of them as it comes.

    Args:
        invocation: makes the port's argument of a call.
    """

    def __init__(self, tools: ToolPort, invocation: Callable[[OpenCall], ToolInvocation]) -> None:
        self._tools = tools
        self._invocation = invocation
        self._slots = asyncio.Semaphore(MAX_PARALLEL_TOOLS)
        self._tasks: dict[asyncio.Task[CallMove], int] = {}
        self._news = asyncio.Event()

    async def next_moves(self, calls: Iterable[OpenCall]) -> tuple[CallMove, ...]:
        """Start those calls that are not under way, and wait until at least one has moved, or until `wake`.

        Returns:
            what has become of calls, in their order; empty if woken before anything had.
        """
        under_way = set(self._tasks.values())
        for call in calls:
            if call.index not in under_way:
                task = asyncio.create_task(self._run(call), name=f"tool-{call.call.name}")
                self._tasks[task] = call.index
                task.add_done_callback(lambda _: self._news.set())
        await self._news.wait()
        self._news.clear()
        done = sorted((task for task in self._tasks if task.done()), key=self._tasks.__getitem__)
        for task in done:
            del self._tasks[task]
        return tuple(task.result() for task in done)

    def wake(self) -> None:
        """Let `next_moves` return."""
        self._news.set()

    def under_way(self, index: int) -> bool:
        """Whether the call has been begun here and not ended."""
        return index in self._tasks.values()

    def keep_only(self, indexes: set[int]) -> None:
        """Cancel the calls that are open no more: their results came from elsewhere."""
        for task in [task for task, index in self._tasks.items() if index not in indexes]:
            del self._tasks[task]
            task.cancel()

    def cancel(self) -> None:
        """Cancel what is still under way. Tools that do not listen are left behind; none of their results counts."""
        self.keep_only(set())

    async def _run(self, call: OpenCall) -> CallMove:
        async with self._slots:
            if not call.judged:
                prepared = await self._tools.prepare(self._invocation(call))
                return Prepared(call.index, prepared) if isinstance(prepared, str) else Ended(call.index, prepared)
            outcome: ToolResult | Deferral = await self._tools.invoke(self._invocation(call))
        return Deferred(call.index, outcome) if isinstance(outcome, Deferral) else Ended(call.index, outcome)
