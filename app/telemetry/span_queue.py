"""Spans on their way out: encoded as they end, gathered, and sent by a thread of their own.

In place of the SDK's processor, which keeps the spans themselves: some dozens of objects each, that live for seconds
and have the garbage collector look at everything in the process far more often. Bytes are none of its business, and
what waits can be bounded by its size.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from opentelemetry.sdk.trace import Event, ReadableSpan, SpanProcessor
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status
from opentelemetry.util.types import Attributes

from app.telemetry.logs import get_logger
from app.telemetry.recurring import Recurring

MAX_BYTES = 16 * 1024 * 1024
TOLD_EVERY_S = 60.0


class EndedSpan(Protocol):
    """A span that has ended, of the SDK's or of ours; see `opentelemetry.sdk.trace.ReadableSpan`."""

    @property
    def name(self) -> str: ...
    @property
    def context(self) -> SpanContext | None: ...
    @property
    def parent(self) -> SpanContext | None: ...
    @property
    def kind(self) -> SpanKind: ...
    @property
    def attributes(self) -> Attributes: ...
    @property
    def events(self) -> Sequence[Event]: ...
    @property
    def links(self) -> Sequence[Link]: ...
    @property
    def status(self) -> Status: ...
    @property
    def start_time(self) -> int | None: ...
    @property
    def end_time(self) -> int | None: ...
    @property
    def instrumentation_scope(self) -> InstrumentationScope | None: ...


Items = Mapping[InstrumentationScope | None, Sequence[bytes]]

log = get_logger(__name__)


class SpanSink(Protocol):
    """Takes spans, in two parts: one that every span pays for at once, and one that a thread does for many."""

    def encode(self, span: EndedSpan) -> bytes:
        """A span as it will be sent; called by whatever thread has ended it."""
        ...

    def send(self, spans: Items) -> str | None:
        """Send encoded spans, by what has made them; may block for a bounded time. Why it failed, or None."""
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
        self._lock = threading.Lock()
        self._sending = threading.Lock()
        self._wake = threading.Event()
        self._waiting: dict[InstrumentationScope | None, list[bytes]] = {}
        self._count = self._bytes = self._dropped = 0
        self._failures = Recurring(log, "spans_not_exported", every_s=TOLD_EVERY_S)
        threading.Thread(target=self._work, name="spans", daemon=True).start()

    def on_end(self, span: ReadableSpan) -> None:
        """See `SpanProcessor.on_end`."""
        if span.context is not None and span.context.trace_flags.sampled:
            self.take(span)

    def take(self, span: EndedSpan) -> None:
        """Encode a span and let it wait; drop it where that cannot be."""
        try:
            item = self._sink.encode(span)
        except Exception as error:  # noqa: BLE001 - the edge to what is traced, which goes on whatever its spans hold
            self._failures.failed("encode", reason=f"one cannot be encoded ({type(error).__name__})", spans=1)
            return
        with self._lock:
            if self._count >= self._limits.max_spans or self._bytes + len(item) > MAX_BYTES:
                self._dropped += 1
                return
            self._waiting.setdefault(span.instrumentation_scope, []).append(item)
            self._count += 1
            self._bytes += len(item)
            due = self._count >= self._limits.batch
        if due:
            self._wake.set()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """Send all that waits now. Blocks until that is done, however long the sink takes."""
        self._send(0)
        return True

    def _work(self) -> None:
        while True:
            many = self._wake.wait(self._limits.every_s)
            self._wake.clear()
            self._send(self._limits.batch if many else 0)

    def _send(self, at_least: int) -> None:
        """Send batches while more than `at_least` wait, of those that wait now."""
        with self._sending:
            left = self._count
            while left > 0 and left >= at_least:
                items, count = self._take()
                left -= count
                self._send_batch(items, count)

    def _send_batch(self, items: Items, count: int) -> None:
        try:
            reason = self._sink.send(items)
        except Exception:
            log.exception("spans_not_exported", spans=count)
            return
        if reason is not None:
            self._failures.failed(reason, reason=reason, spans=count)
        if self._dropped:
            self._failures.failed("queue", reason="too many wait to be sent", spans=self._dropped)
            self._dropped = 0

    def _take(self) -> tuple[Items, int]:
        taken: dict[InstrumentationScope | None, list[bytes]] = {}
        room = self._limits.batch
        with self._lock:
            for scope, items in self._waiting.items():
                if room > 0 and items:
                    taken[scope] = items[:room]
                    del items[:room]
                    room -= len(taken[scope])
            count = self._limits.batch - room
            self._count -= count
            self._bytes -= sum(len(item) for items in taken.values() for item in items)
        return taken, count
