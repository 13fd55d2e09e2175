"""Spans as lines on standard output: for people, or one JSON object each."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import orjson

from app.telemetry.logs import redacted
from app.telemetry.span_queue import EndedSpan, Items

_NANO = 1_000_000_000


class LineSink:
    """Implements `SpanSink`: writes each span as a line, without what tools must not tell.

    Args:
        line: makes the line of a span.
    """

    def __init__(self, line: Callable[[EndedSpan], str]) -> None:
        self._line = line

    def encode(self, span: EndedSpan) -> bytes:
        """See `SpanSink.encode`."""
        return f"{redacted(self._line(span))}\n".encode("utf-8", "replace")

    def send(self, spans: Items) -> str | None:
        """See `SpanSink.send`."""
        try:
            sys.stdout.buffer.write(b"".join(item for items in spans.values() for item in items))
            sys.stdout.flush()
        except (OSError, ValueError) as error:  # nobody reads it any more
            return f"standard output: {type(error).__name__}"
        return None


def json_line(span: EndedSpan) -> str:
    """A span as a JSON object: times in UTC, `duration_ms`, ids as W3C writes them."""
    return _json({**_about(span), "attributes": _plain(span.attributes), **_events(span)})


def people_line(span: EndedSpan) -> str:
    """A span for people: when it ended, how long it took, its name, whether it failed, its trace, its attributes."""
    about = _about(span)
    ended = str(about["end_time"])[11:23]
    mark = "  ERROR" if about["status"] == "error" else ""
    facts = " ".join(f"{key}={_shown(value)}" for key, value in _plain(span.attributes).items())
    return f"{ended} {about['duration_ms']:>9.1f} ms  {span.name}{mark}  trace={about['trace_id']}  {facts}"


def _about(span: EndedSpan) -> dict[str, Any]:
    context, parent = span.context, span.parent
    assert context is not None
    start, end = span.start_time or 0, span.end_time or 0
    found: dict[str, Any] = {
        "name": span.name,
        "trace_id": f"{context.trace_id:032x}",
        "span_id": f"{context.span_id:016x}",
        "parent_span_id": None if parent is None else f"{parent.span_id:016x}",
        "kind": span.kind.name.lower(),
        "start_time": _time(start),
        "end_time": _time(end),
        "duration_ms": round((end - start) / 1e6, 3),
        "status": span.status.status_code.name.lower(),
    }
    if span.status.description:
        found["status_message"] = span.status.description
    return found


def _events(span: EndedSpan) -> dict[str, Any]:
    events = [{"name": e.name, "time": _time(e.timestamp), "attributes": _plain(e.attributes)} for e in span.events]
    return {"events": events} if events else {}


def _plain(attributes: Mapping[str, Any] | None) -> dict[str, Any]:
    return dict(attributes or {})


def _time(nano: int) -> str:
    at = datetime.fromtimestamp(nano // _NANO, UTC).replace(microsecond=nano % _NANO // 1000)
    return at.isoformat(timespec="microseconds").replace("+00:00", "Z")


def _shown(value: object) -> str:
    return _json(value) if not isinstance(value, str) or " " in value or "\n" in value else value


def _json(value: object) -> str:
    try:
        return orjson.dumps(value, default=str, option=orjson.OPT_NON_STR_KEYS).decode()
    except orjson.JSONEncodeError:
        return "{}"
