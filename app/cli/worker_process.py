"""One worker process, and whoever takes its place."""

from __future__ import annotations

import os
import random
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection

import uvicorn
from uvicorn.supervisors.multiprocess import Process

from app.cli.server import Server

# Pauses before a worker that died is started again, doubling; one that lived this long was a good one.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 30.0
_GOOD_AFTER_S = 60.0
# Pings tell a worker that hangs, and one that has become ready.
_PING_EVERY_S = 1.0
_PING_STARTING_EVERY_S = 0.1
# A worker answers only when its interpreter is up, which takes long on a busy machine.
ANSWER_WITHIN_S = 30.0


class WorkerProcess(Process):
    """uvicorn's worker process with our server in it; `delay_s` and `grace_s` as `Server` has them."""

    def __init__(self, config: uvicorn.Config, sockets: list[socket.socket], *, delay_s: float, grace_s: float) -> None:
        super().__init__(config, sockets)
        self._delay_s = delay_s
        self._grace_s = grace_s

    @property
    def server(self) -> uvicorn.Server:
        if self._server is None:
            self._server = Server(self.config, delay_s=self._delay_s, grace_s=self._grace_s, alone=False)
        return self._server


@dataclass(frozen=True, slots=True)
class Death:
    """How a worker ended; `exit` is its exit code, or the name of the signal that ended it."""

    pid: int
    exit: int | str
    lived_s: float
    hung: bool
    restart_s: float


class WorkerSlot:
    """One worker that is started, watched and started again; nothing here waits.

    Args:
        make: makes the next process, not started.
        answer_within_s: seconds after which a worker that does not answer a ping is taken for dead.
    """

    def __init__(self, make: Callable[[], WorkerProcess], answer_within_s: float) -> None:
        self._make = make
        self._answer_within_s = answer_within_s
        self._process: WorkerProcess | None = None
        self._started_at = self._start_at = self._ping_at = 0.0
        self._asked_at: float | None = None
        self._leave_by: float | None = None
        self._hung = False
        self._pause_s = _FIRST_PAUSE_S
        self.ready = False

    @property
    def alive(self) -> bool:
        return self._process is not None

    def waitables(self) -> list[Connection | int]:
        """What becomes readable when there is something to look at."""
        if self._process is None:
            return []
        return [self._process.process.sentinel, self._process.parent_conn]

    def due_at(self) -> float:
        """When there is something to do even if nothing happens, by `time.monotonic`."""
        if self._process is None:
            return self._start_at
        asks = self._ping_at if self._asked_at is None else self._asked_at + self._answer_within_s
        return asks if self._leave_by is None else min(asks, self._leave_by)

    def look(self) -> Death | None:
        """Start, ask, listen, kill: whatever is due. How the worker has died, if it has and was not told to leave."""
        process, now = self._process, time.monotonic()
        if process is None:
            if now >= self._start_at:
                self._start(now)
            return None
        if process.exitcode is not None:
            return self._buried(process, now)
        self._listen(process, now)
        if self._asked_at is not None and now >= self._asked_at + self._answer_within_s:
            self._hung = True
            self.tell(signal.SIGKILL)
        elif self._leave_by is not None and now >= self._leave_by:
            self.tell(signal.SIGKILL)
        elif self._asked_at is None and now >= self._ping_at:
            self._ask(process, now)
        return None

    def replace(self, within_s: float) -> None:
        """Tell the worker to leave; it is killed after so many seconds. Another one is started at once when it has."""
        self.ready = False
        self._leave_by = time.monotonic() + within_s
        self.tell(signal.SIGTERM)

    def tell(self, sig: signal.Signals) -> None:
        """Send the worker a signal, if there is one."""
        if self._process is not None and self._process.exitcode is None and self._process.pid is not None:
            os.kill(self._process.pid, sig)

    def _start(self, now: float) -> None:
        process = self._make()
        resource_tracker.ensure_running()  # or the start below would begin it, which takes the mask away
        # A Ctrl-C that comes before the worker can answer it waits, so that it ends without a traceback.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        process.child_conn.close()
        self._process = process
        self._started_at = now
        self._ping_at = now
        self._asked_at = self._leave_by = None
        self._hung = self.ready = False

    def _ask(self, process: WorkerProcess, now: float) -> None:
        self._asked_at = now
        try:
            process.parent_conn.send(b"ping")
        except OSError:
            return  # it is about to be found dead

    def _listen(self, process: WorkerProcess, now: float) -> None:
        try:
            while process.parent_conn.poll():
                self.ready = bool(process.parent_conn.recv()) and self._leave_by is None
                self._asked_at = None
                self._ping_at = now + (_PING_EVERY_S if self.ready else _PING_STARTING_EVERY_S)
        except (OSError, EOFError):
            return  # likewise

    def _buried(self, process: WorkerProcess, now: float) -> Death | None:
        code, pid = process.exitcode, process.pid
        assert code is not None
        assert pid is not None
        process.process.join()
        process.process.close()
        process.parent_conn.close()
        self._process = None
        self.ready = False
        if self._leave_by is not None:
            self._start_at = now
            return None
        lived_s = now - self._started_at
        if lived_s >= _GOOD_AFTER_S:
            self._pause_s = _FIRST_PAUSE_S
        # Less than the full pause by chance, so that many that died of one cause do not come back together.
        restart_s = self._pause_s * random.uniform(0.8, 1.0)
        self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
        self._start_at = now + restart_s
        return Death(pid, code if code >= 0 else _name_of(-code), lived_s, self._hung, restart_s)


def _name_of(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # one of those that have only numbers
        return f"signal {number}"
