"""Spans to a collector by OTLP over HTTP (https://opentelemetry.io/docs/specs/otlp/#otlphttp), in binary protobuf.

The package's own exporter builds its messages field by field, which costs more than twice what a span costs without it;
here a span is one constructor call of the generated classes, which is done in C.
"""

from __future__ import annotations

import gzip
import random
import threading
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import requests
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.trace import Link, SpanContext, SpanKind
from opentelemetry.util.re import parse_env_headers
from opentelemetry.util.types import AnyValue, Attributes

from app.telemetry.logs import get_logger, redacted
from app.telemetry.recurring import Recurring

PROTOCOL = "http/protobuf"
_DEFAULT_ENDPOINT = "http://localhost:4318"
_DEFAULT_TIMEOUT_S = 10.0
_RETRYABLE = frozenset({429, 502, 503, 504})
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 5.0
_TOLD_EVERY_S = 60.0
_KINDS = {
    SpanKind.INTERNAL: 1,
    SpanKind.SERVER: 2,
    SpanKind.CLIENT: 3,
    SpanKind.PRODUCER: 4,
    SpanKind.CONSUMER: 5,
}
# https://github.com/open-telemetry/opentelemetry-proto/blob/v1.9.0/opentelemetry/proto/trace/v1/trace.proto#L337
_HAS_IS_REMOTE, _IS_REMOTE = 0x100, 0x200

_Pb = dict[str, Any]  # the arguments of a generated class

log = get_logger(__name__)


class TelemetrySettingError(ValueError):
    """A variable of OpenTelemetry's has a value that cannot be used; the text names it."""


@dataclass(frozen=True, slots=True)
class Destination:
    """Where spans go, and how.

    Args:
        verify: a file of certificates, or True for those that are known anyway.
        certificate: a client's own, and its key.
    """

    url: str
    headers: Mapping[str, str]
    timeout_s: float
    compression: str
    verify: str | bool
    certificate: tuple[str, str] | str | None

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Destination:
        """As the standard variables say (https://opentelemetry.io/docs/specs/otel/protocol/exporter/).

        Raises:
            TelemetrySettingError: one of them cannot be followed.
        """

        def given(name: str) -> str:
            ours = f"OTEL_EXPORTER_OTLP_TRACES_{name}"
            return (environment.get(ours) or environment.get(f"OTEL_EXPORTER_OTLP_{name}") or "").strip()

        if (protocol := given("PROTOCOL") or PROTOCOL) != PROTOCOL:
            raise TelemetrySettingError(f"OTEL_EXPORTER_OTLP_PROTOCOL: {protocol!r} cannot be used: only {PROTOCOL} is")
        if (compression := given("COMPRESSION").lower() or "none") not in ("none", "gzip", "deflate"):
            raise TelemetrySettingError(
                f"OTEL_EXPORTER_OTLP_COMPRESSION: {compression!r} cannot be used: it is none, gzip or deflate"
            )
        base = (environment.get("OTEL_EXPORTER_OTLP_ENDPOINT") or _DEFAULT_ENDPOINT).strip().rstrip("/")
        url = (environment.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or "").strip() or f"{base}/v1/traces"
        if not url.startswith(("http://", "https://")):
            raise TelemetrySettingError(f"OTEL_EXPORTER_OTLP_ENDPOINT: {url!r} cannot be used: it is no http(s):// URL")
        key, certificate = given("CLIENT_KEY"), given("CLIENT_CERTIFICATE")
        return cls(
            url=url,
            headers=parse_env_headers(given("HEADERS"), liberal=True),
            timeout_s=_seconds(given("TIMEOUT")),
            compression=compression,
            verify=given("CERTIFICATE") or True,
            certificate=(certificate, key) if certificate and key else certificate or None,
        )


class OtlpSpanExporter(SpanExporter):
    """Sends batches of spans; a batch that does not get through within the timeout is dropped, with a line in the log
    now and then. Called by one thread, which is never the event loop's."""

    def __init__(self, destination: Destination) -> None:
        self._to = destination
        self._closed = threading.Event()
        self._failures = Recurring(log, "spans_not_exported", every_s=_TOLD_EVERY_S)
        self._session = requests.Session()
        self._session.verify = destination.verify
        self._session.cert = destination.certificate
        self._session.headers.update({"Content-Type": "application/x-protobuf", "User-Agent": "agent-runner"})
        if destination.compression != "none":
            self._session.headers["Content-Encoding"] = destination.compression
        self._session.headers.update(destination.headers)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """See `SpanExporter.export`."""
        reason = self._sent(self._compressed(encoded(spans)))
        if reason is None:
            return SpanExportResult.SUCCESS
        self._failures.failed(reason, spans=len(spans), reason=reason, to=self._to.url)
        return SpanExportResult.FAILURE

    def shutdown(self) -> None:
        """Give up what is being sent again; nothing is sent afterwards."""
        self._closed.set()

    def _compressed(self, body: bytes) -> bytes:
        match self._to.compression:
            case "gzip":
                return gzip.compress(body, compresslevel=6)
            case "deflate":
                return zlib.compress(body)
            case _:
                return body

    def _sent(self, body: bytes) -> str | None:
        """Send until it is taken, refused for good, or the time is over; why it was not taken."""
        deadline = time.monotonic() + self._to.timeout_s
        pause_s = _FIRST_PAUSE_S
        while not self._closed.is_set():
            left_s = deadline - time.monotonic()
            asked_s: float | None = None
            try:
                answer = self._session.post(self._to.url, data=body, timeout=max(left_s, 0.1), allow_redirects=False)
                if 200 <= answer.status_code < 300:
                    return None
                reason = f"it answered {answer.status_code}"
                if answer.status_code not in _RETRYABLE:
                    return reason
                asked_s = _retry_after(answer)
            except requests.RequestException as error:
                reason = type(error).__name__
            wait_s = pause_s * random.uniform(0.8, 1.2) if asked_s is None else asked_s
            if wait_s >= deadline - time.monotonic() or self._closed.wait(wait_s):
                return reason
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        return "this process ends"


