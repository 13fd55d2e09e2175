"""OTLP over HTTP (https://opentelemetry.io/docs/specs/otlp/#otlphttp), in binary protobuf.

In place of the package's exporters: its encoding of spans costs several times as much (`app.telemetry.otlp_body`), and
what a collector answers, and how slowly, has no bound there.
"""

from __future__ import annotations

import asyncio
import gzip
import random
import ssl
import zlib
from collections.abc import Sequence
from contextlib import suppress

import aiohttp
from opentelemetry.sdk.resources import Resource

from app.telemetry.otlp_body import encoded_resource, request_body
from app.telemetry.otlp_destination import Destination
from app.telemetry.setting_error import TelemetrySettingError
from app.telemetry.span_queue import EndedSpan

_RETRYABLE = frozenset({429, 502, 503, 504})
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 5.0


class OtlpSender:
    """Sends to one destination; what does not get through is sent again, until the destination's time is over.

    Raises:
        TelemetrySettingError: a file of certificates cannot be used.
    """

    def __init__(self, destination: Destination) -> None:
        self._to = destination
        self._tls = _tls(destination)
        self._headers = {"Content-Type": "application/x-protobuf", "User-Agent": "agent-runner"}
        if destination.compression != "none":
            self._headers["Content-Encoding"] = destination.compression
        self._headers.update(destination.headers)

    def send(self, body: bytes) -> str | None:
        """Send a request's body; why it was not taken, or None.

        Blocks for as long as the destination's time, so it has to be called in a thread without an event loop.
        """
        reason = asyncio.run(self._sent(self._compressed(body)))
        return None if reason is None else f"{self._to.url}: {reason}"

    def _compressed(self, body: bytes) -> bytes:
        match self._to.compression:
            case "gzip":
                return gzip.compress(body, compresslevel=6)
            case "deflate":
                return zlib.compress(body)
            case _:
                return body

    async def _sent(self, body: bytes) -> str | None:
        reason = f"no answer in {self._to.timeout_s:g} s"
        # The one bound of all: whatever a collector does, and however slowly, it has no more time.
        with suppress(TimeoutError):
            async with asyncio.timeout(self._to.timeout_s) as limit, self._session() as session:
                pause_s = _FIRST_PAUSE_S
                while True:
                    asked_s: float | None = None
                    try:
                        status, asked_s = await self._posted(session, body)
                        if 200 <= status < 300:
                            return None
                        reason = f"it answered {status}"
                        if status not in _RETRYABLE:
                            return reason
                    except aiohttp.ClientConnectorError:
                        reason = "it cannot be reached"
                    except (aiohttp.ClientError, OSError) as error:
                        reason = type(error).__name__
                    wait_s = pause_s * random.uniform(0.8, 1.2) if asked_s is None else asked_s
                    if wait_s >= (limit.when() or 0.0) - asyncio.get_running_loop().time():
                        return reason
                    await asyncio.sleep(wait_s)
                    pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        return reason

    def _session(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            headers=self._headers,
            timeout=aiohttp.ClientTimeout(total=None),
            connector=aiohttp.TCPConnector(ssl=self._tls, force_close=True),
            trust_env=True,
            auto_decompress=False,
        )

    async def _posted(self, session: aiohttp.ClientSession, body: bytes) -> tuple[int, float | None]:
        """The status and Retry-After in seconds. Nothing of the answer's body is read."""
        async with session.post(self._to.url, data=body, allow_redirects=False) as answer:
            given = answer.headers.get("Retry-After", "")
            return answer.status, float(given) if given.isdecimal() and len(given) < 6 else None


class OtlpSink:
    """Implements `SpanSink`."""

    def __init__(self, sender: OtlpSender, resource: Resource) -> None:
        self._sender = sender
        self._resource = encoded_resource(resource)

    def send(self, spans: Sequence[EndedSpan]) -> str | None:
        """See `SpanSink.send`."""
        return self._sender.send(request_body(self._resource, spans))


def _tls(destination: Destination) -> ssl.SSLContext | bool:
    """True for what is usual."""
    if destination.authorities is None and destination.certificate is None:
        return True
    try:
        context = ssl.create_default_context(cafile=destination.authorities)
        if destination.certificate is not None:
            context.load_cert_chain(*destination.certificate)
    except OSError as error:
        files = ", ".join(filter(None, (destination.authorities, *(destination.certificate or ()))))
        raise TelemetrySettingError(f"OTEL_EXPORTER_OTLP_CERTIFICATE: {files} cannot be used: {error}") from None
    return context
