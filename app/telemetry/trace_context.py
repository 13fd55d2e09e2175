"""What a run is part of in traces, as text: `traceparent`, then a space and `tracestate` if there is one.

Both as https://www.w3.org/TR/trace-context/ has them. The text is kept with the run, so that an attempt on any replica,
at any time, goes on with the trace of the request that made it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

# Longer ones are dropped, which the specification allows past 512 characters (section 3.3.1.5).
_MAX_STATE_CHARS = 512
_PARENT = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")
_PROPAGATOR = TraceContextTextMapPropagator()
_NOWHERE = Context()


def text_of(context: trace.SpanContext) -> str | None:
    """A span as the parent of what is done elsewhere; None for one that is none."""
    if not context.is_valid:
        return None
    parent = traceparent_of(context)
    state = context.trace_state.to_header()
    return f"{parent} {state}" if state and len(state) <= _MAX_STATE_CHARS else parent


def traceparent_of(context: trace.SpanContext) -> str:
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


def current_text() -> str | None:
    """The current span as `text_of` writes it; None where there is none."""
    return text_of(trace.get_current_span().get_span_context())


def current_ids() -> dict[str, str]:
    """The ids of the current span, for people; empty where there is none."""
    context = trace.get_current_span().get_span_context()
    if not context.is_valid:
        return {}
    return {"trace_id": f"{context.trace_id:032x}", "span_id": f"{context.span_id:016x}"}


def no_text() -> str | None:
    """In place of `current_text` where nothing is traced."""
    return None


def current_headers() -> dict[str, str]:
    """What goes out with a request to elsewhere: where it comes from in the trace, and nothing that others have put
    into the trace's state."""
    context = trace.get_current_span().get_span_context()
    return {"traceparent": traceparent_of(context)} if context.is_valid else {}


def in_context(span: trace.Span) -> Context:
    """The context of what belongs to a span, and to nothing else."""
    return trace.set_span_in_context(span, _NOWHERE)


def parent_of(text: str | None) -> trace.SpanContext | None:
    """The span that `text_of` wrote down; None if that cannot be read."""
    found = None if text is None else _PARENT.match(text)
    if text is None or found is None:
        return None
    trace_id, span_id, flags = found.groups()
    state = text[found.end() + 1 :]
    return trace.SpanContext(
        int(trace_id, 16),
        int(span_id, 16),
        is_remote=True,
        trace_flags=trace.TraceFlags(int(flags, 16)),
        trace_state=trace.TraceState.from_header([state]) if state else None,
    )


def parent_in(headers: Iterable[tuple[bytes, bytes]]) -> trace.SpanContext | None:
    """The span that a request's headers (names in lower case) name; None where there is none, or no valid one."""
    given: dict[str, list[str]] = {}
    for name, value in headers:
        if name in (b"traceparent", b"tracestate"):
            given.setdefault(name.decode(), []).append(value.decode("latin-1"))
    if len(given.get("traceparent", ())) != 1:
        return None
    found = trace.get_current_span(_PROPAGATOR.extract(given, _NOWHERE)).get_span_context()
    return found if found.is_valid else None
