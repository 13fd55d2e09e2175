"""The body of an OTLP request: what we write is what the package's encoder writes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import pytest
from google.protobuf.json_format import MessageToDict
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

from app.telemetry.logs import redact_logs
from app.telemetry.otlp_body import encoded_resource, request_body
from app.telemetry.span_queue import EndedSpan, QueueLimits, SpanQueue

RESOURCE = Resource({"service.name": "tests", "numbers": [1, 2]})
REMOTE = SpanContext(7 << 100, 7 << 50, True, TraceFlags(1), TraceState([("vendor", "x")]))


class Kept:
    """Implements `SpanSink`: keeps what it gets."""

    def __init__(self) -> None:
        self.spans: list[EndedSpan] = []

    def send(self, spans: Sequence[EndedSpan]) -> None:
        self.spans += spans


Both: TypeAlias = tuple[TracerProvider, InMemorySpanExporter, SpanQueue, Kept]


@pytest.fixture
def both() -> Both:
    exporter, kept = InMemorySpanExporter(), Kept()
    queue = SpanQueue(kept, QueueLimits(every_s=3600))
    provider = TracerProvider(resource=RESOURCE, shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    provider.add_span_processor(queue)
    return provider, exporter, queue, kept


def as_dict(body: bytes) -> dict[str, Any]:
    return MessageToDict(ExportTraceServiceRequest.FromString(body))


def test_spans_of_every_shape_are_encoded_as_the_package_does(
    both: Both,
) -> None:
    provider, exporter, queue, kept = both
    tracer = provider.get_tracer("somebody")
    attributes = {
        "text": "a",
        "long": "ä" * 5000,
        "yes": True,
        "one": 1,
        "negative": -(2**60),
        "float": 1.0,
        "texts": ("a", "b"),
        "numbers": (1, 2),
        "bytes": b"\0\1",
    }
    above = trace.set_span_in_context(trace.NonRecordingSpan(REMOTE))
    for kind in SpanKind:
        for context in (None, above):
            with tracer.start_as_current_span("näme", context, kind, attributes, [Link(REMOTE, {"why": 1})]) as span:
                span.add_event("happened", {"what": "that"})
                tracer.start_span("", attributes={"one": True}).end()
    tracer.start_span("failed").end()
    failed = tracer.start_span("failed")
    failed.set_status(Status(StatusCode.ERROR, "why"))
    failed.end()
    queue.force_flush()

    ours = as_dict(request_body(encoded_resource(RESOURCE), kept.spans))
    theirs = as_dict(encode_spans(exporter.get_finished_spans()).SerializeToString())
    for found in _spans(ours):
        assert found["flags"] & 0xFF in (1, 3)  # the flags of the trace, which the package leaves out
        found["flags"] &= ~0xFF
    for found in _spans(theirs):
        if found["status"] == {}:
            del found["status"]
        for link in found.get("links", []):  # whose state the package leaves out
            del link["flags"]
            link["traceState"] = "vendor=x"
    assert _spans(ours) == _spans(theirs)
    assert ours["resourceSpans"][0]["resource"] == theirs["resourceSpans"][0]["resource"]


def test_attributes_that_nothing_can_say_are_left_out() -> None:
    strange: dict[str, Any] = {"fine": 1, "half": "\ud800", "huge": 2**70, "object": object(), "mixed": [object()]}
    span = EndedSpan("s", "\udfff", 1, 2, 0, 1, False, "", 0, 1, 2, 0, None, strange, None, None)
    (found,) = _spans(as_dict(request_body(encoded_resource(RESOURCE), [span])))
    assert [each["key"] for each in found["attributes"]] == ["fine", "half"]


def test_secrets_are_struck_out_of_attributes_texts_of_errors_and_events() -> None:
    redact_logs(lambda text: text.replace("hunter2", "[secret]"))
    try:
        attributes = {"short": "hunter2", "long": "hunter2" * 20, "list": ["hunter2"]}
        span = EndedSpan("s", "n", 1, 2, 0, 1, False, "", 0, 1, 2, 2, "hunter2", attributes, None, None)
        assert b"hunter2" not in request_body(b"", [span])
    finally:
        redact_logs(str)


def _spans(body: dict[str, Any]) -> list[dict[str, Any]]:
    return [span for resource in body["resourceSpans"] for scope in resource["scopeSpans"] for span in scope["spans"]]
