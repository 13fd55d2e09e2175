"""What the tests of tools share: a call as the engine makes it, and one registry's answer to it."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import orjson
import pytest

from app.engine.tools import ToolInvocation, ToolResult
from app.tools import FunctionTool, ToolRegistry
from tests.tool_calls import EndingRegistry

Invocation = Callable[..., ToolInvocation]
Call = Callable[..., Awaitable[ToolResult]]
Registered = Callable[..., ToolRegistry]


@pytest.fixture
def invocation() -> Invocation:
    def make(tool_name: str, arguments: object = "{}", **changes: Any) -> ToolInvocation:
        text = arguments if isinstance(arguments, str) else orjson.dumps(arguments).decode()
        fields: dict[str, Any] = {
            "run_id": "run-1",
            "thread_id": "thread-1",
            "agent_name": "analyst",
            "tool_call_id": "call-1",
            "tool_name": tool_name,
            "arguments": text,
            "idempotency_key": "run-1/1/0",
            "context": {},
            "metadata": {},
            "allowed_tools": frozenset({tool_name}),
            "output_max_chars": 12_000,
            "sanitize": False,  # most tests are about what a tool says; fences have tests of their own
        }
        return ToolInvocation(**(fields | changes))

    return make


@pytest.fixture
def call(invocation: Invocation) -> Call:
    """Call one tool with arguments, as an object or as the model's text."""

    async def invoke(tool: FunctionTool[..., Any], arguments: object = "{}", **changes: Any) -> ToolResult:
        registry = EndingRegistry([tool])
        try:
            return await registry.invoke(invocation(tool.spec.name, arguments, **changes))
        finally:
            await registry.aclose()

    return invoke


@pytest.fixture
async def registered() -> AsyncIterator[Registered]:
    made: list[ToolRegistry] = []

    def make(*tools: Any, **settings: Any) -> ToolRegistry:
        made.append(ToolRegistry(tools, **settings))
        return made[-1]

    yield make
    for registry in made:
        await registry.aclose()


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """What a blocked thread waits for; opened at the end so that no thread outlives its test."""
    event = threading.Event()
    yield event
    event.set()
