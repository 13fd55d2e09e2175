"""Sending spans to a collector over HTTP."""

from __future__ import annotations

import gzip
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from socketserver import BaseRequestHandler, ThreadingTCPServer

import pytest
from opentelemetry.sdk.resources import Resource

from app.telemetry.otlp import OtlpSender, OtlpSink
from app.telemetry.otlp_destination import Destination
from app.telemetry.span_queue import EndedSpan
from tests.collector import Collector, spans_of

SPAN = EndedSpan("tests", "a span", 1, 2, 0, 1, False, "", 0, 1, 2, 0, None, {"key": "value"}, None, None)


def a_sink(collector: Collector, **more: str) -> OtlpSink:
    names = {f"OTEL_EXPORTER_OTLP_{name.upper()}": value for name, value in more.items()}
    sender = OtlpSender(Destination.of({**collector.settings, **names}, "traces"))
    return OtlpSink(sender, Resource({"service.name": "tests"}))


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


@contextmanager
def saying(head: bytes, piece: bytes, every_s: float) -> Iterator[str]:
    """The URL of a server that answers with a head, and then with pieces for as long as anybody takes them."""

    class Endless(BaseRequestHandler):
        def handle(self) -> None:
            with suppress(OSError):
                self.request.recv(65536)
                self.request.sendall(head)
                while not closed.wait(every_s):
                    self.request.sendall(piece)

    closed = threading.Event()
    with ThreadingTCPServer(("127.0.0.1", 0), Endless) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        closed.set()
        server.shutdown()


@pytest.mark.parametrize(("piece", "every_s"), [(b"x" * 65536, 0.0), (b"x", 0.05)], ids=["at once", "in drips"])
def test_a_body_that_never_ends_is_not_read(piece: bytes, every_s: float) -> None:
    """Seen to fail where what comes of it is read."""
    with saying(b"HTTP/1.1 200 OK\r\n\r\n", piece, every_s) as url:
        assert OtlpSender(Destination.of({"OTEL_EXPORTER_OTLP_ENDPOINT": url}, "metrics")).send(b"") is None


def test_a_head_that_never_ends_has_the_timeout_and_no_longer() -> None:
    """Seen to fail where only each read has a timeout."""
    with saying(b"HTTP/1.1 200 OK\r\nA-Header: ", b"x", 0.05) as url:
        given = {"OTEL_EXPORTER_OTLP_ENDPOINT": url, "OTEL_EXPORTER_OTLP_TIMEOUT": "0.5"}
        assert OtlpSender(Destination.of(given, "traces")).send(b"") == f"{url}/v1/traces: no answer in 0.5 s"


def test_a_collector_that_does_not_answer_has_the_timeout_and_no_longer() -> None:
    with Collector(delay_s=3600) as collector:
        reason = a_sink(collector, timeout="0.3").send([SPAN])
    assert reason is not None
    assert reason.endswith("no answer in 0.3 s")
