"""Calls of tools that end at once, as most tests make them."""

from __future__ import annotations

from dataclasses import replace

from app.engine.tools import ToolInvocation, ToolResult
from app.tools import ToolRegistry


class EndingRegistry(ToolRegistry):
    """A registry none of whose tools puts off its result."""

    async def invoke(self, invocation: ToolInvocation) -> ToolResult:
        result = await super().invoke(invocation)
        assert isinstance(result, ToolResult)
        return result


async def ended(registry: ToolRegistry, invocation: ToolInvocation) -> ToolResult:
    """The result of a call that goes the whole way, as the engine takes it."""
    prepared = await registry.prepare(invocation)
    if isinstance(prepared, ToolResult):
        return prepared
    result = await registry.invoke(replace(invocation, arguments=prepared))
    assert isinstance(result, ToolResult)
    return result
