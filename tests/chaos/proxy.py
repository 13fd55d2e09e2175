"""The network between a replica and its database, with its faults.

It reads just enough of Postgres' protocol (https://www.postgresql.org/docs/current/protocol-message-formats.html) to
know which statement an answer belongs to. It runs on a thread of its own, so that a test that blocks does not stop it.
"""

from __future__ import annotations

import asyncio
import struct
import threading
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import parse_qs, urlsplit

from tests.acceptance.waiting import holds

_WITHIN_S = 10.0
_PIECE = 65536

_T = TypeVar("_T")


class Proxy:
    """
    Args:
        database_url: where it leads to; `url` is the same database through it.

    Attributes:
        lost: how many answers were thrown away so far.
        caught: how many statements were held back so far, sent and not passed on.
    """

    def __init__(self, database_url: str) -> None:
        parts = urlsplit(database_url)
        asked = parse_qs(parts.query)
        self._host = asked["host"][0] if "host" in asked else parts.hostname or "127.0.0.1"
        self._port = int(asked["port"][0]) if "port" in asked else parts.port or 5432
        self._user, self._database = parts.netloc.rpartition("@")[0], parts.path
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._links: set[_Link] = set()
        self._serving: set[asyncio.Task[None]] = set()
        self._refusing = False
        self._open = asyncio.Event()
        self._open.set()
        self.delay_s = 0.0
        self.lose: Callable[[str], bool] | None = None
        self.lost = 0
        self.catching: Callable[[str], bool] | None = None
        self.caught = 0
        self.let_go = asyncio.Event()
        self.url = ""

    def __enter__(self) -> Self:
        self._thread.start()
        self._server = self._run(asyncio.start_server(self._accept, "127.0.0.1", 0))
        port = self._server.sockets[0].getsockname()[1]
        self.url = f"postgresql://{self._user}@127.0.0.1:{port}{self._database}"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._run(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_WITHIN_S)
        self._loop.close()

    def cut(self) -> None:
        """Break all connections; new ones are refused until `mend`."""
        self._refusing = True
        self._run(self._break())

    def hold(self) -> None:
        """Let nothing through, either way, and tell nobody, until `mend`: packets are lost."""
        self._loop.call_soon_threadsafe(self._open.clear)

    def mend(self) -> None:
        """All is well again. What was held goes on, late."""
        self._refusing = False
        self._loop.call_soon_threadsafe(self._open.set)

    def break_all(self) -> None:
        """Break all connections once."""
        self._run(self._break())

    def lose_answers(self, matching: Callable[[str], bool] | None) -> None:
        """From now on, where what is committed matches, let it take place, and break its connection before the answer.

        Args:
            matching: called on the proxy's thread with each statement that is sent outside of a transaction, and with
                each COMMIT and all statements of its transaction before it, one a line; None for none any more.
        """
        self.lose = matching

    def catch(self, matching: Callable[[str], bool]) -> None:
        """From now on, where what is to be committed matches, hold that back, with all that follows on its connection,
        until `pass_on`; `matching` is called as that of `lose_answers` is."""
        self.let_go.clear()
        self.catching = matching

    async def has_caught(self, times: int) -> None:
        """Wait until so many statements have been held back."""
        await holds(lambda: self.caught >= times, f"{times} statements to be held back")

    def pass_on(self) -> None:
        """Catch nothing any more, and let what was caught go on, late."""
        self.catching = None
        self._loop.call_soon_threadsafe(self.let_go.set)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving = self._loop.create_task(self._serve(reader, writer))
        self._serving.add(serving)
        serving.add_done_callback(self._serving.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refusing:
            writer.transport.abort()
            return
        try:
            if self._host.startswith("/"):
                server = await asyncio.open_unix_connection(f"{self._host}/.s.PGSQL.{self._port}")
            else:
                server = await asyncio.open_connection(self._host, self._port)
        except OSError:
            writer.transport.abort()
            return
        link = _Link(self, (reader, writer), server)
        self._links.add(link)
        try:
            await link.run()
        finally:
            self._links.discard(link)

    async def passing(self) -> None:
        """Wait as long as a packet does on its way."""
        if self.delay_s:
            await asyncio.sleep(self.delay_s)
        await self._open.wait()

    async def _break(self) -> None:
        for link in list(self._links):
            link.abort()

    async def _stop(self) -> None:
        self._server.close()
        self._open.set()
        await self._break()
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _run(self, work: Coroutine[Any, Any, _T]) -> _T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(_WITHIN_S)


_Ends = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class _Link:
    """One connection of a client and the one that it has to the server."""

    def __init__(self, proxy: Proxy, client: _Ends, server: _Ends) -> None:
        self._proxy = proxy
        self._client = client
        self._server = server
        self._statements: dict[bytes, str] = {}
        self._begun = False  # the startup message has no type
        self._buffer = b""
        self._transaction: list[str] | None = None
        self._losing = False
        self._caught = False
        self._tail = b""

    async def run(self) -> None:
        try:
            await asyncio.gather(self._forward(), self._backward())
        except (OSError, _Broken):
            pass
        finally:
            self.abort()

    def abort(self) -> None:
        for _, writer in (self._client, self._server):
            writer.transport.abort()

    async def _forward(self) -> None:
        while piece := await self._client[0].read(_PIECE):
            self._read_statements(piece)
            if self._caught:
                await self._proxy.let_go.wait()
                self._caught = False
            await self._proxy.passing()
            self._server[1].write(piece)
            await self._server[1].drain()
        raise _Broken

    async def _backward(self) -> None:
        while piece := await self._server[0].read(_PIECE):
            await self._proxy.passing()
            if self._losing:
                # The answer to a statement of its own ends with ReadyForQuery: only then has it taken place.
                self._tail = (self._tail + piece)[-6:]
                if self._tail.startswith(b"Z\x00\x00\x00\x05"):
                    self._proxy.lost += 1
                    raise _Broken
                continue
            self._client[1].write(piece)
            await self._client[1].drain()
        raise _Broken

    def _read_statements(self, piece: bytes) -> None:
        self._buffer += piece
        while True:
            head = 1 if self._begun else 0
            if len(self._buffer) < head + 4:
                return
            (length,) = struct.unpack("!I", self._buffer[head : head + 4])
            if len(self._buffer) < head + length:
                return
            kind, body = self._buffer[:head], self._buffer[head + 4 : head + length]
            self._buffer = self._buffer[head + length :]
            # An SSL or GSS request comes before the startup message, in the same form.
            self._begun = self._begun or body[:4] == b"\x00\x03\x00\x00"
            self._sent(kind, body)

    def _sent(self, kind: bytes, body: bytes) -> None:
        match kind:
            case b"P":
                name, text, _ = body.split(b"\x00", 2)
                self._statements[name] = text.decode(errors="replace")
                return
            case b"B":
                text = self._statements.get(body.split(b"\x00", 2)[1], "")
            case b"Q":
                text = body.rstrip(b"\x00").decode(errors="replace")
            case _:
                return
        whole = self._committed_by(text)
        if whole is None:
            return
        if self._proxy.lose is not None and self._proxy.lose(whole):
            self._losing = True
        if self._proxy.catching is not None and self._proxy.catching(whole):
            self._caught = True
            self._proxy.caught += 1

    def _committed_by(self, text: str) -> str | None:
        """All that takes place with this statement; None for one inside of a transaction."""
        if text.startswith("BEGIN"):
            self._transaction = []
        elif text.startswith("ROLLBACK"):
            self._transaction = None
        elif self._transaction is None:
            return text
        elif text.startswith("COMMIT"):
            statements, self._transaction = self._transaction, None
            return "\n".join([*statements, text])
        else:
            self._transaction.append(text)
        return None


class _Broken(Exception):
    """One side has gone."""
