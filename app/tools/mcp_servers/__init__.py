"""MCP servers that the operator declared, as sources of tools.

    declaration     the operator's file              names       `server__tool`
    servers         all of them, for the registry    server      one: its tools, and calls of them
    session_pool    its sessions                     connector   how one is made, with which secrets
    remote          what a session is to the pool    tool        what a tool is to the registry

and, imported with the `mcp` package when the first session is opened:

    session         one session                      stdio, http the two transports
    link            what the two have in common      content     results as values

A server is another party: it may hang, die, lie and flood, and costs nothing but its own calls then.
"""

from __future__ import annotations

from app.tools.mcp_servers.declaration import McpDeclaration, read_declarations
from app.tools.mcp_servers.servers import McpServers, McpStatus
from app.tools.mcp_servers.session_pool import McpState

__all__ = ["McpDeclaration", "McpServers", "McpState", "McpStatus", "read_declarations"]
