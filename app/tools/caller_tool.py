"""A tool that the caller runs: here it is only told of and its arguments are checked."""

from __future__ import annotations

from typing import Any

from app.engine.tool_definitions import CallerToolDefinition
from app.engine.tools import ToolInvocation, ToolSource, ToolSpec
from app.tools.errors import CallError
from app.tools.schema_arguments import SchemaArguments


class CallerTool:
    """Implements `CallableTool`.

    Raises:
        ToolDefinitionError: its schema cannot be used.
    """

    def __init__(self, definition: CallerToolDefinition) -> None:
        self._arguments = SchemaArguments(definition.parameters)
        self.spec = ToolSpec(
            name=definition.name,
            description=definition.description,
            parameters=self._arguments.json_schema,
            effect=definition.effect,
            source=ToolSource.CALLER,
            ttl_s=definition.ttl_s,
        )
        self.timeout_s = definition.ttl_s

    def parsed(self, arguments: str) -> dict[str, Any]:
        """See `CallableTool.parsed`."""
        return self._arguments.parse(arguments)

    async def call(self, arguments: dict[str, Any], invocation: ToolInvocation) -> object:
        """Raises: CallError, whatever is asked for."""
        raise CallError(f"the tool {self.spec.name!r} is run by the caller")
