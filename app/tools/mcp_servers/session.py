"""One session with a server: opened, held and closed by one task, since the scopes of the `mcp` package must be.

The only way from the rest of `app` to that package; importing it takes the better part of a second.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, suppress
from importlib.metadata import version
from typing import Any, Literal, cast

from mcp import Client, ClientSession, MCPError
from mcp_types import (
    CONNECTION_CLOSED,
    CallToolRequest,
    CallToolRequestParams,
    CallToolResult,
    Implementation,
    InputRequiredResult,
    LoggingMessageNotificationParams,
    PaginatedRequestParams,
    Tool,
    ToolListChangedNotification,
)
from mcp_types.version import MODERN_PROTOCOL_VERSIONS
from pydantic import TypeAdapter, ValidationError

from app.telemetry.logs import get_logger
from app.tools.errors import CallError, HandlerError
from app.tools.mcp_servers.content import value_of
from app.tools.mcp_servers.declaration import McpDeclaration
from app.tools.mcp_servers.flood import FloodGate
from app.tools.mcp_servers.link import Link
from app.tools.mcp_servers.remote import (
    AnswerMissing,
    NotConnected,
    NotSent,
    Progress,
    RemoteTool,
    SessionEvents,
)

Streams = Callable[[Link], AbstractAsyncContextManager[Any]]
Mode = Literal["auto", "legacy"]

_ENVELOPE_BYTES = 64 * 1024
_MAX_UNASKED_MESSAGES = 5000
_MAX_UNASKED_ANSWERS = 8
_MAX_PAGES = 50
_MAX_TOOLS = 500
_SUBSCRIBE_S = 3.0
_ANSWERS_S = 2.0
_OWNER_SAYS_WHY_S = 0.25
_CLOSE_S = 3.5
_CUT_OFF_S = 1.5
_MAX_REASON_CHARS = 500
# How the package words an answer that broke off; with the same code, servers mean errors of their own.
_BROKEN_OFF = ("Connection closed", "SSE stream")
_IDEMPOTENCY_KEY = "agent-runner/idempotency-key"
_RESULT: TypeAdapter[CallToolResult | InputRequiredResult] = TypeAdapter(CallToolResult | InputRequiredResult)

_log = get_logger(__name__)


class McpSession:
    """See `Session`.

    Args:
        server: its name, for the log.
        streams: makes the connection; entered and left by the session's task.
        mode: `auto` asks for the newest protocol first, which some servers of older ones do not survive.
        redacted: a text without the operator's secrets.
    """

    def __init__(
        self,
        server: str,
        declaration: McpDeclaration,
        streams: Streams,
        mode: Mode,
        events: SessionEvents,
        redacted: Callable[[str], str],
    ) -> None:
        self._server = server
        self._declaration = declaration
        self._events = events
        max_bytes = declaration.max_output_bytes + _ENVELOPE_BYTES
        gate = FloodGate(_MAX_UNASKED_MESSAGES, max_bytes * _MAX_UNASKED_ANSWERS)
        self._link = Link(server, gate, max_bytes, redacted, self._leave)
        self._client = Client(
            _Transport(streams, self._link),
            mode=mode,
            cache=None,
            client_info=Implementation(name="agent-runner", version=version("agent-runner")),
            logging_callback=self._logged,
            message_handler=self._heard,
        )
        self._leaving = asyncio.Event()
        self._listed: asyncio.Future[list[RemoteTool]] = asyncio.get_running_loop().create_future()
        self._owner: asyncio.Task[None] | None = None
        self._session: ClientSession | None = None

    @property
    def lost(self) -> str | None:
        return self._link.lost

    def lose(self, reason: str) -> None:
        self._link.lose(reason)

    async def connect(self) -> list[RemoteTool]:
        self._owner = asyncio.create_task(self._own(), name=f"mcp {self._server}")
        self._owner.add_done_callback(lambda _: self._events.session_ended(self))
        return await asyncio.shield(self._listed)

    async def tools(self) -> list[RemoteTool]:
        session = self._session
        if session is None or self.lost is not None:
            raise AnswerMissing(self.lost or "it is not connected")
        self._link.gate.refill()
        try:
            async with asyncio.timeout(self._declaration.start_timeout_s):
                return await self._pages(session)
        except (MCPError, ValidationError, TimeoutError) as error:
            raise AnswerMissing(self._link.redacted(f"it does not tell its tools: {_reason(error)}")) from error

    async def call(self, tool: str, arguments: Mapping[str, Any], key: str, on_progress: Progress) -> object:
        session = self._session
        if session is None or self.lost is not None:
            raise NotSent(self.lost or "it is not connected")
        self._link.gate.refill()
        params = CallToolRequestParams(name=tool, arguments=dict(arguments), _meta={_IDEMPOTENCY_KEY: key})
        listening = True

        async def told(progress: float, total: float | None, message: str | None) -> None:
            if listening:
                on_progress(progress, total, message)

        try:
            # Not `call_tool`: it would hold the answer against a schema and patterns that the server itself chose.
            result = await session.send_request(CallToolRequest(params=params), _RESULT, progress_callback=told)
        except MCPError as error:
            raise await self._failed(error) from error
        except ValidationError as error:
            raise CallError(
                "the server's answer does not follow the protocol; whether the call took effect is unknown"
            ) from error
        finally:
            listening = False
        if isinstance(result, InputRequiredResult):
            raise CallError("the tool asks for more input than its arguments, which is not supported")
        return value_of(result)

    async def answers(self) -> bool:
        session = self._session
        if session is None or self.lost is not None:
            return False
        version = session.protocol_version
        try:
            async with asyncio.timeout(_ANSWERS_S):
                if version in MODERN_PROTOCOL_VERSIONS:  # which have no ping
                    await session.send_discover(version)
                else:
                    await session.send_ping()
        except MCPError as error:
            return self.lost is None and error.code != CONNECTION_CLOSED
        except (TimeoutError, ValidationError):
            return False
        return self.lost is None

    async def aclose(self) -> None:
        owner = self._owner
        if owner is None:
            return
        self._link.lose("it was closed", gently=True)
        _, late = await asyncio.wait({owner}, timeout=_CLOSE_S + _CUT_OFF_S)
        if late:
            _log.warning("mcp_session_does_not_end", server=self._server)

    def _leave(self) -> None:
        if self._owner is None or self._leaving.is_set():
            return
        self._leaving.set()
        if not self._listed.done():
            self._owner.cancel()
        # A server that does not let go of its connection is cut off.
        cut = asyncio.get_running_loop().call_later(_CLOSE_S, self._owner.cancel)
        self._owner.add_done_callback(lambda _: cut.cancel())

    async def _own(self) -> None:
        reason = "it ended"
        try:
            async with AsyncExitStack() as stack:
                async with asyncio.timeout(self._declaration.start_timeout_s):
                    tools = await self._open(stack)
                self._listed.set_result(tools)
                await self._leaving.wait()
        except TimeoutError:
            if not self._listed.done():
                reason = f"it was not ready after {self._declaration.start_timeout_s:g} s"
        except Exception as error:  # noqa: BLE001 - a task's edge: transports fail in many ways
            reason = self._link.redacted(_reason(error))
            if self._link.http_status is not None:
                reason = f"HTTP {self._link.http_status}: {reason}"
            _log.debug("mcp_session_failed", server=self._server, reason=reason)
        finally:
            self._link.lose(reason)
            if not self._listed.done():
                self._listed.set_exception(NotConnected(self._link.lost or reason))
                self._listed.exception()  # whoever waited may have gone

    async def _open(self, stack: AsyncExitStack) -> list[RemoteTool]:
        client = await stack.enter_async_context(self._client)
        self._session = client.session
        tools = await self._pages(client.session)
        offered = client.server_capabilities.tools
        if client.protocol_version in MODERN_PROTOCOL_VERSIONS and offered is not None and offered.list_changed:
            # The news itself comes through `_heard`, as in the older protocols. RuntimeError: it ended at once.
            with suppress(MCPError, RuntimeError, TimeoutError):
                async with asyncio.timeout(_SUBSCRIBE_S):
                    await stack.enter_async_context(client.listen(tools_list_changed=True))
        return tools

    async def _pages(self, session: ClientSession) -> list[RemoteTool]:
        tools: list[RemoteTool] = []
        cursor: str | None = None
        if session.server_capabilities is None or session.server_capabilities.tools is None:
            return tools
        for _ in range(_MAX_PAGES):
            params = PaginatedRequestParams(cursor=cursor) if cursor else None
            page = await session.list_tools(params=params)
            tools += [_remote(tool) for tool in page.tools]
            cursor = page.next_cursor
            if not cursor or len(tools) > _MAX_TOOLS:
                break
        if cursor or len(tools) > _MAX_TOOLS:
            _log.warning(
                "mcp_tools_left_out", server=self._server, reason=f"more than {_MAX_TOOLS} or {_MAX_PAGES} pages"
            )
        return tools[:_MAX_TOOLS]

    async def _failed(self, error: MCPError) -> Exception:
        """What an error answer means; those of the transport look like the server's own."""
        if self._link.forgotten:
            self.lose("it does not know the session any more")
            return NotSent(str(error))
        if error.code == CONNECTION_CLOSED and self._owner is not None:
            # The task that holds the connection knows more, a moment later.
            await asyncio.wait({self._owner}, timeout=_OWNER_SAYS_WHY_S)
        if self.lost is not None:
            return AnswerMissing(self.lost)
        if error.code == CONNECTION_CLOSED and error.message.startswith(_BROKEN_OFF):
            return AnswerMissing(_reason(error))
        status = self._link.http_status
        return HandlerError(f"the server refused the call{f' (HTTP {status})' if status else ''}: {_reason(error)}")

    async def _heard(self, message: object) -> None:
        if isinstance(message, ToolListChangedNotification):
            self._events.tools_changed(self)

    async def _logged(self, params: LoggingMessageNotificationParams) -> None:
        text = self._link.redacted(str(params.data)[:_MAX_REASON_CHARS])
        _log.debug("mcp_message", server=self._server, level=params.level, text=text)


