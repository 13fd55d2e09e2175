"""The tools that this replica has, and the port through which the engine calls them."""

from __future__ import annotations

import importlib
import time
from collections.abc import Iterable
from types import ModuleType
from typing import Any, cast

from app.engine.tools import ToolInvocation, ToolResult, ToolSpec
from app.telemetry.logs import get_logger
from app.tools.errors import CallError, CallTimeoutError, NoFreeThreadError, ToolRegistrationError
from app.tools.execution import ToolExecutor
from app.tools.function_tool import FunctionTool
from app.tools.output import bounded, clean
from app.tools.raised import Raised
from app.tools.thread_pool import ThreadPool

DEFAULT_MAX_THREADS = 32
DEFAULT_RECORD_MAX_BYTES = 1024 * 1024

_MAX_ERROR_CHARS = 2_000

_log = get_logger(__name__)


class ToolRegistry:
    """Implements `app.engine.tools.ToolPort` with Python functions.

    Args:
        tools: to start with; `register` and `load_modules` add more.
        max_threads: how many synchronous tools may run at once.
        record_max_bytes: the bound of a result's `output` in UTF-8.
    """

    def __init__(
        self,
        tools: Iterable[FunctionTool[..., Any]] = (),
        *,
        max_threads: int = DEFAULT_MAX_THREADS,
        record_max_bytes: int = DEFAULT_RECORD_MAX_BYTES,
    ) -> None:
        self._tools: dict[str, FunctionTool[..., Any]] = {}
        self._executor = ToolExecutor(ThreadPool(max_threads), record_max_bytes)
        for tool in tools:
            self.register(tool)

    def register(self, tool: FunctionTool[..., Any]) -> None:
        """Add a tool; adding the same object again changes nothing.

        Raises:
            ToolRegistrationError: another tool has the name.
        """
        taken = self._tools.setdefault(tool.spec.name, tool)
        if taken is not tool:
            raise ToolRegistrationError(
                f"two tools are named {tool.spec.name!r}: {taken.origin} and {tool.origin}; "
                "give one of them another name with @tool(name=...)"
            )

    def load_modules(self, names: Iterable[str]) -> None:
        """Import the operator's modules (setting TOOL_MODULES) and add every tool at their top level.

        Raises:
            ToolRegistrationError: a module cannot be imported, has no tools, or brings a name that is taken.
        """
        for name in names:
            tools = _tools_in(_module(name))
            if not tools:
                raise ToolRegistrationError(
                    f"TOOL_MODULES names {name!r}, which has no @tool function at its top level"
                )
            for tool in tools:
                self.register(tool)

    def spec(self, name: str) -> ToolSpec | None:
        """The tool of that name, or None."""
        tool = self._tools.get(name)
        return tool.spec if tool else None

    def specs(self) -> list[ToolSpec]:
        """All tools, in the order in which they were added."""
        return [tool.spec for tool in self._tools.values()]

    async def invoke(self, invocation: ToolInvocation) -> ToolResult:
        """Run one call to its end. Every failure is a `ToolResult`; only cancellation is raised."""
        started = time.perf_counter()
        try:
            output = await self._executor.run(self._named(invocation), invocation)
        except CallError as error:
            if isinstance(error, CallTimeoutError | NoFreeThreadError):
                _log.warning("tool_timed_out", run_id=invocation.run_id, tool_name=invocation.tool_name)
            return _failed(error, invocation, started)
        except Exception as error:  # noqa: BLE001 - a call's edge: a validator or a context that breaks ends here
            raised = Raised(error)
            _log.error(
                "tool_call_broke",
                run_id=invocation.run_id,
                tool_name=invocation.tool_name,
                error=raised.summary,
                frames=raised.frames,
            )
            return _failed(CallError(raised.summary), invocation, started)
        return ToolResult(
            success=True,
            output=output.json,
            error=None,
            content=output.content,
            latency_ms=_milliseconds_since(started),
        )

    async def aclose(self) -> None:
        """End what can be ended, within a second. Busy threads do not keep the process from exiting."""
        await self._executor.aclose()

    def _named(self, invocation: ToolInvocation) -> FunctionTool[..., Any]:
        name = invocation.tool_name
        if name not in invocation.allowed_tools:
            # The same words whether or not the replica has such a tool: what others may use is not told.
            names = ", ".join(sorted(invocation.allowed_tools)) or "none"
            raise CallError(f"there is no tool {name!r}; the tools are: {names}")
        if name not in self._tools:
            _log.error("tool_missing", run_id=invocation.run_id, tool_name=name)
            raise CallError(f"the tool {name!r} is not available on this server")
        return self._tools[name]


def _tools_in(module: ModuleType) -> list[FunctionTool[..., Any]]:
    values = cast("dict[str, object]", vars(module)).values()
    return [cast("FunctionTool[..., Any]", value) for value in values if isinstance(value, FunctionTool)]


def _module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except Exception as error:
        raise ToolRegistrationError(
            f"TOOL_MODULES names {name!r}, which cannot be imported: {Raised(error).summary}"
        ) from error


def _failed(error: CallError, invocation: ToolInvocation, started: float) -> ToolResult:
    lines = [" ".join(line.split()) for line in (error.message, *error.details)]
    one_line = f"{lines[0]}: {'; '.join(lines[1:])}" if error.details else lines[0]
    content = "\n- ".join([f"Error: {lines[0]}", *lines[1:]])
    return ToolResult(
        success=False,
        output=None,
        error=_shortened(one_line),
        content=bounded(_shortened(content), invocation.output_max_chars),
        latency_ms=_milliseconds_since(started),
    )


def _shortened(text: str) -> str:
    text = clean(text)
    return text if len(text) <= _MAX_ERROR_CHARS else text[: _MAX_ERROR_CHARS - 1] + "…"


def _milliseconds_since(started: float) -> float:
    return (time.perf_counter() - started) * 1000
