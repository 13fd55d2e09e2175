"""What it takes to trace: a tracer, and how spans say that something failed.

Names are those of the GenAI semantic conventions (https://opentelemetry.io/docs/specs/semconv/gen-ai/) and, for
requests, of the HTTP ones; everything else is `agent_runner.*`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import SpanKind, Status, StatusCode
from opentelemetry.util.types import AnyValue

TelemetryKind = Literal["console", "json", "otel"]

UNEXPECTED = "_OTHER"  # the conventions' word for an error that has no name
CANCELLED = "cancelled"

_ERROR = Status(StatusCode.ERROR)


@dataclass(frozen=True, slots=True)
class Tracing:
    """What spans are made with.

    Args:
        start: starts a span; takes its name, the context of its parent (None for the current one), a kind, attributes.
        content: whether spans carry what people, models and tools say. Without it none of that is in them, texts of
            errors included.
    """

    start: Callable[[str, Context | None, SpanKind, Mapping[str, AnyValue]], trace.Span]
    content: bool


def failed(span: trace.Span, error: str, said: str | None = None) -> None:
    """Mark a span as failed.

    Args:
        error: one of a few words.
        said: the error's text, for spans that carry content.
    """
    span.set_attribute("error.type", error)
    span.set_status(_ERROR if said is None else Status(StatusCode.ERROR, said))
