"""Counting tool calls."""

from __future__ import annotations

import time
from collections.abc import Callable

from app.engine.tools import ToolInvocation, ToolPort, ToolResult, ToolSpec
from app.telemetry.metrics import OTHER, Metrics, ToolOutcome


class MeteredTools:
    """A `ToolPort` that counts the calls of another one, by tool and outcome.

    A model may ask for tools that do not exist, by any name: these are counted as one.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, inner: ToolPort, metrics: Metrics, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self._inner = inner
        self._metrics = metrics
        self._clock = clock

    def spec(self, name: str) -> ToolSpec | None:
        """See `ToolPort.spec`."""
        return self._inner.spec(name)

    async def invoke(self, invocation: ToolInvocation) -> ToolResult:
        """See `ToolPort.invoke`."""
        name = invocation.tool_name if self._inner.spec(invocation.tool_name) is not None else OTHER
        started = self._clock()
        outcome = ToolOutcome.CANCELLED
        try:
            result = await self._inner.invoke(invocation)
            outcome = ToolOutcome.SUCCESS if result.success else ToolOutcome.FAILURE
        finally:
            self._metrics.tool_called(name, outcome, self._clock() - started)
        return result
