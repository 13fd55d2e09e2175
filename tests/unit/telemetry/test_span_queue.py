"""Spans that wait to be sent: bounded, in batches, and nobody's problem when they cannot be."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest
import structlog

from app.telemetry.span_queue import EndedSpan, QueueLimits, SpanQueue


def a_span(number: int = 0) -> EndedSpan:
    return EndedSpan("s", f"span {number}", 1, 2, 0, 1, False, "", 0, 1, 2, 0, None, {}, None, None)


class Sink:
    """Implements `SpanSink`: sends while its door is open."""

    def __init__(self, error: BaseException | str | None = None) -> None:
        self.error = error
        self.door = threading.Event()
        self.door.set()
        self.batches: list[list[str]] = []
        self.sent = threading.Semaphore(0)

    def send(self, spans: Sequence[EndedSpan]) -> str | None:
        self.door.wait(10)
        self.batches.append([span.name for span in spans])
        self.sent.release()
        if isinstance(self.error, BaseException):
            raise self.error
        return self.error


def test_a_full_batch_goes_at_once_and_the_rest_waits() -> None:
    sink = Sink()
    queue = SpanQueue(sink, QueueLimits(batch=3, every_s=3600))
    for number in range(4):
        queue.take(a_span(number))
    assert sink.sent.acquire(timeout=10)
    queue.force_flush()
    assert sorted(len(batch) for batch in sink.batches) in ([1, 3], [4])
    assert [name for batch in sink.batches for name in batch] == [f"span {number}" for number in range(4)]


def test_spans_that_wait_go_after_a_while() -> None:
    sink = Sink()
    SpanQueue(sink, QueueLimits(every_s=0.01)).take(a_span())
    assert sink.sent.acquire(timeout=10)


def test_spans_beyond_the_bound_are_dropped_and_told_of_once() -> None:
    """Seen to fail without the bound."""
    sink = Sink()
    sink.door.clear()
    queue = SpanQueue(sink, QueueLimits(max_spans=5, batch=5, every_s=3600))
    for number in range(50):
        queue.take(a_span(number))
    with structlog.testing.capture_logs() as told:
        sink.door.set()
        queue.force_flush()
        queue.force_flush()
    sent = sum(len(batch) for batch in sink.batches)
    assert 5 <= sent <= 10  # those that wait, and a batch that was on its way
    lines = [line for line in told if line["event"] == "spans_not_exported"]
    assert [line["spans"] for line in lines] in ([50 - sent], [])


@pytest.mark.parametrize("error", [ValueError("a defect"), "it answered 500"])
def test_a_sink_that_fails_is_told_of_and_asked_again(error: BaseException | str) -> None:
    sink = Sink(error)
    queue = SpanQueue(sink, QueueLimits(every_s=3600))
    with structlog.testing.capture_logs() as told:
        for _ in range(3):
            queue.take(a_span())
            queue.force_flush()
    assert len(sink.batches) == 3
    assert {line["event"] for line in told} == {"spans_not_exported"}
    if isinstance(error, str):
        assert [line["log_level"] for line in told] == ["warning", "debug", "debug"]
