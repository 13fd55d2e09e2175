"""Spans on their way out: gathered as they end, encoded and sent by a thread of their own.

In place of the SDK's processor, which keeps the spans themselves (see `app.telemetry.span`), tells of each one that it
drops, and has no end that can be waited for in a bounded time.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from opentelemetry.sdk.trace import Event, ReadableSpan, SpanProcessor
from opentelemetry.trace import Link
from opentelemetry.util.types import AnyValue

from app.telemetry.logs import get_logger
from app.telemetry.recurring import Recurring

TOLD_EVERY_S = 60.0

log = get_logger(__name__)


class EndedSpan(NamedTuple):
    """A span that has ended, of the SDK's or of ours.

    Args:
        scope: the name of what made it.
        parent_id: 0 for none; `remote` if that is another process's.
        kind: the value of a `SpanKind`, and `status` that of a `StatusCode`.
        start: in nanoseconds since 1970, as `end` is.
    """

    scope: str
    name: str
    trace_id: int
    span_id: int
    parent_id: int
    flags: int
    remote: bool
    state: str
    kind: int
    start: int
    end: int
    status: int
    said: str | None
    attributes: Mapping[str, AnyValue]
    events: Sequence[Event] | None
    links: Sequence[Link] | None


class SpanSink(Protocol):
    """Where spans go."""

    def send(self, spans: Sequence[EndedSpan]) -> str | None:
        """Send spans; may block for a bounded time. Why it failed, or None."""
        ...


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """How spans are gathered.

    Args:
        max_spans: that wait, at most; one that ends then is dropped.
        batch: as many are sent at once, at most, and as soon as so many wait.
        every_s: how long a span waits otherwise.
    """

    max_spans: int = 2048
    batch: int = 512
    every_s: float = 5.0


class SpanQueue(SpanProcessor):
    """A span processor that never blocks and never raises."""

    def __init__(self, sink: SpanSink, limits: QueueLimits) -> None:
        self._sink = sink
        self._limits = limits
        self._sending = threading.Lock()
        self._wake = threading.Event()
        self._waiting: deque[EndedSpan] = deque()
        self._dropped = 0
        self._failures = Recurring(log, "spans_not_exported", every_s=TOLD_EVERY_S)
        threading.Thread(target=self._work, name="spans", daemon=True).start()

    def on_end(self, span: ReadableSpan) -> None:
        """See `SpanProcessor.on_end`."""
        context, parent, scope = span.context, span.parent, span.instrumentation_scope
        if context is None or not context.trace_flags.sampled:
            return
        self.take(
            EndedSpan(
                "" if scope is None else scope.name,
                span.name,
                context.trace_id,
                context.span_id,
                0 if parent is None else parent.span_id,
                int(context.trace_flags),
                parent is not None and parent.is_remote,
                context.trace_state.to_header(),
                span.kind.value,
                span.start_time or 0,
                span.end_time or 0,
                span.status.status_code.value,
                span.status.description,
                dict(span.attributes or {}),
                span.events,
                span.links,
            )
        )

    def take(self, span: EndedSpan) -> None:
        """Let a span wait; drop it if too many do."""
        waiting, limits = self._waiting, self._limits
        if len(waiting) >= limits.max_spans:
            self._dropped += 1
            return
        waiting.append(span)
        if len(waiting) == limits.batch:
            self._wake.set()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """Send all that waits now. Blocks until that is done, however long the sink takes."""
        self._send(1)
        return True

    def _work(self) -> None:
        while True:
            many = self._wake.wait(self._limits.every_s)
            self._wake.clear()
            self._send(self._limits.batch if many else 1)

    def _send(self, at_least: int) -> None:
        """Send, of those that wait now, batch by batch as long as so many are left."""
        with self._sending:
            left = len(self._waiting)
            while left >= at_least:
                batch = [self._waiting.popleft() for _ in range(min(left, self._limits.batch))]
                left -= len(batch)
                self._send_batch(batch)

    def _send_batch(self, batch: Sequence[EndedSpan]) -> None:
        try:
            reason = self._sink.send(batch)
        except Exception:
            log.exception("spans_not_exported", spans=len(batch))
            return
        if reason is not None:
            self._failures.failed(reason, reason=reason, spans=len(batch))
        if self._dropped:
            self._failures.failed("queue", reason="too many wait to be sent", spans=self._dropped)
            self._dropped = 0
