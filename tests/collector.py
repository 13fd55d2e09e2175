"""An OTLP collector over HTTP that keeps what it gets, and that can be slow, or refuse."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue


@dataclass(frozen=True)
class ReceivedSpan:
    """A span as it came. `parent_id` is empty for the first of a trace; `events` are their names."""

    name: str
    trace_id: str
    span_id: str
    parent_id: str
    state: str
    kind: int
    start: int
    end: int
    failed: bool
    said: str
    scope: str
    attributes: dict[str, Any]
    events: tuple[str, ...]
    resource: dict[str, Any]


class Collector:
    """Listens while it is entered.

    Args:
        status: what it answers; `first` are other answers that it gives before.
        delay_s: how long it thinks before.

    Attributes:
        requests: bodies of spans, as they came.
        headers: of the same requests, names in lower case.
    """

    def __init__(self, *, status: int = 200, delay_s: float = 0.0, first: Iterable[int] = ()) -> None:
        self.status = status
        self.first = list(first)
        self.delay_s = delay_s
        self.requests: list[bytes] = []
        self.headers: list[dict[str, str]] = []
        self._metrics: list[bytes] = []
        self._closed = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), name="collector", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self._server.shutdown()
        self._server.server_close()

    @property
    def settings(self) -> dict[str, str]:
        """The variables with which a service exports here, soon after each span has ended."""
        return {
            "TELEMETRY": "otel",
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{self._server.server_port}",
            "OTEL_BSP_SCHEDULE_DELAY": "50",
            "NO_PROXY": "127.0.0.1",
        }

    def spans(self) -> list[ReceivedSpan]:
        """All spans so far, by when they began."""
        found = [span for body in list(self.requests) for span in spans_of(body)]
        return sorted(found, key=lambda span: span.start)

    def metrics(self) -> dict[str, float]:
        """Of each metric that came, what its last export says in all: a histogram's count, or the sum of values."""
        values: dict[str, float] = {}
        for body in list(self._metrics):
            request = ExportMetricsServiceRequest.FromString(body)
            for metric in (m for r in request.resource_metrics for s in r.scope_metrics for m in s.metrics):
                values[metric.name] = (
                    sum(point.count for point in metric.histogram.data_points)
                    + sum(point.as_int + point.as_double for point in metric.sum.data_points)
                    + sum(point.as_int + point.as_double for point in metric.gauge.data_points)
                )
        return values

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        collector = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                if self.path == "/v1/traces":
                    collector.requests.append(body)
                    collector.headers.append({name.lower(): value for name, value in self.headers.items()})
                elif self.path == "/v1/metrics":
                    collector._metrics.append(body)
                deadline = time.monotonic() + collector.delay_s
                collector._closed.wait(max(0.0, deadline - time.monotonic()))
                self.send_response(collector.first.pop(0) if collector.first else collector.status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                """Nothing."""

        return Handler


def spans_of(body: bytes) -> list[ReceivedSpan]:
    """The spans of a request's body."""
    return [
        ReceivedSpan(
            name=span.name,
            trace_id=span.trace_id.hex(),
            span_id=span.span_id.hex(),
            parent_id=span.parent_span_id.hex(),
            state=span.trace_state,
            kind=span.kind,
            start=span.start_time_unix_nano,
            end=span.end_time_unix_nano,
            failed=span.status.code == 2,
            said=span.status.message,
            scope=scope.scope.name,
            attributes=_attributes(span.attributes),
            events=tuple(event.name for event in span.events),
            resource=_attributes(resource.resource.attributes),
        )
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]


def _attributes(pairs: Iterable[KeyValue]) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: AnyValue) -> Any:
    match value.WhichOneof("value"):
        case "array_value":
            return [_value(each) for each in value.array_value.values]
        case "kvlist_value":
            return _attributes(value.kvlist_value.values)
        case None:
            return None
        case kind:
            return getattr(value, kind)
