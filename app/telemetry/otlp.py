"""Spans and metrics to a collector by OTLP over HTTP (https://opentelemetry.io/docs/specs/otlp/#otlphttp), in binary
protobuf.

In place of the package's exporters: for the cost of encoding spans, see `app.telemetry.otlp_body`, and since those log
each try by themselves and tell nobody why it failed.
"""

from __future__ import annotations

import gzip
import random
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import requests
from opentelemetry.sdk.resources import Resource
from opentelemetry.util.re import parse_env_headers

from app.telemetry.otlp_body import encoded_resource, request_body
from app.telemetry.setting_error import TelemetrySettingError
from app.telemetry.span_queue import EndedSpan

Signal = Literal["traces", "metrics"]

PROTOCOL = "http/protobuf"
_DEFAULT_ENDPOINT = "http://localhost:4318"
_DEFAULT_TIMEOUT_S = 10.0
_RETRYABLE = frozenset({429, 502, 503, 504})
_MAX_ANSWER_BYTES = 64 * 1024
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 5.0


@dataclass(frozen=True, slots=True)
class Destination:
    """Where spans or metrics go, and how.

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
    def of(cls, environment: Mapping[str, str], signal: Signal = "traces") -> Destination:
        """As the standard variables say (https://opentelemetry.io/docs/specs/otel/protocol/exporter/).

        Raises:
            TelemetrySettingError: one of them cannot be followed.
        """

        def given(name: str) -> str:
            ours = f"OTEL_EXPORTER_OTLP_{signal.upper()}_{name}"
            return (environment.get(ours) or environment.get(f"OTEL_EXPORTER_OTLP_{name}") or "").strip()

        if (protocol := given("PROTOCOL") or PROTOCOL) != PROTOCOL:
            raise TelemetrySettingError(f"OTEL_EXPORTER_OTLP_PROTOCOL: {protocol!r} cannot be used: only {PROTOCOL} is")
        if (compression := given("COMPRESSION").lower() or "none") not in ("none", "gzip", "deflate"):
            raise TelemetrySettingError(
                f"OTEL_EXPORTER_OTLP_COMPRESSION: {compression!r} cannot be used: it is none, gzip or deflate"
            )
        key, certificate = given("CLIENT_KEY"), given("CLIENT_CERTIFICATE")
        return cls(
            url=_url(environment, signal),
            headers=parse_env_headers(given("HEADERS"), liberal=True),
            timeout_s=_seconds(given("TIMEOUT")),
            compression=compression,
            verify=given("CERTIFICATE") or True,
            certificate=(certificate, key) if certificate and key else certificate or None,
        )


class OtlpSender:
    """Sends requests, and what does not get through again, until the destination's time is over."""

    def __init__(self, destination: Destination) -> None:
        self._to = destination
        self._session = requests.Session()
        self._session.verify = destination.verify
        self._session.cert = destination.certificate
        self._session.headers.update({"Content-Type": "application/x-protobuf", "User-Agent": "agent-runner"})
        if destination.compression != "none":
            self._session.headers["Content-Encoding"] = destination.compression
        self._session.headers.update(destination.headers)

    def send(self, body: bytes) -> str | None:
        """Send a request of binary protobuf; blocks for a bounded time. Why it failed, or None."""
        return self._sent(self._compressed(body))

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
        while True:
            left_s = deadline - time.monotonic()
            asked_s: float | None = None
            try:
                answer = self._posted(body, max(left_s, 0.1))
                if 200 <= answer.status_code < 300:
                    return None
                reason = f"it answered {answer.status_code}"
                if answer.status_code not in _RETRYABLE:
                    return f"{self._to.url}: {reason}"
                asked_s = _retry_after(answer)
            except requests.RequestException as error:
                reason = type(error).__name__
            wait_s = pause_s * random.uniform(0.8, 1.2) if asked_s is None else asked_s
            if wait_s >= deadline - time.monotonic():
                return f"{self._to.url}: {reason}"
            time.sleep(wait_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def _posted(self, body: bytes, timeout_s: float) -> requests.Response:
        answer = self._session.post(self._to.url, data=body, timeout=timeout_s, allow_redirects=False, stream=True)
        with answer:  # its connection can be used again if this was all of the body
            next(answer.iter_content(_MAX_ANSWER_BYTES), None)
        return answer


class OtlpSink:
    """Implements `SpanSink`."""

    def __init__(self, destination: Destination, resource: Resource) -> None:
        self._sender = OtlpSender(destination)
        self._resource = encoded_resource(resource)

    def send(self, spans: Sequence[EndedSpan]) -> str | None:
        """See `SpanSink.send`."""
        return self._sender.send(request_body(self._resource, spans))


def _url(environment: Mapping[str, str], signal: Signal) -> str:
    """Raises TelemetrySettingError: the variable that was given has no URL."""
    of_all, of_signal = "OTEL_EXPORTER_OTLP_ENDPOINT", f"OTEL_EXPORTER_OTLP_{signal.upper()}_ENDPOINT"
    variable = of_signal if environment.get(of_signal, "").strip() else of_all
    given = environment.get(variable, "").strip() or _DEFAULT_ENDPOINT
    if not given.startswith(("http://", "https://")):
        raise TelemetrySettingError(f"{variable}: {given!r} cannot be used: it is no http(s):// URL")
    return given if variable == of_signal else f"{given.rstrip('/')}/v1/{signal}"


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
