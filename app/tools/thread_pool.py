"""Threads for synchronous tools: bounded, and never in the way of the process's exit."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from app.tools.errors import CallTimeoutError, NoFreeThreadError, ToolError


class ThreadPool:
    """At most `max_threads` daemon threads, started when needed, and as many in place of some that may never come back.

    Not a `ThreadPoolExecutor`, which joins its threads when the interpreter exits: a tool that never returns
    would keep the process alive for ever. A thread cannot be killed, so a call that is given up keeps its
    thread until it returns, and another thread takes the place of that one; a call that is given up while it waits for
    a thread is never started.
    """

    def __init__(self, max_threads: int) -> None:
        if max_threads < 1:
            raise ValueError("max_threads must be at least 1")
        self._max_threads = max_threads
        self._threads = 0
        self._idle = 0
        self._given_up = 0  # calls that keep a thread though nobody waits for them
        self._closed = False
        self._waiting: OrderedDict[_Job, None] = OrderedDict()
        self._changed = threading.Condition()

    async def run(self, call: Callable[[], Any], timeout_s: float) -> Any:
        """Call in a thread, under the caller's context variables.

        Args:
            call: must not raise; a raised exception would end its thread.
            timeout_s: the most seconds to wait, for a free thread and for the result together.

        Raises:
            NoFreeThreadError: the call was never started.
            CallTimeoutError: it was started and has not returned.
        """
        job = _Job(call)
        self._submit(job)
        try:
            done, _ = await asyncio.wait((job.result,), timeout=timeout_s)
        except asyncio.CancelledError:
            self._give_up(job)
            raise
        if done:
            return job.result.result()
        if not self._give_up(job):
            raise NoFreeThreadError(f"not started: all {self._max_threads} tool threads were busy for {timeout_s:g} s")
        raise CallTimeoutError(f"timed out after {timeout_s:g} s")

    @property
    def problem(self) -> str | None:
        """Why synchronous tools find no thread any more, and what mends it; None while they do."""
        if self._given_up < self._max_threads:
            return None
        return f"{self._given_up} calls of tools that were given up have not returned; restart this replica"

    def close(self) -> None:
        """End the idle threads and refuse new calls; threads that are busy end with their calls."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _submit(self, job: _Job) -> None:
        with self._changed:
            if self._closed:
                raise ToolError("the tool threads are closed")
            self._waiting[job] = None
            if self._idle >= len(self._waiting):
                self._changed.notify()
            elif self._may_start():
                self._start_thread(job)

    def _may_start(self) -> bool:
        return self._threads - min(self._given_up, self._max_threads) < self._max_threads

    def _start_thread(self, job: _Job) -> None:
        try:
            threading.Thread(target=self._work, name=f"tool-{self._threads}", daemon=True).start()
        except RuntimeError:
            # The system gives no more threads. The job can wait for one of ours, if there is any.
            if not self._threads:
                del self._waiting[job]
                raise
        else:
            self._threads += 1

    def _give_up(self, job: _Job) -> bool:
        """Whether the job was started; one that was not never will be."""
        with self._changed:
            if self._waiting.pop(job, job) is None:
                return False
            if not job.ended:
                job.given_up = True
                self._given_up += 1
                if self._waiting and self._may_start():
                    self._start_thread(next(iter(self._waiting)))
            return True

    def _work(self) -> None:
        while (job := self._next()) is not None:
            job.run()
            if self._is_replaced(job):
                return
            del job  # or the arguments of the last call would live until the next one

    def _is_replaced(self, job: _Job) -> bool:
        """Whether the thread that a job has come back from is one too many now."""
        with self._changed:
            job.ended = True
            if not job.given_up:
                return False
            self._given_up -= 1
            too_many = self._threads - self._given_up > self._max_threads
            self._threads -= too_many
            return too_many

    def _next(self) -> _Job | None:
        with self._changed:
            while not self._waiting:
                if self._closed:
                    return None
                self._idle += 1
                self._changed.wait()
                self._idle -= 1
            return self._waiting.popitem(last=False)[0]


class _Job:
    """One call on its way to a thread and back; belongs to the event loop that made it."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self._call = call
        self._context = contextvars.copy_context()
        self._loop = asyncio.get_running_loop()
        self.result: asyncio.Future[Any] = self._loop.create_future()
        self.ended = False
        self.given_up = False

    def run(self) -> None:
        value = self._context.run(self._call)
        try:
            self._loop.call_soon_threadsafe(self._answer, value)
        except RuntimeError:
            # The loop is closed: nobody waits any more.
            return

    def _answer(self, value: Any) -> None:
        if not self.result.done():
            self.result.set_result(value)
