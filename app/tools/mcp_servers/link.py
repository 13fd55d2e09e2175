"""What a transport tells its session, and how it counts what comes in."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Any, Protocol

import anyio
from mcp.shared.message import SessionMessage

from app.tools.mcp_servers.flood import Flooded, FloodGate


class Link:
    """One connection's state, shared by its transport and its session.

    Args:
        server: its name, for the log.
        gate: what the server may still send.
        max_bytes: the most of one message.
        redacted: a text without the operator's secrets, for the log.
        on_lost: called once, when the connection can no longer be used.
    """

    def __init__(
        self,
        server: str,
        gate: FloodGate,
        max_bytes: int,
        redacted: Callable[[str], str],
        on_lost: Callable[[], None],
    ) -> None:
        self.server = server
        self.redacted = redacted
        self.gate = gate
        self.max_bytes = max_bytes
        self.lost: str | None = None
        self.gently = True  # whether the server is to be given time to end by itself
        self.http_status: int | None = None  # of the last answer, if it was an error
        self.forgotten = False  # whether the server said that it does not know the session, and so did nothing
        self._on_lost = on_lost

    def lose(self, reason: str, *, gently: bool = False) -> None:
        """Give the connection up; the first reason counts, and is worded so that `the server: ...` can go before it."""
        if self.lost is None:
            self.lost = reason
            self.gently = gently
            self._on_lost()


class Source(Protocol):
    """Where messages come from; ends with `anyio.EndOfStream`."""

    async def receive(self) -> SessionMessage | Exception: ...

    async def aclose(self) -> None: ...


class InboundStream:
    """A transport's messages on their way to the session, counted.

    The session handles each message in a task of its own, and nothing else holds it back.
    """

    def __init__(self, source: Source, link: Link) -> None:
        self._source = source
        self._link = link

    @property
    def last_context(self) -> Any:
        """What the `mcp` package asks of the streams of its own transports."""
        return getattr(self._source, "last_context", None)

    async def receive(self) -> SessionMessage | Exception:
        try:
            message = await self._source.receive()
            self._link.gate.take(messages=1)
        except Flooded as error:
            self._link.lose(str(error))
            raise anyio.EndOfStream from error
        # A source that has the next one at once would never let the tasks of the last ones run.
        await asyncio.sleep(0)
        return message

    async def aclose(self) -> None:
        await self._source.aclose()

    def __aiter__(self) -> InboundStream:
        return self

    async def __anext__(self) -> SessionMessage | Exception:
        try:
            return await self.receive()
        except anyio.EndOfStream:
            raise StopAsyncIteration from None

    async def __aenter__(self) -> InboundStream:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()
