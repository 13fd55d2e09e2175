"""Several worker processes behind one socket, kept alive."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from multiprocessing.connection import wait

import uvicorn
from uvicorn.config import STARTUP_FAILURE

from app.cli.worker_process import ANSWER_WITHIN_S, Death, WorkerProcess, WorkerSlot
from app.telemetry.logs import get_logger

# Workers keep to the grace time themselves; who has not ended by then hangs.
_OVERTIME_S = 2.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

log = get_logger(__name__)


class Supervisor:
    """Keeps `config.workers` worker processes alive until it is told to stop.

    A worker that dies is started again after a pause, which doubles while it keeps dying. One that cannot start while
    none has ever been ready ends the service: another start would fail too. SIGHUP replaces the workers, one after
    the other, each when all are ready; SIGTERM and Ctrl-C end them, and a second Ctrl-C kills them.

    Args:
        config: its application is an import path.
        sockets: what the workers listen on.
        on_ready: called once, when all workers are ready.
        delay_s, grace_s: as `Server` has them.
        answer_within_s: seconds after which a worker that does not answer is taken for dead.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        sockets: list[socket.socket],
        on_ready: Callable[[], None],
        *,
        delay_s: float,
        grace_s: float,
        answer_within_s: float = ANSWER_WITHIN_S,
    ) -> None:
        def make() -> WorkerProcess:
            return WorkerProcess(config, sockets, delay_s=delay_s, grace_s=grace_s)

        self._slots = [WorkerSlot(make, answer_within_s) for _ in range(config.workers)]
        self._on_ready: Callable[[], None] | None = on_ready
        self._end_within_s = grace_s + _OVERTIME_S
        self._ends_at: float | None = None
        self._to_replace: list[WorkerSlot] = []
        self._any_ready = False
        self._exit_code = 0
        self._heard: list[signal.Signals] = []

    def run(self) -> int:
        """Keep the workers alive until a signal, and then until all have ended.

        The signal is raised again when all is over, as uvicorn does.

        Returns:
            the exit code: 0, or 3 if the workers could not start.
        """
        told: list[signal.Signals] = []
        with self._signals_wake() as woken:
            while self._ends_at is None or any(slot.alive for slot in self._slots):
                self._wait(woken)
                for sig in self._take_heard():
                    told += [] if sig == signal.SIGHUP else [sig]
                    self._obey(sig)
                self._look()
        if told:
            signal.raise_signal(told[0])
        return self._exit_code

    def _look(self) -> None:
        if self._ends_at is not None and time.monotonic() >= self._ends_at:
            self._tell_all(signal.SIGKILL)
        for slot in self._slots:
            # Nobody is started any more when all are to end.
            death = slot.look() if slot.alive or self._ends_at is None else None
            if death is not None and self._ends_at is None:
                self._lost(death)
        ready = all(slot.ready for slot in self._slots)
        self._any_ready = self._any_ready or any(slot.ready for slot in self._slots)
        if ready and self._on_ready is not None and self._ends_at is None:
            self._on_ready()
            self._on_ready = None
        if ready and self._to_replace and self._ends_at is None:
            self._to_replace.pop().replace(self._end_within_s)

    def _lost(self, death: Death) -> None:
        if death.exit == STARTUP_FAILURE and not self._any_ready:
            log.error("workers_cannot_start", pid=death.pid, exit=death.exit)
            self._exit_code = STARTUP_FAILURE
            self._stop(signal.SIGTERM)
            return
        log.warning(
            "worker_died",
            pid=death.pid,
            exit=death.exit,
            hung=death.hung,
            lived_s=round(death.lived_s, 3),
            restart_s=round(death.restart_s, 3),
        )

    def _obey(self, sig: signal.Signals) -> None:
        if sig == signal.SIGHUP:
            log.info("replacing_workers")
            self._to_replace = list(self._slots)
        elif self._ends_at is None:
            self._stop(sig)
        elif sig == signal.SIGINT:
            self._tell_all(signal.SIGKILL)
        # A second SIGTERM is the same one: those who stop services send it to a process and to its group.

    def _stop(self, sig: signal.Signals) -> None:
        self._ends_at = time.monotonic() + self._end_within_s
        for slot in self._slots:
            # One that is starting could not answer a Ctrl-C yet.
            slot.tell(sig if slot.ready else signal.SIGTERM)

    def _tell_all(self, sig: signal.Signals) -> None:
        for slot in self._slots:
            slot.tell(sig)

    def _wait(self, woken: int) -> None:
        """Wait until something happens or is due."""
        watched = [slot for slot in self._slots if slot.alive or self._ends_at is None]
        dues = [slot.due_at() for slot in watched]
        if self._ends_at is not None:
            dues.append(self._ends_at)
        wait(
            [woken, *(waitable for slot in watched for waitable in slot.waitables())],
            max(0.0, min(dues) - time.monotonic()),
        )
        with suppress(BlockingIOError):
            os.read(woken, 4096)

    def _take_heard(self) -> list[signal.Signals]:
        heard, self._heard = self._heard, []
        return heard

    @contextmanager
    def _signals_wake(self) -> Generator[int]:
        """What becomes readable when a signal has come, for as long as this lasts."""
        reader, writer = os.pipe()
        os.set_blocking(reader, False)
        os.set_blocking(writer, False)

        def hear(sig: int, _frame: object) -> None:
            self._heard.append(signal.Signals(sig))
            with suppress(BlockingIOError):  # full: then it is awake as it is
                os.write(writer, b"!")

        before = {sig: signal.signal(sig, hear) for sig in _SIGNALS}
        try:
            yield reader
        finally:
            for sig, handler in before.items():
                signal.signal(sig, handler)
            os.close(reader)
            os.close(writer)
