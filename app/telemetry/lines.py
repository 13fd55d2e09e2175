"""Spans as lines on standard output: for people, or one JSON object each."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import orjson
from opentelemetry.trace import SpanKind, StatusCode

from app.telemetry.logs import redacted
from app.telemetry.span_queue import EndedSpan

_NANO = 1_000_000_000


class LineSink:
    """Implements `SpanSink`: writes each span as a line, without what tools must not tell.

    Args:
        line: makes the line of a span.
    """

    def __init__(self, line: Callable[[EndedSpan], str]) -> None:
        self._line = line

    def send(self, spans: Sequence[EndedSpan]) -> str | None:
        """See `SpanSink.send`."""
        lines = "".join(f"{redacted(self._line(span))}\n" for span in spans)
        try:
            sys.stdout.buffer.write(lines.encode("utf-8", "replace"))
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
    name = span.name if span.name.isprintable() else _json(span.name)  # a model is named by whoever calls
    mark = "  ERROR" if about["status"] == "error" else ""
    facts = " ".join(f"{key}={_shown(value)}" for key, value in _plain(span.attributes).items())
    return f"{ended} {about['duration_ms']:>9.1f} ms  {name}{mark}  trace={about['trace_id']}  {facts}"


def _about(span: EndedSpan) -> dict[str, Any]:
    found: dict[str, Any] = {
        "name": span.name,
        "trace_id": f"{span.trace_id:032x}",
        "span_id": f"{span.span_id:016x}",
        "parent_span_id": f"{span.parent_id:016x}" if span.parent_id else None,
        "kind": SpanKind(span.kind).name.lower(),
        "start_time": _time(span.start),
        "end_time": _time(span.end),
        "duration_ms": round((span.end - span.start) / 1e6, 3),
        "status": StatusCode(span.status).name.lower(),
        "scope": span.scope,
    }
    if span.said:
        found["status_message"] = span.said
    return found


def _events(span: EndedSpan) -> dict[str, Any]:
    events = [
        {"name": event.name, "time": _time(event.timestamp), "attributes": _plain(event.attributes)}
        for event in span.events or ()
    ]
    return {"events": events} if events else {}


def _plain(attributes: Mapping[str, Any] | None) -> dict[str, Any]:
    return dict(attributes or {})


def _time(nano: int) -> str:
    at = datetime.fromtimestamp(nano // _NANO, UTC).replace(microsecond=nano % _NANO // 1000)
    return at.isoformat(timespec="microseconds").replace("+00:00", "Z")


def _shown(value: object) -> str:
    return value if isinstance(value, str) and value.isprintable() and " " not in value else _json(value)


def _json(value: object) -> str:
    try:
        return orjson.dumps(value, default=str, option=orjson.OPT_NON_STR_KEYS).decode()
    except orjson.JSONEncodeError:
        return "{}"
