"""One call of one tool, from its arguments to its outcome, within its time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any, cast

from app.engine.memories import MemoryRefused
from app.engine.tools import Deferral, ToolInvocation
from app.telemetry.logs import get_logger
from app.tools.callable_tool import CallableTool
from app.tools.errors import CallError, CallTimeoutError, HandlerError, NoFreeThreadError
from app.tools.output import Output
from app.tools.python_tool import PythonTool
from app.tools.raised import Raised
from app.tools.result_writer import ResultWriter, is_large
from app.tools.thread_pool import ThreadPool

_log = get_logger(__name__)

_CLOSE_GRACE_S = 1.0


@dataclass(frozen=True, slots=True)
class _Deferred:
    """A sync function returned an awaitable, which only the event loop can run."""

    awaitable: Awaitable[object]


_Task = asyncio.Task[object]


class ToolExecutor:
    """Runs handlers and keeps hold of those that did not end in time."""

    def __init__(self, threads: ThreadPool, writer: ResultWriter) -> None:
        self._threads = threads
        self._writer = writer
        self._abandoned: set[_Task] = set()

    async def run(self, tool: CallableTool, arguments: dict[str, Any], invocation: ToolInvocation) -> Output | Deferral:
        """Run the handler, with what is around it.

        Args:
            arguments: as `tool.parsed` gave them.

        Raises:
            CallError: the call failed; the text is for the model.
            asyncio.CancelledError: the caller was cancelled; the handler is cancelled too and not waited for.
        """
        if not isinstance(tool, PythonTool) or tool.needs_context:
            invocation = replace(invocation, progress=self._writer.progress(invocation.progress))
        deadline = time.monotonic() + tool.timeout_s
        if isinstance(tool, PythonTool) and tool.is_plain:
            # Converted where the handler runs, so that a large output does not hold up the event loop.
            call = self._in_thread_call(tool.bound(arguments, invocation), invocation)
            outcome: object = await self._threads.run(call, tool.timeout_s)
            if isinstance(outcome, _Deferred):
                awaitable = outcome.awaitable
                outcome = await self._on_loop(lambda: self._output(awaitable, invocation), tool, invocation, deadline)
        else:
            outcome = await self._on_loop(
                lambda: self._output(tool.call(arguments, invocation), invocation), tool, invocation, deadline
            )
        match outcome:
            case Output() | Deferral():
                return outcome
            case Raised():
                raise self._failure(outcome, tool, invocation)
            case _:
                raise AssertionError(outcome)

    async def prepare(self, tool: PythonTool, invocation: ToolInvocation) -> str:
        """Run the pre-hooks; see `PythonTool.prepared`.

        Raises:
            CallError: a hook refuses the call, or did not end in time.
        """
        invocation = replace(invocation, progress=self._writer.progress(invocation.progress))
        deadline = time.monotonic() + tool.timeout_s
        outcome = await self._on_loop(lambda: tool.prepared(invocation), tool, invocation, deadline)
        if not isinstance(outcome, Raised):
            return cast("str", outcome)
        if isinstance(outcome.error, CallError):
            raise outcome.error
        self._log_raised("tool_call_refused", outcome, tool, invocation)
        raise CallError(outcome.message(self._writer.redacted) or outcome.summary)

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

    def _in_thread_call(self, call: Callable[[], object], invocation: ToolInvocation) -> Callable[[], object]:
        def caught() -> Output | Deferral | Raised | _Deferred:
            try:
                value = call()
                if isinstance(value, Awaitable):
                    return _Deferred(cast("Awaitable[object]", value))
                return self._written(value, invocation)
            except BaseException as error:  # noqa: BLE001 - a thread's edge: even SystemExit is only this call's end
                return Raised(error)

        return caught

    async def _on_loop(
        self,
        work: Callable[[], Awaitable[object]],
        tool: CallableTool,
        invocation: ToolInvocation,
        deadline: float,
    ) -> object:
        """What the work returns, or what it raised as `Raised`."""
        task = asyncio.create_task(_captured(work), name=f"tool {tool.spec.name}")
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

    async def _output(self, handler: Awaitable[object], invocation: ToolInvocation) -> Output | Deferral:
        value = await handler
        if is_large(value):
            return await asyncio.to_thread(self._written, value, invocation)
        return self._written(value, invocation)

    def _written(self, value: object, invocation: ToolInvocation) -> Output | Deferral:
        if isinstance(value, Deferral):
            return self._writer.deferral(value)
        return self._writer.output(value, max_chars=invocation.output_max_chars, sanitize=invocation.sanitize)

    def _abandon(self, task: _Task, tool: CallableTool, invocation: ToolInvocation) -> None:
        """Cancel a task without waiting, and hold it until it ends: the event loop does so only weakly."""
        if task.done():
            return
        task.cancel()
        self._abandoned.add(task)
        started = time.monotonic()

        def ended(task: _Task) -> None:
            self._abandoned.discard(task)
            _log.info(
                "abandoned_tool_call_ended",
                run_id=invocation.run_id,
                tool_name=tool.spec.name,
                after_s=round(time.monotonic() - started, 3),
            )

        task.add_done_callback(ended)

    def _failure(self, raised: Raised, tool: CallableTool, invocation: ToolInvocation) -> CallError:
        match raised.error:
            case CallTimeoutError() | NoFreeThreadError() | HandlerError() as error:
                return error
            case CallError(message=message, details=details):
                return HandlerError(message, details)
            case MemoryRefused():
                # A mistake of the caller's or the model's: there is nothing to look for in the tool.
                return HandlerError(raised.message(self._writer.redacted))
            case _:
                self._log_raised("tool_raised", raised, tool, invocation)
                return HandlerError(raised.summarised(self._writer.redacted))

    def _log_raised(self, event: str, raised: Raised, tool: CallableTool, invocation: ToolInvocation) -> None:
        _log.warning(
            event,
            run_id=invocation.run_id,
            tool_name=tool.spec.name,
            tool_call_id=invocation.tool_call_id,
            error=raised.summarised(self._writer.redacted),
            frames=raised.frames,
        )


async def _captured(work: Callable[[], Awaitable[object]]) -> object:
    # Not an awaitable: one that a cancelled task never came to would be warned of.
    try:
        return await work()
    except (asyncio.CancelledError, GeneratorExit):
        raise
    except BaseException as error:  # noqa: BLE001 - a task's edge: SystemExit here would stop the event loop
        return Raised(error)


def _close_coroutine(task: asyncio.Task[Any]) -> None:
    coroutine = task.get_coro()
    try:
        coroutine.close()
    except Exception as error:  # noqa: BLE001 - the handler's own clean-up runs in here
        _log.warning("tool_call_not_closed", task=task.get_name(), error=Raised(error).summary)
    task.add_done_callback(_retrieve)
    task.cancel()


def _retrieve(task: asyncio.Task[Any]) -> None:
    # A task whose coroutine was closed under it fails when it goes on; nobody else asks why, and that would be told.
    if not task.cancelled():
        task.exception()
