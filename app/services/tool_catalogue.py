"""The tools that agents of this replica may name."""

from __future__ import annotations

from app.engine.tools import ToolSpec
from app.services.pages import Page, page_of
from app.tools.mcp_servers.servers import McpServers
from app.tools.registry import ToolRegistry


class ToolCatalogue:
    """What agents declare for themselves is not in it.

    Args:
        mcp: the operator's MCP servers, whose tools may change at any time; None for none.
    """

    def __init__(self, tools: ToolRegistry, mcp: McpServers | None = None) -> None:
        self._tools = tools
        self._mcp = mcp

    def list(self, cursor: str | None, limit: int) -> Page[ToolSpec, str]:
        """All tools, in the order of their names; the cursor is a name."""
        specs = {spec.name: spec for spec in (*self._of_servers(), *self._tools.specs())}
        rest = [specs[name] for name in sorted(specs) if cursor is None or name > cursor]
        return page_of(rest, limit, lambda spec: spec.name)

    def _of_servers(self) -> list[ToolSpec]:
        return [] if self._mcp is None else [tool.spec for tool in self._mcp.all()]
