"""What it takes to trace: a tracer, and how spans say that something failed.

Names are those of the GenAI semantic conventions (https://opentelemetry.io/docs/specs/semconv/gen-ai/) and, for
requests, of the HTTP ones; everything else is `agent_runner.*`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode
from opentelemetry.util.types import AnyValue

from app.telemetry.trace_context import in_context

TelemetryKind = Literal["console", "json", "otel"]

UNEXPECTED = "_OTHER"  # the conventions' word for an error that has no name
CANCELLED = "cancelled"

_ERROR = Status(StatusCode.ERROR)


class StartSpan(Protocol):
    """Starts spans; calling it starts one below the current span."""

    def __call__(self, name: str, kind: SpanKind, attributes: Mapping[str, AnyValue]) -> trace.Span: ...

    def below(
        self, parent: SpanContext | None, name: str, kind: SpanKind, attributes: Mapping[str, AnyValue]
    ) -> trace.Span:
        """The same below a span that may be elsewhere; of None it begins a trace."""
        ...


class SdkSpans:
    """Implements `StartSpan` with the spans of a provider that belongs to the program that we are part of."""

    def __init__(self, tracer: trace.Tracer) -> None:
        self._tracer = tracer

    def __call__(self, name: str, kind: SpanKind, attributes: Mapping[str, AnyValue]) -> trace.Span:
        return self._tracer.start_span(name, None, kind, attributes)

    def below(
        self, parent: SpanContext | None, name: str, kind: SpanKind, attributes: Mapping[str, AnyValue]
    ) -> trace.Span:
        """See `StartSpan.below`."""
        context = Context() if parent is None else in_context(trace.NonRecordingSpan(parent))
        return self._tracer.start_span(name, context, kind, attributes)


@dataclass(frozen=True, slots=True)
class Tracing:
    """What spans are made with.

    Args:
        content: whether spans carry what people, models and tools say. Without it none of that is in them, texts of
            errors included.
    """

    start: StartSpan
    content: bool


def failed(span: trace.Span, error: str, said: str | None = None) -> None:
    """Mark a span as failed.

    Args:
        error: one of a few words.
        said: the error's text, for spans that carry content.
    """
    span.set_attribute("error.type", error)
    span.set_status(_ERROR if said is None else Status(StatusCode.ERROR, said))
