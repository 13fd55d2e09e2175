"""The tool calls of one step, under way together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from app.engine.state import OpenCall
from app.engine.tools import ToolInvocation, ToolPort, ToolResult

MAX_PARALLEL_TOOLS = 16


class ToolBatch:
    """Starts calls, at most `MAX_PARALLEL_TOOLS` at a time, and hands out results as they come.

    Args:
        invocation: makes the port's argument of a call.
    """

    def __init__(self, tools: ToolPort, invocation: Callable[[OpenCall], ToolInvocation]) -> None:
        self._tools = tools
        self._invocation = invocation
        self._slots = asyncio.Semaphore(MAX_PARALLEL_TOOLS)
        self._tasks: dict[asyncio.Task[ToolResult], int] = {}

    async def next_results(self, calls: Iterable[OpenCall]) -> tuple[tuple[int, ToolResult], ...]:
        """Start those calls that are not under way, and wait until at least one has ended.

        Returns:
            (call index, result) of all that have ended, in the order of the calls.
        """
        under_way = set(self._tasks.values())
        for call in calls:
            if call.index not in under_way:
                self._tasks[asyncio.create_task(self._run(call), name=f"tool-{call.call.name}")] = call.index
        done, _ = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        return tuple(sorted(((self._tasks.pop(task), task.result()) for task in done), key=lambda ended: ended[0]))

    def cancel(self) -> None:
        """Cancel what is still under way. Tools that do not listen are left behind; none of their results counts."""
        for task in self._tasks:
            task.cancel()
        self._tasks = {}

    async def _run(self, call: OpenCall) -> ToolResult:
        async with self._slots:
            return await self._tools.invoke(self._invocation(call))
