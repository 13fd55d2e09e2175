"""A server's sessions as the pool sees them: what they offer and how they fail. Knows nothing of the `mcp` package."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from app.tools.errors import ToolError


@dataclass(frozen=True, slots=True)
class RemoteTool:
    """One entry of a server's list of tools.

    Args:
        name: the server's own name for it.
        schema: of the arguments, as the server wrote it.
        read_only, idempotent: the server's hints.
    """

    name: str
    description: str
    schema: Mapping[str, Any]
    read_only: bool = False
    idempotent: bool = False


class NotConnected(ToolError):
    """No session could be opened; the text says why, for the operator."""


class AnswerMissing(ToolError):
    """A call was sent and brought no answer; the text says why, worded so that `the server: ...` can go before it."""


class NotSent(ToolError):
    """The call did not reach the server, or the server did nothing with it since it does not know the session."""


Progress = Callable[[float, float | None, str | None], None]
"""How far a call is, of how much (if the server knows), and in words."""


class Session(Protocol):
    """One session, from `connect` on; works on one call at a time."""

    @property
    def lost(self) -> str | None:
        """Why the session can no longer be used; None while it can."""
        ...

    async def connect(self) -> list[RemoteTool]:
        """Open it, and ask for the server's tools.

        Raises:
            NotConnected: it could not be opened in time.
        """
        ...

    async def tools(self) -> list[RemoteTool]:
        """Ask for the server's tools again.

        Raises:
            AnswerMissing: there was no answer, or one that cannot be used.
        """
        ...

    async def call(self, tool: str, arguments: Mapping[str, Any], key: str, on_progress: Progress) -> object:
        """Run a call. To give it up, cancel it: the server is told.

        Args:
            key: the call's idempotency key.

        Raises:
            CallError: the tool failed, or the server refused the call.
            AnswerMissing: whether the call took effect is unknown.
            NotSent: it did not; another session may do better.
        """
        ...

    async def answers(self) -> bool:
        """Whether the server answers on this session, within seconds."""
        ...

    def lose(self, reason: str) -> None:
        """Give the session up; it ends by itself, without a grace."""
        ...

    async def aclose(self) -> None:
        """End it, within five seconds, whatever the server does."""
        ...


class SessionEvents(Protocol):
    """Who is told of what happens to a session; called on the event loop."""

    def tools_changed(self, session: Session) -> None: ...

    def session_ended(self, session: Session) -> None: ...


class Connector(Protocol):
    """Makes sessions with one server."""

    async def open(self, events: SessionEvents) -> Session:
        """A new session, not connected yet.

        Raises:
            NotConnected: something that it needs is missing.
        """
        ...

    def failed(self) -> None:
        """The last session could not be connected, and the next one may be tried in another way."""
        ...
