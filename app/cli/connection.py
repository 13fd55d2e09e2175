"""One HTTP connection, with an end to every wait for its other side."""

from __future__ import annotations

import asyncio
from typing import ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from app.telemetry.logs import get_logger

log = get_logger(__name__)


class BoundedConnection(HttpToolsProtocol):
    """uvicorn's protocol, which by itself waits for ever for the rest of a request and for a reader to take an answer.

    Attributes:
        receive_within_s: seconds without a byte of a request that was begun, or that a new connection has not begun.
        take_within_s: seconds in which a reader takes nothing of what waits for it; a stream is rejoined later.
    """

    receive_within_s: ClassVar[float] = 60.0
    take_within_s: ClassVar[float] = 60.0

    _deadline: asyncio.TimerHandle | None = None
    _slow: asyncio.TimerHandle | None = None
    _whole = False

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self._expect()

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._whole:
            self._stop_expecting()
        else:
            self._expect()

    def on_message_begin(self) -> None:
        self._whole = False
        super().on_message_begin()

    def on_message_complete(self) -> None:
        self._whole = True
        super().on_message_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._slow = self.loop.call_later(self.take_within_s, self._drop, "reader_takes_nothing", self.take_within_s)

    def resume_writing(self) -> None:
        if self._slow is not None:
            self._slow.cancel()
            self._slow = None
        super().resume_writing()

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
