"""Counting tool calls."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from app.engine.tool_definitions import Toolbox
from app.engine.tools import Deferral, ToolInvocation, ToolPort, ToolResult, ToolSpec
from app.telemetry.metrics import OTHER, Metrics, ToolOutcome


class MeteredTools:
    """A `ToolPort` that counts the calls of another one, by tool and outcome.

    A model may ask for tools that do not exist, by any name: these are counted as one. A call that put off its result
    counts as a success, and one that a pre-hook refused as a failure.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, inner: ToolPort, metrics: Metrics, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self._inner = inner
        self._metrics = metrics
        self._clock = clock

    def for_agent(self, toolbox: Toolbox) -> ToolPort:
        """See `ToolPort.for_agent`."""
        inner = self._inner.for_agent(toolbox)
        return self if inner is self._inner else MeteredTools(inner, self._metrics, clock=self._clock)

    def spec(self, name: str) -> ToolSpec | None:
        """See `ToolPort.spec`."""
        return self._inner.spec(name)

    async def settled(self, names: Sequence[str]) -> None:
        """See `ToolPort.settled`."""
        await self._inner.settled(names)

    def granted(self, names: Sequence[str]) -> tuple[ToolSpec, ...]:
        """See `ToolPort.granted`."""
        return self._inner.granted(names)

    def lacking(self, names: Sequence[str]) -> tuple[str, ...]:
        """See `ToolPort.lacking`."""
        return self._inner.lacking(names)

    def checked(self, name: str, arguments: str) -> str:
        """See `ToolPort.checked`."""
        return self._inner.checked(name, arguments)

    async def prepare(self, invocation: ToolInvocation) -> str | ToolResult:
        """See `ToolPort.prepare`."""
        started = self._clock()
        prepared = await self._inner.prepare(invocation)
        if not isinstance(prepared, str):
            self._count(invocation, ToolOutcome.FAILURE, started)
        return prepared

    async def invoke(self, invocation: ToolInvocation) -> ToolResult | Deferral:
        """See `ToolPort.invoke`."""
        started = self._clock()
        outcome = ToolOutcome.CANCELLED
        try:
            result = await self._inner.invoke(invocation)
            failed = isinstance(result, ToolResult) and not result.success
            outcome = ToolOutcome.FAILURE if failed else ToolOutcome.SUCCESS
        finally:
            self._count(invocation, outcome, started)
        return result

    def result(
        self,
        *,
        output: str | None,
        error: str | None,
        output_max_chars: int,
        sanitize: bool,
        denied: bool = False,
        latency_ms: float = 0.0,
    ) -> ToolResult:
        """See `ToolPort.result`."""
        return self._inner.result(
            output=output,
            error=error,
            output_max_chars=output_max_chars,
            sanitize=sanitize,
            denied=denied,
            latency_ms=latency_ms,
        )

    def _count(self, invocation: ToolInvocation, outcome: ToolOutcome, started: float) -> None:
        name = invocation.tool_name if self._inner.spec(invocation.tool_name) is not None else OTHER
        self._metrics.tool_called(name, outcome, self._clock() - started)
