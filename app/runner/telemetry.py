"""A runner's traces and numbers, in a process that belongs to somebody else."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from opentelemetry import trace
from opentelemetry.trace import SpanKind

from app.engine.model import ModelClient
from app.engine.tools import ToolPort
from app.llm.traced import TracedClient
from app.telemetry.metrics import Metrics
from app.telemetry.process import telemetry_of
from app.telemetry.trace_context import text_of
from app.telemetry.tracing import TelemetryKind
from app.tools.metered import MeteredTools
from app.tools.traced import TracedTools
from app.worker.driver import RunDriver
from app.worker.traced import TracedDriver


class InProcess:
    """What is around the parts of one engine.

    Args:
        content: see `Tracing`.

    Raises:
        TelemetrySettingError: a variable of OpenTelemetry's cannot be followed.
    """

    def __init__(self, kind: TelemetryKind, *, content: bool) -> None:
        self._telemetry = telemetry_of(kind)
        self.tracing = self._telemetry.tracing(content=content)
        self.metrics = Metrics(resource=self._telemetry.resource)
        self._push = self._telemetry.push(self.metrics)
        self.driver: Callable[..., RunDriver] = partial(TracedDriver, self.tracing, self.metrics)

    def model(self, inner: ModelClient) -> ModelClient:
        """A client with what counts and traces its calls; for one that has no retry of ours around it."""
        return TracedClient(inner, self.metrics, self.tracing)

    def tools(self, inner: ToolPort) -> ToolPort:
        return TracedTools(MeteredTools(inner, self.metrics), self.tracing)

    def asked(self, agent: str) -> str | None:
        """What a run that is made now is part of: what the program does, or else a span that stands for the request,
        so that all attempts at the run are in one trace."""
        above = trace.get_current_span().get_span_context()
        if above.is_valid:
            return text_of(above)
        span = self.tracing.start.below(None, f"run {agent}", SpanKind.INTERNAL, {})
        span.end()
        return text_of(span.get_span_context())

    async def flush(self) -> None:
        """Export what has ended, within two seconds."""
        await self._telemetry.flush(also=self._push)
