"""A server's sessions: opened when they are wanted, lent to one call at a time, replaced when they end.

One call at a time, although a session could carry more: a server that hangs or dies takes only that call with it, and
the outcome of no other becomes unknown.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from enum import StrEnum

from app.telemetry.logs import get_logger
from app.tools.errors import CallError
from app.tools.mcp_servers.remote import Connector, NotConnected, RemoteTool, Session
from app.tools.raised import Raised

_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 30.0
_SHORTEST_PAUSE_S = 0.5  # where a call waits
_LASTS_S = 10.0  # a session that ends sooner counts as another failure
_MAX_DOUBLINGS = 10

_log = get_logger(__name__)


class McpState(StrEnum):
    """How a server is."""

    CONNECTING = "connecting"  # for the first time
    READY = "ready"
    UNAVAILABLE = "unavailable"  # tried again by and by, and at once when a call wants it
    CLOSED = "closed"


class SessionPool:
    """See above. Implements `SessionEvents`.

    Args:
        server: its name.
        max_sessions: the most at once, those that are opening or closing included.
        listed: told the tools of every new session.
        changed: told that a session has other tools now.
    """

    def __init__(
        self,
        server: str,
        connector: Connector,
        max_sessions: int,
        listed: Callable[[Session, list[RemoteTool]], None],
        changed: Callable[[Session], None],
    ) -> None:
        self._server = server
        self._connector = connector
        self._max_sessions = max_sessions
        self._listed = listed
        self._changed = changed
        self._sessions: set[Session] = set()
        self._connected: dict[Session, float] = {}  # since when
        self._idle: list[Session] = []
        self._waiting: deque[asyncio.Future[Session]] = deque()
        self._wanted = asyncio.Event()
        self._tried = asyncio.Event()
        self._failures = 0
        self._last_try = self._next_try = 0.0
        self._reason: str | None = None
        self._closed = False
        self._keeper: asyncio.Task[None] | None = None
        self._examinations: set[asyncio.Task[None]] = set()

    @property
    def state(self) -> McpState:
        if self._closed:
            return McpState.CLOSED
        if self._usable():
            return McpState.READY
        return McpState.UNAVAILABLE if self._tried.is_set() else McpState.CONNECTING

    @property
    def reason(self) -> str | None:
        """Why the server is unavailable, for the operator."""
        return self._reason if self.state is McpState.UNAVAILABLE else None

    def start(self) -> None:
        """Begin to connect, and to reconnect whenever no session is left."""
        self._keeper = asyncio.create_task(self._keep(), name=f"mcp {self._server} sessions")

    async def tried(self) -> None:
        """Wait until the first attempt to connect has ended, either way."""
        await self._tried.wait()

    async def lend(self, deadline: float) -> Session:
        """A session for one call; goes back by `take_back` or `doubt`.

        Args:
            deadline: on the event loop's clock.

        Raises:
            CallError: the server is not connected, or no session became free in time.
        """
        if self._closed:
            raise self._unavailable()
        while self._idle:
            # The last one back first, so that the others can be idle for long.
            session = self._idle.pop()
            if session.lost is None:
                return session
        waiter: asyncio.Future[Session] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        self._wanted.set()
        try:
            async with asyncio.timeout_at(deadline):
                return await waiter
        except TimeoutError:
            self._withdraw(waiter)
            if self._usable():
                raise CallError(f"the MCP server {self._server!r} was busy all the time; it was not called") from None
            raise self._unavailable() from None
        except asyncio.CancelledError:
            self._withdraw(waiter)
            raise

    def take_back(self, session: Session) -> None:
        """The call has ended, and the session with it did not."""
        if session.lost is not None or self._closed:
            return
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(session)
                return
        self._idle.append(session)

    def doubt(self, session: Session) -> None:
        """The call was given up: the session goes back only if its server still answers."""
        if session.lost is None and not self._closed:
            task = asyncio.create_task(self._examine(session), name=f"mcp {self._server} examination")
            self._examinations.add(task)
            task.add_done_callback(self._examinations.discard)

    def oldest(self) -> Session | None:
        """The session that has lasted longest, for questions beside the calls; stays where it is."""
        return next(iter(self._usable()), None)

    def is_idle(self, session: Session) -> bool:
        return session in self._idle

    async def aclose(self) -> None:
        """End all sessions, within seconds; calls that wait for one fail."""
        self._closed = True
        tasks = [*self._examinations, *([self._keeper] if self._keeper else [])]
        for task in tasks:
            task.cancel()
        self._refuse()
        sessions = [asyncio.ensure_future(session.aclose()) for session in self._sessions]
        if tasks or sessions:
            await asyncio.wait([*tasks, *sessions])
        self._tried.set()

    def tools_changed(self, session: Session) -> None:
        self._changed(session)

    def session_ended(self, session: Session) -> None:
        self._sessions.discard(session)
        since = self._connected.pop(session, None)
        if session in self._idle:
            self._idle.remove(session)
        if since is not None and not self._closed:
            lasted = asyncio.get_running_loop().time() - since >= _LASTS_S
            self._failures = 0 if lasted else self._failures
            self._failed(session.lost or "it ended")
        self._wanted.set()

    def _usable(self) -> list[Session]:
        return [session for session in self._connected if session.lost is None]

    async def _keep(self) -> None:
        while True:
            self._wanted.clear()
            if not self._is_short():
                await self._wanted.wait()
                continue
            await self._pause()
            if self._is_short():
                await self._open()

    def _is_short(self) -> bool:
        return len(self._sessions) < self._max_sessions and (bool(self._waiting) or not self._usable())

    async def _pause(self) -> None:
        """Wait for the next attempt's time, which comes sooner when a call wants it."""
        loop = asyncio.get_running_loop()
        while True:
            until = min(self._next_try, self._last_try + _SHORTEST_PAUSE_S) if self._waiting else self._next_try
            if loop.time() >= until:
                return
            self._wanted.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout_at(until):
                    await self._wanted.wait()

    async def _open(self) -> None:
        loop = asyncio.get_running_loop()
        session: Session | None = None
        try:
            session = await self._connector.open(self)
            self._sessions.add(session)
            tools = await session.connect()
            if session not in self._sessions:
                raise NotConnected(session.lost or "it ended")
            self._connected[session] = loop.time()
            if self._reason is not None or not self._tried.is_set():
                _log.info("mcp_connected", server=self._server, tools=len(tools))
            self._reason = None
            self._listed(session, tools)
            self.take_back(session)
        except NotConnected as error:
            self._connector.failed()
            self._not_opened(str(error))
        except Exception as error:  # noqa: BLE001 - a task's edge: it goes on with the next attempt
            _log.error("mcp_connect_broke", server=self._server, error=Raised(error).summary)
            if session is not None:
                session.lose("it cannot be used")
            self._not_opened(Raised(error).summary)
        finally:
            self._last_try = loop.time()
            self._tried.set()

    def _not_opened(self, reason: str) -> None:
        self._failed(reason)
        if not self._usable():
            self._refuse()

    def _failed(self, reason: str) -> None:
        pause = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2**self._failures) * random.uniform(0.5, 1)
        self._failures = min(self._failures + 1, _MAX_DOUBLINGS)
        self._next_try = asyncio.get_running_loop().time() + pause
        if not self._usable() and reason != self._reason:
            _log.warning("mcp_unavailable", server=self._server, reason=reason)
            self._reason = reason

    async def _examine(self, session: Session) -> None:
        answers = False
        try:
            answers = await session.answers()
        finally:
            if answers:
                self.take_back(session)
            else:
                session.lose("it does not answer")

    def _withdraw(self, waiter: asyncio.Future[Session]) -> None:
        with suppress(ValueError):
            self._waiting.remove(waiter)
        if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
            self.take_back(waiter.result())

    def _refuse(self) -> None:
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_exception(self._unavailable())

    def _unavailable(self) -> CallError:
        return CallError(f"the MCP server {self._server!r} is not available right now; it was not called")