def encoded(spans: Sequence[ReadableSpan]) -> bytes:
    """The body of a request with these spans. One that cannot be encoded is left out."""
    try:
        return _request(spans).SerializeToString()
    except (ValueError, TypeError, UnicodeError):
        return _request([span for span in spans if _is_encodable(span)]).SerializeToString()


def _is_encodable(span: ReadableSpan) -> bool:
    try:
        _request([span]).SerializeToString()
    except (ValueError, TypeError, UnicodeError):
        return False
    return True


def _request(spans: Sequence[ReadableSpan]) -> ExportTraceServiceRequest:
    scopes: dict[tuple[int, int], list[ReadableSpan]] = {}
    for span in spans:  # by identity: there are few, and comparing them costs
        scopes.setdefault((id(span.resource), id(span.instrumentation_scope)), []).append(span)
    # A generated class takes the arguments of those inside in place of these, which its stubs do not say.
    resource_spans = cast("list[ResourceSpans]", [_scope_spans(each) for each in scopes.values()])
    return ExportTraceServiceRequest(resource_spans=resource_spans)


def _scope_spans(spans: Sequence[ReadableSpan]) -> _Pb:
    resource, scope = spans[0].resource, spans[0].instrumentation_scope
    about = {} if scope is None else {"name": scope.name, "version": scope.version or ""}
    return {
        "resource": {"attributes": _attributes(resource.attributes)},
        "scope_spans": [{"scope": about, "spans": [_span(span) for span in spans]}],
    }


def _span(span: ReadableSpan) -> _Pb:
    context, parent, status = cast("SpanContext", span.context), span.parent, span.status
    found: _Pb = {
        "trace_id": context.trace_id.to_bytes(16, "big"),
        "span_id": context.span_id.to_bytes(8, "big"),
        "flags": _flags(context, parent),
        "name": span.name,
        "kind": _KINDS[span.kind],
        "start_time_unix_nano": span.start_time,
        "end_time_unix_nano": span.end_time,
        "attributes": _attributes(span.attributes),
    }
    if parent is not None:
        found["parent_span_id"] = parent.span_id.to_bytes(8, "big")
    if context.trace_state:
        found["trace_state"] = context.trace_state.to_header()
    if status.status_code.value:
        found["status"] = {"code": status.status_code.value, "message": redacted(status.description or "")}
    if span.events:
        found["events"] = [_event(event) for event in span.events]
    if span.links:
        found["links"] = [_link(link) for link in span.links]
    return found


def _flags(context: SpanContext, parent: SpanContext | None) -> int:
    remote = _IS_REMOTE if parent is not None and parent.is_remote else 0
    return int(context.trace_flags) | _HAS_IS_REMOTE | remote


def _event(event: Event) -> _Pb:
    return {
        "name": redacted(event.name),
        "time_unix_nano": event.timestamp,
        "attributes": _attributes(event.attributes),
    }


def _link(link: Link) -> _Pb:
    return {
        "trace_id": link.context.trace_id.to_bytes(16, "big"),
        "span_id": link.context.span_id.to_bytes(8, "big"),
        "trace_state": link.context.trace_state.to_header(),
        "attributes": _attributes(link.attributes),
        "flags": _flags(link.context, link.context),
    }


def _attributes(attributes: Attributes) -> list[_Pb]:
    return [{"key": key, "value": _value(value)} for key, value in attributes.items()] if attributes else []


def _value(value: AnyValue) -> _Pb:
    match value:
        case str():
            return {"string_value": redacted(value)}
        case bool():
            return {"bool_value": value}
        case int():
            return {"int_value": value}
        case float():
            return {"double_value": value}
        case bytes():
            return {"bytes_value": value}
        case None:
            return {}
        case Mapping():
            return {"kvlist_value": {"values": _attributes(value)}}
        case _:
            return {"array_value": {"values": [_value(each) for each in value]}}


def _seconds(given: str) -> float:
    try:
        seconds = float(given) if given else _DEFAULT_TIMEOUT_S
    except ValueError:
        seconds = 0.0
    if not 0.0 < seconds <= 3600.0:
        raise TelemetrySettingError(f"OTEL_EXPORTER_OTLP_TIMEOUT: {given!r} cannot be used: it is seconds, up to 3600")
    return seconds


def _retry_after(answer: requests.Response) -> float | None:
    given = answer.headers.get("Retry-After", "")
    return float(given) if given.isdecimal() and len(given) < 6 else None
