"""Our own spans: what the SDK's cost, without what only those need.

An SDK span copies, checks, locks and bounds its attributes as they are set, goes through a list of processors, and
leaves some dozens of objects for seconds, for which the garbage collector looks at everything in the process more
often. Ours take what they are given, are checked where they are sent, and leave a tuple. Ids, sampling and what is
exported are the SDK's. The figures are in benchmarks/README.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from time import time_ns
from typing import cast

from opentelemetry import trace
from opentelemetry.sdk.trace import Event, Tracer
from opentelemetry.sdk.trace.sampling import DEFAULT_ON
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags
from opentelemetry.util.types import AnyValue, Attributes

from app.telemetry.span_queue import EndedSpan, SpanQueue
from app.telemetry.trace_context import in_context

# Of one span: tools find it as the current one, and write to it as much as they like.
_MAX_ATTRIBUTES = _MAX_EVENTS = 128
_MAX_CHARS = 65_536
_UNSET = Status(StatusCode.UNSET)
_RANDOM = TraceFlags.RANDOM_TRACE_ID
_FLAGS = tuple(TraceFlags(flags) for flags in range(4))


class LeanTracer:
    """Implements `app.telemetry.tracing.StartSpan`. A trace is sampled as a whole: below a span of ours the sampler is
    not asked again.

    Args:
        tracer: whose ids and sampler are used.
        queue: where spans go when they end.
        scope: the name under which they go.
    """

    def __init__(self, tracer: Tracer, queue: SpanQueue, scope: str) -> None:
        self._ids = tracer.id_generator
        self._sampler = tracer.sampler
        self.queue = queue
        self.scope = scope

    def __call__(self, name: str, kind: SpanKind, attributes: Mapping[str, AnyValue]) -> trace.Span:
        above = trace.get_current_span()
        parent = above.get_span_context()
        if type(above) is not LeanSpan:
            return self.below(parent if parent.is_valid else None, name, kind, attributes)
        span_id = self._ids.generate_span_id()
        here = SpanContext(parent.trace_id, span_id, False, parent.trace_flags, parent.trace_state)
        return LeanSpan(self, name, here, parent, kind, dict(attributes))

    def below(
        self, parent: SpanContext | None, name: str, kind: SpanKind, attributes: Mapping[str, AnyValue]
    ) -> trace.Span:
        """See `StartSpan.below`."""
        if parent is None:
            trace_id, random = self._ids.generate_trace_id(), _RANDOM if self._ids.is_trace_id_random() else 0
        else:
            trace_id, random = parent.trace_id, parent.trace_flags & _RANDOM
        if self._sampler is DEFAULT_ON:  # as it answers, for a fraction of the cost
            sampled = parent is None or parent.trace_flags.sampled
            state = None if parent is None else parent.trace_state
            added = attributes
        else:
            context = None if parent is None else in_context(trace.NonRecordingSpan(parent))
            answer = self._sampler.should_sample(context, trace_id, name, kind, attributes, ())
            sampled, state = answer.decision.is_sampled(), answer.trace_state
            added = cast("Mapping[str, AnyValue]", answer.attributes)  # pyright: ignore[reportUnknownMemberType]
        flags = _FLAGS[random | sampled]
        here = SpanContext(trace_id, self._ids.generate_span_id(), False, flags, state)
        return LeanSpan(self, name, here, parent, kind, dict(added)) if sampled else trace.NonRecordingSpan(here)


class LeanSpan(trace.Span):
    """See `opentelemetry.trace.Span`. Not bound to one thread."""

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
        self._name = name
        self._context = context
        self._parent = parent
        self._kind = kind
        self._attributes = attributes
        self._status = _UNSET
        self._events: list[Event] | None = None
        self._ended = False
        self._start = time_ns()

    def end(self, end_time: int | None = None) -> None:
        if self._ended:
            return
        self._ended = True
        maker, context, parent = self._maker, self._context, self._parent
        remote = parent is not None and parent.is_remote
        maker.queue.take(
            EndedSpan(
                maker.scope,
                self._name,
                context.trace_id,
                context.span_id,
                0 if parent is None else parent.span_id,
                int(context.trace_flags),
                remote,
                context.trace_state.to_header() if context.trace_state else "",
                self._kind.value,
                self._start,
                end_time or time_ns(),
                self._status.status_code.value,
                self._status.description,
                self._attributes,
                self._events,
                None,
            )
        )

    def get_span_context(self) -> SpanContext:
        return self._context

    def set_attributes(self, attributes: Mapping[str, AnyValue]) -> None:
        for key, value in attributes.items():
            self.set_attribute(key, value)

    def set_attribute(self, key: str, value: AnyValue) -> None:
        if not self._ended and len(self._attributes) < _MAX_ATTRIBUTES:
            self._attributes[key] = value[:_MAX_CHARS] if isinstance(value, str | bytes) else value

    def add_event(self, name: str, attributes: Attributes = None, timestamp: int | None = None) -> None:
        if self._events is None:
            self._events = []
        if not self._ended and len(self._events) < _MAX_EVENTS:
            self._events.append(Event(name, attributes, timestamp))

    def update_name(self, name: str) -> None:
        self._name = name

    def is_recording(self) -> bool:
        return not self._ended

    def set_status(self, status: Status | StatusCode, description: str | None = None) -> None:
        if not self._ended:
            self._status = status if isinstance(status, Status) else Status(status, description)

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
