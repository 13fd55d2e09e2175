"""All MCP servers that the operator declared."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

from app.engine.tools import ToolSpec
from app.tools.callable_tool import CallableTool
from app.tools.egress import Egress
from app.tools.mcp_servers.connector import McpConnector
from app.tools.mcp_servers.declaration import McpDeclaration
from app.tools.mcp_servers.names import server_of
from app.tools.mcp_servers.server import McpServer
from app.tools.mcp_servers.session_pool import McpState
from app.tools.secrets import Secrets


@dataclass(frozen=True, slots=True)
class McpStatus:
    """How one server is.

    Args:
        reason: why it is unavailable, for the operator; None otherwise.
    """

    state: McpState
    tools: int
    reason: str | None


class McpServers:
    """The declared servers and their tools.

    Args:
        declarations: by name.
        secrets: what `{{ secrets.name }}` in their environments and headers stands for.
        egress: says where a server's host may be connected to.
    """

    def __init__(self, declarations: Mapping[str, McpDeclaration], secrets: Secrets, egress: Egress) -> None:
        self._servers = {
            name: McpServer(name, declaration, McpConnector(name, declaration, secrets, egress))
            for name, declaration in declarations.items()
        }

    def start(self) -> None:
        """Begin to connect, in the background: nothing here waits for a server, and none can make this fail."""
        for server in self._servers.values():
            server.start()

    async def settled(self, timeout_s: float) -> bool:
        """Wait until every server was tried once: each is connected then, or was not to be reached.

        Returns:
            False if `timeout_s` seconds did not suffice.
        """
        try:
            async with asyncio.timeout(timeout_s):
                for server in self._servers.values():
                    await server.pool.tried()
        except TimeoutError:
            return False
        return True

    def declared(self, server: str) -> bool:
        """Whether the operator declared a server of that name, connected or not."""
        return server in self._servers

    def names(self) -> list[str]:
        """The declared servers."""
        return list(self._servers)

    def state(self, server: str) -> McpStatus:
        """How a declared server is; KeyError for any other."""
        known = self._servers[server]
        return McpStatus(known.pool.state, len(known.tools), known.pool.reason)

    def find(self, tool: str) -> CallableTool | None:
        """The tool that models call `server__tool`, if its server ever told of it."""
        server = server_of(tool)
        return self._servers[server].tools.get(tool) if server in self._servers else None

    def spec(self, tool: str) -> ToolSpec | None:
        """The spec of `find`'s tool."""
        found = self.find(tool)
        return None if found is None else found.spec

    def tools_of(self, server: str) -> list[CallableTool]:
        """The tools of one server, in its own order; none if there is no such server, or before its first list."""
        return list(self._servers[server].tools.values()) if server in self._servers else []

    def all(self) -> list[CallableTool]:
        """The tools of all servers."""
        return [tool for server in self._servers for tool in self.tools_of(server)]

    async def aclose(self) -> None:
        """End all sessions and processes, within seconds, whatever they do."""
        await asyncio.gather(*(server.aclose() for server in self._servers.values()))
