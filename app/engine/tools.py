"""What a tool is, seen from the engine: a name, a schema, an effect, and a port that runs calls of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol


class ToolEffect(StrEnum):
    """What a call does to the world, and so what may be done when its outcome is unknown."""

    READ_ONLY = "read_only"  # run again freely
    IDEMPOTENT = "idempotent"  # run again with the same idempotency key
    UNSAFE = "unsafe"  # never run again by itself


@dataclass(frozen=True, slots=True)
class ToolSpec:
    """A tool as the model and the policies see it; `parameters` is a JSON Schema of type object."""

    name: str
    description: str
    parameters: Mapping[str, Any]
    effect: ToolEffect = ToolEffect.UNSAFE
    source: str = "python"


@dataclass(frozen=True, slots=True)
class ToolInvocation:
    """One call, as handed to the tool port.

    Args:
        arguments: the model's text, not yet parsed.
        idempotency_key: stable over attempts of this very call, unique over all calls.
        allowed_tools: the tools that the agent named; no other is run.
        output_max_chars: the bound of what the model reads.
    """

    run_id: str
    thread_id: str
    agent_name: str
    tool_call_id: str
    tool_name: str
    arguments: str
    idempotency_key: str
    context: Mapping[str, Any]
    metadata: Mapping[str, str]
    allowed_tools: frozenset[str]
    output_max_chars: int


@dataclass(frozen=True, slots=True)
class ToolResult:
    """How a call ended.

    Args:
        success: whether the handler returned a value.
        output: the value as JSON text (the record keeps it), or None.
        error: one line that the model can act upon, or None on success.
        content: the bounded text that the model reads, for success and for errors alike.
        latency_ms: wall time of the call in milliseconds.
    """

    success: bool
    output: str | None
    error: str | None
    content: str
    latency_ms: float
    replayed: bool = False


class ToolPort(Protocol):
    """Runs tool calls; implemented by `app.tools`."""

    def spec(self, name: str) -> ToolSpec | None:
        """The tool of that name, or None if this replica has none."""
        ...

    async def invoke(self, invocation: ToolInvocation) -> ToolResult:
        """Run one call to its end. Every failure of the tool is a `ToolResult`; only cancellation is raised."""
        ...
