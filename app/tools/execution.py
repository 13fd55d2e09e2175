"""One call of one tool, from its arguments to its outcome, within its time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, cast

from app.engine.tools import ToolInvocation
from app.telemetry.logs import get_logger
from app.tools.errors import CallError, CallTimeoutError
from app.tools.function_tool import FunctionTool
from app.tools.output import Output, output_of
from app.tools.raised import Raised
from app.tools.thread_pool import ThreadPool
from app.tools.tool_context import ToolContext

_log = get_logger(__name__)

_CLOSE_GRACE_S = 1.0


@dataclass(frozen=True, slots=True)
class _Deferred:
    """A sync function returned an awaitable, which only the event loop can run."""

    awaitable: Awaitable[object]


_Outcome = Output | Raised | _Deferred


class ToolExecutor:
    """Runs handlers and keeps hold of those that did not end in time."""

    def __init__(self, threads: ThreadPool, record_max_bytes: int) -> None:
        self._threads = threads
        self._record_max_bytes = record_max_bytes
        self._abandoned: set[asyncio.Task[_Outcome]] = set()

    async def run(self, tool: FunctionTool[..., Any], invocation: ToolInvocation) -> Output:
        """Validate the arguments and run the handler.

        Raises:
            CallError: the call failed; the text is for the model.
            asyncio.CancelledError: the caller was cancelled; the handler is cancelled too and not waited for.
        """
        arguments = tool.arguments.parse(invocation.arguments)
        if tool.arguments.context_parameter is not None:
            arguments[tool.arguments.context_parameter] = ToolContext.of(invocation)
        deadline = time.monotonic() + tool.timeout_s
        if tool.is_async:
            outcome = await self._on_loop(tool.function(**arguments), tool, invocation, deadline)
        else:
            call = self._in_thread_call(tool, invocation, arguments)
            outcome = await self._threads.run(call, tool.timeout_s)
            if isinstance(outcome, _Deferred):
                outcome = await self._on_loop(outcome.awaitable, tool, invocation, deadline)
        if isinstance(outcome, Output):
            return outcome
        raise _failure(outcome, tool, invocation)

    async def aclose(self) -> None:
        """Close the threads and end what is left of abandoned calls, within a second."""
        self._threads.close()
        loop = asyncio.get_running_loop()
        for task in (left := [task for task in self._abandoned if task.get_loop() is loop]):
            task.cancel()
        if not left:
            return
        _, stubborn = await asyncio.wait(left, timeout=_CLOSE_GRACE_S)
        for task in stubborn:
            # It swallows cancellation. Unless its coroutine is closed, `asyncio.run` waits for it for ever.
            _log.warning("tool_call_killed", task=task.get_name())
            _close_coroutine(task)

    def _in_thread_call(
        self, tool: FunctionTool[..., Any], invocation: ToolInvocation, arguments: dict[str, Any]
    ) -> Callable[[], _Outcome]:
        def call() -> _Outcome:
            try:
                value: object = tool.function(**arguments)
                if isinstance(value, Awaitable):
                    return _Deferred(cast("Awaitable[object]", value))
                # Converted where the handler ran, so that a large output does not hold up the event loop.
                return self._output(value, invocation)
            except BaseException as error:  # noqa: BLE001 - a thread's edge: even SystemExit is only this call's end
                return Raised(error)

        return call

    async def _on_loop(
        self,
        handler: Awaitable[Any],
        tool: FunctionTool[..., Any],
        invocation: ToolInvocation,
        deadline: float,
    ) -> Output | Raised:
        task = asyncio.create_task(self._captured(handler, invocation), name=f"tool {tool.spec.name}")
        try:
            # Not `wait_for`: it waits for the cancelled task to end, and a handler may refuse to.
            done, _ = await asyncio.wait((task,), timeout=max(0.0, deadline - time.monotonic()))
        except asyncio.CancelledError:
            self._abandon(task, tool, invocation)
            raise
        if not done:
            self._abandon(task, tool, invocation)
            raise CallTimeoutError(f"timed out after {tool.timeout_s:g} s")
        if task.cancelled():
            return Raised(asyncio.CancelledError("the handler cancelled itself"))
        error = task.exception()
        return task.result() if error is None else Raised(error)

    async def _captured(self, handler: Awaitable[Any], invocation: ToolInvocation) -> Output | Raised:
        try:
            return self._output(await handler, invocation)
        except (asyncio.CancelledError, GeneratorExit):
            raise
        except BaseException as error:  # noqa: BLE001 - a task's edge: SystemExit here would stop the event loop
            return Raised(error)

    def _output(self, value: object, invocation: ToolInvocation) -> Output:
        return output_of(value, max_chars=invocation.output_max_chars, max_bytes=self._record_max_bytes)

    def _abandon(
        self, task: asyncio.Task[Output | Raised], tool: FunctionTool[..., Any], invocation: ToolInvocation
    ) -> None:
        """Cancel a task without waiting, and hold it until it ends: the event loop does so only weakly."""
        if task.done():
            return
        task.cancel()
        self._abandoned.add(task)
        started = time.monotonic()

        def ended(task: asyncio.Task[Output | Raised]) -> None:
            self._abandoned.discard(task)
            _log.info(
                "abandoned_tool_call_ended",
                run_id=invocation.run_id,
                tool_name=tool.spec.name,
                after_s=round(time.monotonic() - started, 3),
            )

        task.add_done_callback(ended)


def _failure(raised: Raised, tool: FunctionTool[..., Any], invocation: ToolInvocation) -> CallError:
    _log.warning(
        "tool_raised",
        run_id=invocation.run_id,
        tool_name=tool.spec.name,
        tool_call_id=invocation.tool_call_id,
        error=raised.summary,
        frames=raised.frames,
    )
    return CallError(raised.summary)


def _close_coroutine(task: asyncio.Task[Any]) -> None:
    coroutine = task.get_coro()
    try:
        coroutine.close()
    except Exception as error:  # noqa: BLE001 - the handler's own clean-up runs in here
        _log.warning("tool_call_not_closed", task=task.get_name(), error=Raised(error).summary)
    task.cancel()
