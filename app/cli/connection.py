"""One HTTP connection, with an end to every wait for its other side, and a bound on what comes before a body."""

from __future__ import annotations

import asyncio
from typing import ClassVar

import orjson
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from app.telemetry.logs import get_logger

log = get_logger(__name__)

_PROBLEM = orjson.dumps(
    {
        "type": "about:blank",
        "title": "Bad Request",
        "status": 400,
        "detail": "this is no HTTP request that can be read, or its line and headers are longer than 64 KB",
        "code": "validation_error",
    }
)
_REFUSAL = (
    b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/problem+json\r\nconnection: close\r\n"
    b"content-length: %d\r\n\r\n%b" % (len(_PROBLEM), _PROBLEM)
)


class BoundedConnection(HttpToolsProtocol):
    """uvicorn's protocol, which by itself waits for ever for the rest of a request and for a reader to take an answer,
    and keeps headers of any length.

    Attributes:
        receive_within_s: seconds without a byte of a request that was begun, or that a new connection has not begun.
        whole_within_s: seconds in which a request has to come whole, however its bytes come.
        take_within_s: seconds in which a reader takes nothing of what waits for it; a stream is rejoined later.
        head_bytes: the most that a request's line, headers and trailers may have together; more is refused (400).
    """

    receive_within_s: ClassVar[float] = 60.0
    whole_within_s: ClassVar[float] = 300.0
    take_within_s: ClassVar[float] = 60.0
    head_bytes: ClassVar[int] = 65536

    _next_byte: asyncio.TimerHandle | None = None
    _last_byte: asyncio.TimerHandle | None = None
    _slow: asyncio.TimerHandle | None = None
    _whole = False
    _head = 0
    _held = 0  # bytes that the parser keeps, since they are no whole header yet
    _gave = False

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self._expect()

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._gave = False
        super().data_received(data)
        self._held = 0 if self._gave else self._held + len(data)
        if self._held > self.head_bytes:
            self.send_400_response("")
            return
        if self._whole and self._answering():
            self._stop_expecting()
        else:
            self._expect()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no request: as a problem, like all errors. An answer that is under way is given first."""
        if self._answering():
            self.cycle.keep_alive = False
            return
        self.transport.write(_REFUSAL)
        self.transport.close()

    def on_message_begin(self) -> None:
        self._whole = False
        self._head = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._count(url)
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(name + value)
        super().on_header(name, value)

    def on_body(self, body: bytes) -> None:
        self._gave = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._whole = self._gave = True
        super().on_message_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._slow = self._drop_after(self.take_within_s, "reader_takes_nothing")

    def resume_writing(self) -> None:
        if self._slow is not None:
            self._slow.cancel()
            self._slow = None
        super().resume_writing()

    def _count(self, piece: bytes) -> None:
        self._gave = True
        self._head += len(piece)
        if self._head > self.head_bytes:
            raise ValueError("the head is too long")  # which the parser makes an error of, and uvicorn a refusal

    def _answering(self) -> bool:
        cycle: RequestResponseCycle | None = getattr(
            self, "cycle", None
        )  # None until the first request has its headers
        return cycle is not None and not cycle.response_complete

    def _expect(self) -> None:
        if self._next_byte is not None:
            self._next_byte.cancel()
        self._next_byte = self._drop_after(self.receive_within_s, "request_never_whole")
        if self._last_byte is None:
            self._last_byte = self._drop_after(self.whole_within_s, "request_too_slow")

    def _stop_expecting(self) -> None:
        for timer in (self._next_byte, self._last_byte):
            if timer is not None:
                timer.cancel()
        self._next_byte = self._last_byte = None

    def _drop_after(self, seconds: float, reason: str) -> asyncio.TimerHandle:
        return self.loop.call_later(seconds, self._drop, reason, seconds)

    def _cancel(self) -> None:
        self._stop_expecting()
        if self._slow is not None:
            self._slow.cancel()
            self._slow = None

    def _drop(self, reason: str, after_s: float) -> None:
        log.info("connection_dropped", reason=reason, after_s=after_s)
        self.transport.abort()
