"""The HTTP server of one process, and how it stops."""

from __future__ import annotations

import asyncio
import math
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType

import uvicorn

from app.telemetry.logs import get_logger

# What is kept of the grace time for closing connections, and how much later the last of it may end.
_CLOSE_S = 1.0
_OVERTIME_S = 1.0
# How long after the grace time everything else may take to end, an embedded database too.
_FORCE_S = 4.0
# How often it is looked whether a second Ctrl-C has come, which uvicorn does as often.
_LOOK_S = 0.1
_NEW_LOOK_S = 0.01

log = get_logger(__name__)


class Server(uvicorn.Server):
    """uvicorn's server, with a stop that a load balancer can follow.

    On the first signal the application is asked to drain: from then on it says that it is not ready. Requests are
    answered until both the delay is over and all is drained; only then the server stops listening, and closes. What
    the application's lifespan yields has to hold `drain`, which begins that and returns the task that ends with it, and
    `under_way`, which counts the runs that it waits for.

    Args:
        delay_s: seconds that requests are answered at least after SIGTERM; Ctrl-C leaves them out. They are part of
            `grace_s`.
        grace_s: seconds from the signal to the end; cleaning up may take one more. Threads that tools have left do not
            keep the process much longer, as Python would let them.
        alone: whether a second Ctrl-C ends the process at once. The parent of a worker sees to that itself: the
            worker hears of one Ctrl-C from the terminal and from its parent.
        on_ready: called when requests are served.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        *,
        delay_s: float,
        grace_s: float,
        alone: bool,
        on_ready: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(config)
        self._delay_s = delay_s
        self._grace_s = grace_s
        self._alone = alone
        self._on_ready = on_ready
        self._told = False
        self._ends_at = math.inf
        self._hurry = asyncio.Event()
        self._stopping: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        if self.started:
            self._on_ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        first, self._told = not self._told, True
        again = not first and sig == signal.SIGINT
        if again and self._alone:
            self.should_exit = True  # so that uvicorn takes it for the second one, which ends all waiting
            super().handle_exit(sig, frame)
        elif not self.started:
            if first:
                super().handle_exit(sig, frame)
        elif first:
            self._loop.call_soon_threadsafe(self._begin_to_stop, sig)
        elif again:
            self._loop.call_soon_threadsafe(self._hurry.set)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        left = min(max(self._ends_at - time.monotonic(), _CLOSE_S), self._grace_s)
        self.config.timeout_graceful_shutdown = max(1, math.floor(left))
        closing = asyncio.create_task(self._close(sockets), name="close")
        deadline = time.monotonic() + left + _OVERTIME_S
        while not closing.done() and not self.force_exit and time.monotonic() < deadline:
            await asyncio.wait({closing}, timeout=_LOOK_S)
        if closing.done():
            await closing
        else:
            closing.cancel()
            log.warning("stopped_half_way", hint="the other replicas recover what this one has left undone")

    async def _close(self, sockets: list[socket.socket] | None) -> None:
        """Stop listening, let those ask who came just before, and close."""
        for listener in (*self.servers, *(sockets or [])):
            listener.close()
        latest = time.monotonic() + _CLOSE_S
        while self._somebody_is_new() and time.monotonic() < latest:  # noqa: ASYNC110 - uvicorn tells nobody
            await asyncio.sleep(_NEW_LOOK_S)
        await super().shutdown(sockets)

    def _somebody_is_new(self) -> bool:
        """Whether a connection has not asked for anything yet: uvicorn would end it, and its first request be lost."""
        return any(getattr(connection, "cycle", self) is None for connection in self.server_state.connections)

    def _begin_to_stop(self, sig: int) -> None:
        self._stopping = asyncio.create_task(self._stop(sig), name="stop")

    async def _stop(self, sig: int) -> None:
        runs: int = self.lifespan.state["under_way"]()
        waits = f"waits for {runs} run{'s' if runs != 1 else ''} to get to a commit; " if runs else ""
        hint = {"hint": f"{waits}Ctrl-C once more ends at once"} if sig == signal.SIGINT else {}
        log.info("stopping", signal=signal.Signals(sig).name, grace_s=self._grace_s, runs=runs, **hint)
        self._ends_at = time.monotonic() + self._grace_s
        threading.Thread(target=_end_by_force, args=(self._grace_s + _FORCE_S,), daemon=True, name="last-end").start()
        drained: asyncio.Task[None] = self.lifespan.state["drain"]()
        if sig == signal.SIGINT:
            self._hurry.set()
        delay = asyncio.create_task(self._delay(), name="shutdown-delay")
        await asyncio.wait({drained, delay}, timeout=self._grace_s - _CLOSE_S)
        delay.cancel()
        super().handle_exit(sig, None)

    async def _delay(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(self._delay_s):
                await self._hurry.wait()


def _end_by_force(after_s: float) -> None:
    """End this process if it still lives then: Python waits for every thread that is no daemon."""
    time.sleep(after_s)
    left = [thread.name for thread in threading.enumerate() if not thread.daemon]
    log.error("ended_by_force", threads=left[:10], hint="a tool has left threads that do not end")
    os._exit(1)
