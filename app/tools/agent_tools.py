"""A replica's tools as one agent has them: with those that its definition declares, and its MCP servers'."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from app.engine.tool_definitions import CallerToolDefinition, Toolbox, ToolDefinition
from app.engine.tools import ToolPort
from app.telemetry.logs import get_logger
from app.tools.callable_tool import CallableTool
from app.tools.caller_tool import CallerTool
from app.tools.errors import ToolDefinitionError
from app.tools.http_tools import HttpTools
from app.tools.mcp_servers.servers import McpServers
from app.tools.tool_set import SETTLE_S, ToolSet

_log = get_logger(__name__)


class AgentTools(ToolSet):
    """Implements `app.engine.tools.ToolPort`.

    Args:
        tools: the replica's.
        declared: by name; these go before the replica's.
    """

    def __init__(
        self,
        tools: ToolSet,
        declared: Mapping[str, CallableTool],
        servers: tuple[str, ...],
        mcp: McpServers | None,
    ) -> None:
        super().__init__(tools.executor, tools.writer, tools.profiles)
        self._tools = tools
        self._declared = declared
        self._servers = servers
        self._mcp = mcp

    def for_agent(self, toolbox: Toolbox) -> ToolPort:
        """See `ToolPort.for_agent`."""
        return self._tools.for_agent(toolbox)

    def find(self, name: str) -> CallableTool | None:
        """See `ToolSet.find`."""
        return self._declared.get(name) or self._tools.find(name)

    async def settled(self, names: Sequence[str]) -> None:
        """See `ToolPort.settled`."""
        if self._servers and self._mcp is not None:
            await self._mcp.settled(SETTLE_S)
        else:
            await self._tools.settled(names)

    def added(self) -> Iterable[CallableTool]:
        """See `ToolSet.added`. A server's tools may change at any time."""
        yield from self._declared.values()
        if self._mcp is not None:
            for server in self._servers:
                yield from self._mcp.tools_of(server)

    def may_come(self, name: str) -> bool:
        """See `ToolSet.may_come`."""
        return self._tools.may_come(name)


def declared_tools(toolbox: Toolbox, http: HttpTools | None) -> dict[str, CallableTool]:
    """The tools of a definition. One that cannot be made is left out, and the log says so: it was refused when the
    agent was saved, unless what is allowed has changed since."""
    tools: dict[str, CallableTool] = {}
    for definition in toolbox.definitions:
        try:
            tools[definition.name] = _tool(definition, http)
        except ToolDefinitionError as error:
            _log.error("tool_not_usable", version_id=toolbox.version_id, tool_name=definition.name, error=str(error))
    return tools


def _tool(definition: ToolDefinition, http: HttpTools | None) -> CallableTool:
    if isinstance(definition, CallerToolDefinition):
        return CallerTool(definition)
    if http is None:
        raise ToolDefinitionError("this process calls no HTTP tools")
    return http.tool(definition)
