"""The engine's tool port over any set of tools."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from typing import TypeVar

from pydantic_core import to_json

from app.engine.tool_definitions import Toolbox
from app.engine.tools import (
    ArgumentsRefused,
    Deferral,
    ToolInvocation,
    ToolPort,
    ToolResult,
    ToolSource,
    ToolSpec,
)
from app.telemetry.logs import get_logger
from app.tools.callable_tool import CallableTool
from app.tools.errors import CallError, CallTimeoutError, HandlerError, NoFreeThreadError
from app.tools.execution import ToolExecutor
from app.tools.output import Output
from app.tools.python_tool import PythonTool
from app.tools.raised import Raised
from app.tools.result_writer import ResultWriter

# How long a run waits for MCP servers that were not tried yet: this service has only just started.
SETTLE_S = 5.0

_T = TypeVar("_T")

_log = get_logger(__name__)


class ToolSet(ABC):
    """Implements `app.engine.tools.ToolPort`.

    Args:
        profiles: the names of the operator's sandbox profiles.
    """

    def __init__(self, executor: ToolExecutor, writer: ResultWriter, profiles: Collection[str]) -> None:
        self.executor = executor
        self.writer = writer
        self.profiles = profiles

    @abstractmethod
    def for_agent(self, toolbox: Toolbox) -> ToolPort:
        """See `ToolPort.for_agent`."""

    @abstractmethod
    def find(self, name: str) -> CallableTool | None:
        """The tool of that name, or None."""

    @abstractmethod
    async def settled(self, names: Sequence[str]) -> None:
        """See `ToolPort.settled`."""

    @abstractmethod
    def added(self) -> Iterable[CallableTool]:
        """The tools that need not be named to be granted."""

    @abstractmethod
    def may_come(self, name: str) -> bool:
        """Whether a tool that is not there may be there later: it is one of a server's that is down."""

    def spec(self, name: str) -> ToolSpec | None:
        """See `ToolPort.spec`."""
        tool = self.find(name)
        return tool.spec if tool else None

    def granted(self, names: Sequence[str]) -> tuple[ToolSpec, ...]:
        """See `ToolPort.granted`."""
        specs = {name: tool.spec for name in names if (tool := self.find(name)) is not None}
        for tool in self.added():
            specs.setdefault(tool.spec.name, tool.spec)
        return tuple(specs.values())

    def lacking(self, names: Sequence[str]) -> tuple[str, ...]:
        """See `ToolPort.lacking`."""
        return tuple(name for name in names if self.find(name) is None and not self.may_come(name))

    def checked(self, name: str, arguments: str) -> str:
        """See `ToolPort.checked`."""
        tool = self.find(name)
        if tool is None:
            raise ArgumentsRefused(f"there is no tool {name!r}")
        try:
            return _checked(tool, arguments)
        except CallError as error:
            raise ArgumentsRefused("\n- ".join((error.message, *error.details))) from error

    async def prepare(self, invocation: ToolInvocation) -> str | ToolResult:
        """See `ToolPort.prepare`."""
        return await self._told(invocation, self._prepared, time.perf_counter())

    async def invoke(self, invocation: ToolInvocation) -> ToolResult | Deferral:
        """See `ToolPort.invoke`."""
        started = time.perf_counter()
        outcome = await self._told(invocation, self._run, started)
        if not isinstance(outcome, Output):
            return outcome
        return ToolResult(True, outcome.json, None, outcome.content, _milliseconds_since(started))

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
        """See `ToolPort.result`."""
        if error is not None:
            # A refusal is for the model to follow; any other error is what somebody else's tool said.
            told = CallError(error) if denied else HandlerError(error)
            return self.writer.failure(
                told, max_chars=output_max_chars, sanitize=sanitize, latency_ms=latency_ms, denied=denied
            )
        posted = self.writer.posted(output or "null", max_chars=output_max_chars, sanitize=sanitize)
        return ToolResult(True, posted.json, None, posted.content, latency_ms)

    async def _run(self, invocation: ToolInvocation) -> Output | Deferral:
        tool = self._named(invocation)
        return await self.executor.run(tool, tool.parsed(invocation.arguments), invocation)

    async def _prepared(self, invocation: ToolInvocation) -> str:
        tool = self._named(invocation)
        if isinstance(tool, PythonTool) and tool.spec.has_prehooks:
            return await self.executor.prepare(tool, invocation)
        return _checked(tool, invocation.arguments)

    async def _told(
        self, invocation: ToolInvocation, step: Callable[[ToolInvocation], Awaitable[_T]], started: float
    ) -> _T | ToolResult:
        """What a step gives, or the result of a call that failed in it."""
        try:
            return await step(invocation)
        except CallError as failure:
            if isinstance(failure, CallTimeoutError | NoFreeThreadError):
                _log.warning("tool_timed_out", run_id=invocation.run_id, tool_name=invocation.tool_name)
            error = failure
        except Exception as broken:  # noqa: BLE001 - a call's edge: a validator or a context that breaks ends here
            raised = Raised(broken)
            summary = raised.summarised(self.writer.redacted)
            _log.error(
                "tool_call_broke",
                run_id=invocation.run_id,
                tool_name=invocation.tool_name,
                error=summary,
                frames=raised.frames,
            )
            error = CallError(summary)
        return self.writer.failure(
            error,
            max_chars=invocation.output_max_chars,
            sanitize=invocation.sanitize,
            latency_ms=_milliseconds_since(started),
        )

    def _named(self, invocation: ToolInvocation) -> CallableTool:
        name = invocation.tool_name
        if name not in invocation.allowed_tools:
            # The same words whether or not the replica has such a tool: what others may use is not told.
            names = ", ".join(sorted(invocation.allowed_tools)) or "none"
            raise CallError(f"there is no tool {name!r}; the tools are: {names}")
        tool = self.find(name)
        if tool is None:
            _log.error("tool_missing", run_id=invocation.run_id, tool_name=name)
            raise CallError(f"the tool {name!r} is not available on this server")
        if tool.spec.source is ToolSource.CALLER:
            raise CallError(f"the tool {name!r} is run by the caller")
        if invocation.sandbox is not None and invocation.sandbox not in self.profiles:
            # Nothing runs unbounded because a profile was renamed.
            _log.error("sandbox_missing", run_id=invocation.run_id, sandbox=invocation.sandbox)
            raise CallError(f"the sandbox {invocation.sandbox!r} is not available on this server")
        return tool


def _checked(tool: CallableTool, arguments: str) -> str:
    if isinstance(tool, PythonTool):
        return tool.normalised(arguments)
    return to_json(tool.parsed(arguments), inf_nan_mode="null").decode()


def _milliseconds_since(started: float) -> float:
    return (time.perf_counter() - started) * 1000
