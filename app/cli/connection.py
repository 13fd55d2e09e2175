"""One HTTP connection, with an end to every wait for its other side, and a bound on what comes before a body."""

from __future__ import annotations

import asyncio
from typing import ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from app.telemetry.logs import get_logger

log = get_logger(__name__)


class BoundedConnection(HttpToolsProtocol):
    """uvicorn's protocol, which by itself waits for ever for the rest of a request and for a reader to take an answer,
    and keeps headers of any length.

    Attributes:
        receive_within_s: seconds without a byte of a request that was begun, or that a new connection has not begun.
        take_within_s: seconds in which a reader takes nothing of what waits for it; a stream is rejoined later.
        head_bytes: the most that a request's line, headers and trailers may have together; more is refused (400).
    """

    receive_within_s: ClassVar[float] = 60.0
    take_within_s: ClassVar[float] = 60.0
    head_bytes: ClassVar[int] = 65536

    _deadline: asyncio.TimerHandle | None = None
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
            self.send_400_response("Invalid HTTP request received.")
            return
        if self._whole:
            self._stop_expecting()
        else:
            self._expect()

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
        self._slow = self.loop.call_later(self.take_within_s, self._drop, "reader_takes_nothing", self.take_within_s)

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

    def _expect(self) -> None:
        self._stop_expecting()
        self._deadline = self.loop.call_later(
            self.receive_within_s, self._drop, "request_never_whole", self.receive_within_s
        )

    def _stop_expecting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _cancel(self) -> None:
        self._stop_expecting()
        if self._slow is not None:
            self._slow.cancel()
            self._slow = None

    def _drop(self, reason: str, after_s: float) -> None:
        log.info("connection_dropped", reason=reason, after_s=after_s)
        self.transport.abort()
