"""A tool of an MCP server, as the registry calls it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from app.engine.effects import ToolEffect
from app.engine.tools import ToolInvocation, ToolSource, ToolSpec
from app.tools.mcp_servers.declaration import McpDeclaration
from app.tools.mcp_servers.remote import RemoteTool
from app.tools.schema_arguments import SchemaArguments

_MAX_DESCRIPTION_CHARS = 4_000
_SAYS_MORE_S = 1.0

Run = Callable[[RemoteTool, dict[str, Any], ToolInvocation], Awaitable[object]]


class McpTool:
    """Implements `CallableTool`.

    Args:
        name: what models call it.
        run: calls it; see `McpServer.call`.

    Raises:
        ToolDefinitionError: the server's schema of its arguments cannot be used.
    """

    def __init__(self, name: str, remote: RemoteTool, declaration: McpDeclaration, run: Run) -> None:
        self.remote = remote
        self._arguments = SchemaArguments(remote.schema)
        self._run = run
        self._spec = ToolSpec(
            name=name,
            description=remote.description[:_MAX_DESCRIPTION_CHARS],
            parameters=self._arguments.json_schema,
            effect=_effect(remote, declaration),
            source=ToolSource.MCP,
        )
        # A call that takes too long fails by itself, and with more to say than the registry has.
        self._timeout_s = declaration.timeout_s + _SAYS_MORE_S

    @property
    def spec(self) -> ToolSpec:
        return self._spec

    @property
    def timeout_s(self) -> float:
        return self._timeout_s

    def parsed(self, arguments: str) -> dict[str, Any]:
        """See `CallableTool.parsed`."""
        return self._arguments.parse(arguments)

    async def call(self, arguments: dict[str, Any], invocation: ToolInvocation) -> object:
        """See `CallableTool.call`."""
        return await self._run(self.remote, arguments, invocation)


def _effect(remote: RemoteTool, declaration: McpDeclaration) -> ToolEffect:
    """The operator's word goes before the server's, and that counts only where the operator trusts it."""
    if remote.name in declaration.effects:
        return declaration.effects[remote.name]
    if declaration.trust_annotations and remote.read_only:
        return ToolEffect.READ_ONLY
    if declaration.trust_annotations and remote.idempotent:
        return ToolEffect.IDEMPOTENT
    return declaration.effect
