"""What a tool is, seen from the engine: a name, a schema, an effect, and a port that runs calls of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

from app.engine.effects import ToolEffect
from app.engine.memories import AgentMemories, MemoryRefused
from app.engine.tool_definitions import Toolbox

DEFAULT_TTL_S = 3600.0


class ToolSource(StrEnum):
    """Where a tool comes from, and so who runs its calls."""

    PYTHON = "python"
    HTTP = "http"
    MCP = "mcp"
    CALLER = "caller"  # the caller runs the call and posts its result
    SUBAGENT = "subagent"  # a call is a child run


@dataclass(frozen=True, slots=True)
class ToolSpec:
    """A tool as the model and the policies see it.

    Args:
        parameters: a JSON Schema of type object.
        has_prehooks: calls go through `ToolPort.prepare` before policy judges them.
        ttl_s: of a caller-side tool, seconds until a call without a result has failed.
        raise_on_error: a failed call ends the run as failed, whatever the agent's `tool_failure_policy` says.
    """

    name: str
    description: str
    parameters: Mapping[str, Any]
    effect: ToolEffect = ToolEffect.UNSAFE
    source: ToolSource = ToolSource.PYTHON
    has_prehooks: bool = False
    ttl_s: float = DEFAULT_TTL_S
    raise_on_error: bool = False


def _nobody_listens(_message: str, _data: Any) -> None:
    pass


def no_memories() -> AgentMemories:
    """Of a call that no run has made."""
    raise MemoryRefused("there are no memories outside of a run")


@dataclass(frozen=True, slots=True)
class ToolInvocation:
    """One call, as handed to the tool port.

    Args:
        arguments: JSON text: as the model wrote it, or as it was changed since (by hooks, a rule or a person).
        idempotency_key: stable over attempts of this very call, unique over all calls.
        allowed_tools: the tools that the agent named; no other is run.
        output_max_chars: the bound of what the model reads.
        sanitize: whether what the model reads is neutralised and fenced as untrusted data.
        sandbox: the name of the operator's profile that bounds the call; None for none.
        progress: tells readers of the run how far the call is (a message, and JSON data or None); from any thread.
        memories: finds the memories of the run's namespace; raises MemoryRefused if it has none.
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
    sanitize: bool = True
    sandbox: str | None = None
    progress: Callable[[str, Any], None] = _nobody_listens
    memories: Callable[[], AgentMemories] = no_memories


@dataclass(frozen=True, slots=True)
class ToolResult:
    """How a call ended.

    Args:
        success: whether the handler returned a value.
        output: the value as JSON text (the record keeps it), or None.
        error: one line that the model can act upon, or None on success.
        content: the bounded text that the model reads, for success and for errors alike.
        latency_ms: wall time of the call in milliseconds.
        denied: whether policy or a person refused the call, so that it never ran.
    """

    success: bool
    output: str | None
    error: str | None
    content: str
    latency_ms: float
    replayed: bool = False
    denied: bool = False


@dataclass(frozen=True, slots=True)
class Deferral:
    """A handler's promise of a result that comes later, by REST; after `ttl_s` seconds the call has failed.

    Args:
        summary: what was begun, for people and in the event log.
        resume_hint: what brings the result, or None.
    """

    ticket_id: str
    summary: str
    resume_hint: str | None = None
    ttl_s: float = DEFAULT_TTL_S


class ArgumentsRefused(Exception):
    """Arguments do not fit a tool; the text tells a model or a person what to change."""


class ToolPort(Protocol):
    """Runs tool calls; implemented by `app.tools`."""

    def for_agent(self, toolbox: Toolbox) -> ToolPort:
        """The same tools with those that one agent's definition adds; cheap, and without side effects."""
        ...

    def spec(self, name: str) -> ToolSpec | None:
        """The tool of that name, or None if this replica has none."""
        ...

    async def settled(self, names: Sequence[str]) -> None:
        """Wait, some seconds at most, until the servers of these tools, and of the agent's toolbox, were tried once."""
        ...

    def granted(self, names: Sequence[str]) -> tuple[ToolSpec, ...]:
        """The tools of these names, and all that the agent's toolbox adds; those that are not there are left out."""
        ...

    def lacking(self, names: Sequence[str]) -> tuple[str, ...]:
        """Those of the names that this replica has no tool of and, unlike a server's that is down, never will have."""
        ...

    def checked(self, name: str, arguments: str) -> str:
        """Arguments as the tool will get them: parsed, validated and with its defaults, as JSON text.

        Raises:
            ArgumentsRefused: they are no JSON object or do not fit the tool's schema, or there is no such tool.
        """
        ...

    async def prepare(self, invocation: ToolInvocation) -> str | ToolResult:
        """Run a tool's pre-hooks: the arguments as JSON text after them, or the result of a call that they refused."""
        ...

    async def invoke(self, invocation: ToolInvocation) -> ToolResult | Deferral:
        """Run one call to its end. Every failure of the tool is a `ToolResult`; only cancellation is raised."""
        ...

    def result(
        self,
        *,
        output: str | None,
        error: str | None,
        output_max_chars: int,
        sanitize: bool,
        denied: bool = False,
        latency_ms: float = 0.0,
    ) -> ToolResult:
        """The result of a call that this port did not run: posted by a caller, given by a person or a child run.

        Args:
            output: JSON text of a success; None with an `error`.
            error: one line; None on success.
        """
        ...
