"""How a session with a declared server is made: over which transport, and with which secrets."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from app.engine.tool_definitions import SECRET_PLACEHOLDER
from app.tools.egress import Egress
from app.tools.errors import SecretError
from app.tools.mcp_servers.declaration import McpDeclaration, StdioDeclaration
from app.tools.mcp_servers.remote import NotConnected, Session, SessionEvents
from app.tools.secrets import Secrets

if TYPE_CHECKING:
    from app.tools.mcp_servers.session import Mode, Streams


class McpConnector:
    """Implements `Connector` with the `mcp` package, which is imported when the first session is opened.

    Args:
        server: its name, for the log.
    """

    def __init__(self, server: str, declaration: McpDeclaration, secrets: Secrets, egress: Egress) -> None:
        self._server = server
        self._declaration = declaration
        self._secrets = secrets
        self._egress = egress
        self._mode: Mode = "auto"

    async def open(self, events: SessionEvents) -> Session:
        """See `Connector.open`."""
        # In a thread, so that the event loop goes on meanwhile.
        await asyncio.to_thread(import_module, "app.tools.mcp_servers.session")
        from app.tools.mcp_servers.session import McpSession

        try:
            streams = self._streams()
        except SecretError as error:
            raise NotConnected(str(error)) from error
        return McpSession(self._server, self._declaration, streams, self._mode, events, self._secrets.redacted)

    def failed(self) -> None:
        """See `Connector.failed`."""
        self._mode = "legacy" if self._mode == "auto" else "auto"

    def _streams(self) -> Streams:
        declaration = self._declaration
        if isinstance(declaration, StdioDeclaration):
            from app.tools.mcp_servers.stdio import stdio_streams

            return partial(stdio_streams, declaration, _filled(declaration.env, self._secrets.value))
        from app.tools.mcp_servers.http import http_streams

        parts = urlsplit(declaration.url)
        host = parts.hostname or ""
        headers = _filled(declaration.headers, lambda name: self._secrets.for_host(name, host))
        in_clear = parts.scheme == "http" and headers != declaration.headers
        resolve = partial(self._egress.addresses, secrets_in_clear=in_clear)
        return partial(http_streams, declaration, headers, resolve, self._egress.tls)


def _filled(values: Mapping[str, str], secret: Callable[[str], str]) -> dict[str, str]:
    """The values with the secrets that they name in place."""
    return {key: SECRET_PLACEHOLDER.sub(lambda place: secret(place[1]), value) for key, value in values.items()}
