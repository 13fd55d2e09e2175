"""Tracing tool calls."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import assert_never

from opentelemetry import context, trace
from opentelemetry.trace import SpanKind

from app.engine.tool_definitions import Toolbox
from app.engine.tools import Deferral, ToolInvocation, ToolPort, ToolResult, ToolSource, ToolSpec
from app.telemetry.trace_context import in_context
from app.telemetry.tracing import CANCELLED, UNEXPECTED, Tracing, failed

# Characters of arguments and of results, each, in spans that carry them.
MAX_CHARS = 16_384


class TracedTools:
    """A `ToolPort` that makes a span `execute_tool {tool}` of each call of another one.

    What a tool logs and the spans that it opens itself belong to that span, in a thread as well. A tool that does not
    exist, by whatever name a model asks for it, does not name its span. A call that a pre-hook refused is a span too.
    """

    def __init__(self, inner: ToolPort, tracing: Tracing) -> None:
        self._inner = inner
        self._tracing = tracing

    def for_agent(self, toolbox: Toolbox) -> ToolPort:
        """See `ToolPort.for_agent`."""
        inner = self._inner.for_agent(toolbox)
        return self if inner is self._inner else TracedTools(inner, self._tracing)

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
        prepared = await self._inner.prepare(invocation)
        if not isinstance(prepared, str):
            span = self._span(invocation)
            self._describe(span, prepared)
            span.end()
        return prepared

    async def invoke(self, invocation: ToolInvocation) -> ToolResult | Deferral:
        """See `ToolPort.invoke`."""
        span = self._span(invocation)
        token = context.attach(in_context(span))
        error: str | None = UNEXPECTED
        try:
            result = await self._inner.invoke(invocation)
            self._describe(span, result)
            error = None
        except asyncio.CancelledError:
            error = CANCELLED
            raise
        finally:
            context.detach(token)
            if error is not None:
                failed(span, error)
            span.end()
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

    def _span(self, invocation: ToolInvocation) -> trace.Span:
        name = invocation.tool_name
        spec = self._inner.spec(name)
        attributes = {
            "gen_ai.operation.name": "execute_tool",
            "gen_ai.tool.name": name,
            "gen_ai.tool.call.id": invocation.tool_call_id,
        }
        if spec is not None:
            attributes["gen_ai.tool.type"] = _type_of(spec.source)
        if self._tracing.content:
            attributes["gen_ai.tool.call.arguments"] = invocation.arguments[:MAX_CHARS]
        title = "execute_tool" if spec is None else f"execute_tool {name}"
        return self._tracing.start(title, SpanKind.INTERNAL, attributes)

    def _describe(self, span: trace.Span, result: ToolResult | Deferral) -> None:
        if isinstance(result, Deferral):
            span.set_attribute("agent_runner.tool.deferred", True)
            return
        if self._tracing.content and result.output is not None:
            span.set_attribute("gen_ai.tool.call.result", result.output[:MAX_CHARS])
        if not result.success:
            failed(span, "denied" if result.denied else "tool_error", result.error if self._tracing.content else None)


def _type_of(source: ToolSource) -> str:
    """The conventions' word for where a tool's work is done: by its client, or by an agent that calls on others."""
    match source:
        case ToolSource.PYTHON | ToolSource.CALLER | ToolSource.SUBAGENT:
            return "function"
        case ToolSource.HTTP | ToolSource.MCP:
            return "extension"
        case _:
            assert_never(source)