class _Transport:
    """The connection in the form in which the package enters and leaves it."""

    def __init__(self, streams: Streams, link: Link) -> None:
        self._streams = streams(link)

    async def __aenter__(self) -> Any:
        return await self._streams.__aenter__()

    async def __aexit__(self, *error: Any) -> bool | None:
        return await self._streams.__aexit__(*error)


def _remote(tool: Tool) -> RemoteTool:
    hints = tool.annotations
    return RemoteTool(
        name=tool.name,
        description=tool.description or tool.title or "",
        schema=tool.input_schema,
        read_only=bool(hints and hints.read_only_hint),
        idempotent=bool(hints and hints.idempotent_hint),
    )


def _reason(error: BaseException) -> str:
    """The first cause, on one bounded line."""
    if isinstance(error, BaseExceptionGroup):
        return _reason(cast("BaseExceptionGroup[BaseException]", error).exceptions[0])
    text = " ".join(str(error).split())[:_MAX_REASON_CHARS]
    if isinstance(error, MCPError | NotConnected):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _by_another(record: logging.LogRecord) -> bool:
    return os.path.join("mcp", "client") not in record.pathname


# It logs what servers send, with a traceback for each message that it does not understand; what matters is told here.
logging.getLogger("mcp").setLevel(logging.CRITICAL)
logging.getLogger("client").addFilter(_by_another)
