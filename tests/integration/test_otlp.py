"""Sending spans to a collector over HTTP."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable

import pytest
from opentelemetry.sdk.resources import Resource

from app.telemetry.otlp import Destination, OtlpSink
from app.telemetry.span_queue import EndedSpan
from tests.collector import Collector, spans_of

SPAN = EndedSpan("tests", "a span", 1, 2, 0, 1, False, "", 0, 1, 2, 0, None, {"key": "value"}, None, None)


def a_sink(collector: Collector, **more: str) -> OtlpSink:
    names = {f"OTEL_EXPORTER_OTLP_{name.upper()}": value for name, value in more.items()}
    return OtlpSink(Destination.of({**collector.settings, **names}), Resource({"service.name": "tests"}))


def test_a_batch_arrives_with_the_headers_that_were_asked_for() -> None:
    with Collector() as collector:
        assert a_sink(collector, headers="authorization=Bearer%20key").send([SPAN]) is None
        ((span,), (headers,)) = collector.spans(), collector.headers
    assert (span.name, span.attributes, span.resource) == ("a span", {"key": "value"}, {"service.name": "tests"})
    assert (headers["content-type"], headers["authorization"]) == ("application/x-protobuf", "Bearer key")


@pytest.mark.parametrize(("compression", "unpack"), [("gzip", gzip.decompress), ("deflate", zlib.decompress)])
def test_a_batch_is_compressed_where_that_is_asked_for(compression: str, unpack: Callable[[bytes], bytes]) -> None:
    with Collector() as collector:
        assert a_sink(collector, compression=compression).send([SPAN]) is None
        assert collector.headers[0]["content-encoding"] == compression
        assert [span.name for span in spans_of(unpack(collector.requests[0]))] == ["a span"]


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_what_may_pass_is_sent_again(status: int) -> None:
    with Collector(first=[status]) as collector:
        assert a_sink(collector).send([SPAN]) is None
        assert len(collector.requests) == 2


@pytest.mark.parametrize("status", [400, 401, 404, 500, 301])
def test_what_is_refused_for_good_is_not(status: int) -> None:
    with Collector(status=status) as collector:
        endpoint = collector.settings["OTEL_EXPORTER_OTLP_ENDPOINT"]
        assert a_sink(collector).send([SPAN]) == f"{endpoint}/v1/traces: it answered {status}"
        assert len(collector.requests) == 1


def test_an_answer_is_not_read_for_ever() -> None:
    with Collector(said=b"x" * 50_000_000) as collector:
        sink = a_sink(collector)
        for _ in range(2):
            assert sink.send([SPAN]) is None


def test_a_collector_that_does_not_answer_has_the_timeout_and_no_longer() -> None:
    with Collector(delay_s=3600) as collector:
        reason = a_sink(collector, timeout="0.3").send([SPAN])
    assert reason is not None
    assert reason.endswith("ReadTimeout")
