"""One MCP server: its tools, kept as the server tells them, and calls of them."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Mapping
from contextlib import suppress
from types import MappingProxyType
from typing import Any

from app.engine.tools import ToolInvocation
from app.telemetry.logs import get_logger
from app.tools.errors import CallError, CallTimeoutError, ToolDefinitionError
from app.tools.mcp_servers.declaration import McpDeclaration
from app.tools.mcp_servers.names import unique_names
from app.tools.mcp_servers.remote import AnswerMissing, Connector, NotSent, Progress, RemoteTool, Session
from app.tools.mcp_servers.session_pool import SessionPool
from app.tools.mcp_servers.tool import McpTool
from app.tools.raised import Raised

_REFRESH_S = 60.0
_BETWEEN_REFRESHES_S = 0.25
_RETRY_S = 2.0
_REPORTS_AT_WILL = 100
_BETWEEN_REPORTS_S = 1.0

_log = get_logger(__name__)


class McpServer:
    """See above.

    Args:
        name: as the operator declared it.
        refresh_s: seconds after which the tools are asked for again, without any sign that they changed; this is also
            how an idle session is found to be dead.
    """

    def __init__(
        self,
        name: str,
        declaration: McpDeclaration,
        connector: Connector,
        *,
        refresh_s: float = _REFRESH_S,
    ) -> None:
        self._name = name
        self._declaration = declaration
        self._refresh_s = refresh_s
        self._changed = asyncio.Event()
        self._listed: list[RemoteTool] | None = None
        self._tools: dict[str, McpTool] = {}
        self._refresher: asyncio.Task[None] | None = None
        self._teller: Session | None = None
        self.pool = SessionPool(name, connector, declaration.max_sessions, self._opened, self._ask)

    @property
    def tools(self) -> Mapping[str, McpTool]:
        """By the names that models use; those of the last list while the server is away, none before the first."""
        return MappingProxyType(self._tools)

    def start(self) -> None:
        """Begin to connect; returns at once."""
        self.pool.start()
        self._refresher = asyncio.create_task(self._refresh(), name=f"mcp {self._name} tools")

    async def aclose(self) -> None:
        """End all of it, within seconds; calls under way fail."""
        if self._refresher is not None:
            self._refresher.cancel()
            await asyncio.wait({self._refresher})
        await self.pool.aclose()

    async def call(self, tool: RemoteTool, arguments: dict[str, Any], invocation: ToolInvocation) -> object:
        """Run one call within the server's `timeout_s`, waiting for a session included.

        Raises:
            CallError: it failed, or was never sent; the text says which, or that its outcome is unknown.
        """
        deadline = asyncio.get_running_loop().time() + self._declaration.timeout_s
        # A server that was restarted knows none of the sessions that are kept here.
        for _ in range(self._declaration.max_sessions + 1):
            with suppress(NotSent):
                return await self._call(tool, arguments, invocation, deadline)
        raise CallError(f"the MCP server {self._name!r} loses its sessions; it did not run the call")

    async def _call(
        self, tool: RemoteTool, arguments: dict[str, Any], invocation: ToolInvocation, deadline: float
    ) -> object:
        session = await self.pool.lend(deadline)
        settled = False
        try:
            # Looked at last: other tools may have come with a new session.
            if not any(known.remote.name == tool.name for known in self._tools.values()):
                settled = True
                raise CallError(f"the MCP server {self._name!r} has no tool {tool.name!r} any more")
            async with asyncio.timeout_at(deadline):
                progress = _progress(invocation)
                value = await session.call(tool.name, arguments, invocation.idempotency_key, progress)
            settled = True
            return value
        except TimeoutError as error:
            took = f"{self._declaration.timeout_s:g} s"
            raise CallTimeoutError(f"timed out after {took}; whether the call took effect is unknown") from error
        except AnswerMissing as error:
            raise CallError(
                f"the MCP server {self._name!r} gave no answer: {error}; whether the call took effect is unknown"
            ) from error
        except CallError:
            settled = True
            raise
        finally:
            if settled:
                self.pool.take_back(session)
            else:
                self.pool.doubt(session)

    def _opened(self, session: Session, listed: list[RemoteTool]) -> None:
        # Each process of a server may have tools of its own. A further one is no news.
        if self._teller is None or self._teller is session or self._teller.lost is not None:
            self._teller = session
            self._take(listed)

    def _ask(self, session: Session) -> None:
        self._teller = session
        self._changed.set()

    def _take(self, listed: list[RemoteTool]) -> None:
        """Make a session's list the tools; what did not change stays the same object."""
        if listed == self._listed:
            return
        self._listed = listed
        names = unique_names(self._name, [tool.name for tool in listed])
        tools: dict[str, McpTool] = {}
        for remote in listed:
            name = names.get(remote.name)
            if name is None:
                self._left_out(remote, "its name does not fit, or cannot be told from another one's")
                continue
            known = self._tools.get(name)
            if known is not None and known.remote == remote:
                tools[name] = known
                continue
            try:
                tools[name] = McpTool(name, remote, self._declaration, self.call)
            except ToolDefinitionError as error:
                self._left_out(remote, str(error))
        if unknown := sorted(set(self._declaration.effects) - {tool.name for tool in listed}):
            _log.warning("mcp_effects_unused", server=self._name, tools=unknown)
        self._tools = tools

    def _left_out(self, tool: RemoteTool, reason: str) -> None:
        _log.warning("mcp_tool_left_out", server=self._name, tool=tool.name[:100], reason=reason)

    async def _refresh(self) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._refresh_s):
                    await self._changed.wait()
            self._changed.clear()
            try:
                await self._ask_teller()
            except Exception as error:  # noqa: BLE001 - a task's edge: it goes on with the next list
                _log.error("mcp_refresh_broke", server=self._name, error=Raised(error).summary)
            await asyncio.sleep(_BETWEEN_REFRESHES_S)

    async def _ask_teller(self) -> None:
        session = self._teller
        if session is None or session.lost is not None:
            session = self._teller = self.pool.oldest()
        if session is None:
            return
        try:
            self._take(await session.tools())
        except AnswerMissing as error:
            if self.pool.is_idle(session):
                session.lose(str(error))
            else:
                # It works on a call, and may do so on one thing at a time.
                asyncio.get_running_loop().call_later(_RETRY_S, self._changed.set)


def _progress(invocation: ToolInvocation) -> Progress:
    """Reports to the call's readers; each one is kept, so a server that reports every row is heard once a second."""
    reports = 0
    last = -math.inf

    def tell(done: float, total: float | None, message: str | None) -> None:
        nonlocal reports, last
        now = time.monotonic()
        if reports >= _REPORTS_AT_WILL and now - last < _BETWEEN_REPORTS_S:
            return
        reports += 1
        last = now
        known = {"progress": done, "total": total}
        data = {key: value for key, value in known.items() if value is not None and math.isfinite(value)}
        invocation.progress(message or (f"{done:g}" if total is None else f"{done:g} of {total:g}"), data)

    return tell
