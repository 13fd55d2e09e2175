"""Our own spans: what the SDK's cost, without what only those need.

An SDK span copies, checks, locks and bounds its attributes as they are set, and goes through a list of processors. Ours
take what they are given, go to one queue and are checked there, and cost a third (benchmarks/README.md). Ids, sampling
and what is exported are the SDK's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from time import time_ns
from typing import cast

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import Event, Tracer
from opentelemetry.sdk.trace.sampling import DEFAULT_ON
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags
from opentelemetry.util.types import AnyValue, Attributes

from app.telemetry.span_queue import SpanQueue

# Of one span: tools find it as the current one, and write to it as much as they like.
_MAX_ATTRIBUTES = _MAX_EVENTS = 128
_UNSET = Status(StatusCode.UNSET)
_SAMPLED = TraceFlags(TraceFlags.SAMPLED)


class LeanTracer:
    """Starts `LeanSpan`s as an SDK tracer would start its own. A trace is sampled as a whole: below a span of ours the
    sampler is not asked again.

    Args:
        tracer: whose ids and sampler are used.
        queue: where spans go when they end.
    """

    def __init__(self, tracer: Tracer, queue: SpanQueue, scope: InstrumentationScope) -> None:
        self._ids = tracer.id_generator
        self._sampler = tracer.sampler
        self.queue = queue
        self.scope = scope

    def start_span(
        self, name: str, context: Context | None, kind: SpanKind, attributes: Mapping[str, AnyValue]
    ) -> trace.Span:
        """See `opentelemetry.trace.Tracer.start_span`."""
        above = trace.get_current_span(context)
        found = above.get_span_context()
        parent = found if found.is_valid else None
        trace_id = self._ids.generate_trace_id() if parent is None else parent.trace_id
        if parent is not None and type(above) is LeanSpan:
            here = SpanContext(trace_id, self._ids.generate_span_id(), False, parent.trace_flags, parent.trace_state)
            return LeanSpan(self, name, here, parent, kind, dict(attributes))
        if self._sampler is DEFAULT_ON:  # as it answers, for a fraction of the cost
            sampled = parent is None or parent.trace_flags.sampled
            state = None if parent is None else parent.trace_state
            added = attributes
        else:
            answer = self._sampler.should_sample(context, trace_id, name, kind, attributes, ())
            sampled, state = answer.decision.is_sampled(), answer.trace_state
            added = cast("Mapping[str, AnyValue]", answer.attributes)  # pyright: ignore[reportUnknownMemberType]
        flags = _SAMPLED if sampled else TraceFlags.get_default()
        here = SpanContext(trace_id, self._ids.generate_span_id(), False, flags, state)
        return LeanSpan(self, name, here, parent, kind, dict(added)) if sampled else trace.NonRecordingSpan(here)


class LeanSpan(trace.Span):
    """See `opentelemetry.trace.Span`, and `app.telemetry.span_queue.EndedSpan`. Not bound to one thread."""

    links: Sequence[Link] = ()

    def __init__(
        self,
        maker: LeanTracer,
        name: str,
        context: SpanContext,
        parent: SpanContext | None,
        kind: SpanKind,
        attributes: dict[str, AnyValue],
    ) -> None:
        self._maker = maker
        self.name = name
        self.context = context
        self.parent = parent
        self.kind = kind
        self.attributes = attributes
        self.status = _UNSET
        self.events: Sequence[Event] = ()
        self.end_time = 0
        self.start_time = time_ns()

    @property
    def instrumentation_scope(self) -> InstrumentationScope:
        return self._maker.scope

    def end(self, end_time: int | None = None) -> None:
        if not self.end_time:
            self.end_time = end_time or time_ns()
            self._maker.queue.take(self)

    def get_span_context(self) -> SpanContext:
        return self.context

    def set_attributes(self, attributes: Mapping[str, AnyValue]) -> None:
        if not self.end_time and len(self.attributes) + len(attributes) <= _MAX_ATTRIBUTES:
            self.attributes.update(attributes)

    def set_attribute(self, key: str, value: AnyValue) -> None:
        if not self.end_time and len(self.attributes) < _MAX_ATTRIBUTES:
            self.attributes[key] = value

    def add_event(self, name: str, attributes: Attributes = None, timestamp: int | None = None) -> None:
        if not self.end_time and len(self.events) < _MAX_EVENTS:
            self.events = (*self.events, Event(name, attributes, timestamp))

    def update_name(self, name: str) -> None:
        self.name = name

    def is_recording(self) -> bool:
        return not self.end_time

    def set_status(self, status: Status | StatusCode, description: str | None = None) -> None:
        if not self.end_time:
            self.status = status if isinstance(status, Status) else Status(status, description)

    def record_exception(
        self,
        exception: BaseException,
        attributes: Attributes = None,
        timestamp: int | None = None,
        escaped: bool = False,
    ) -> None:
        about: dict[str, AnyValue] = {
            "exception.type": type(exception).__qualname__,
            "exception.message": str(exception),
            "exception.escaped": str(escaped),
        }
        self.add_event("exception", {**about, **(attributes or {})}, timestamp)
