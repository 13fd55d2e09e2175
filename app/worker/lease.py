"""The heartbeat: how the other replicas know that this one lives, and how this one knows that they may think it dead.

Beats come from a thread with a loop and a connection of its own, so that a busy main loop does not cost the lease; but
only while the main loop ticks, so that a blocked one does.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable
from enum import StrEnum

import asyncpg

from app.db import heartbeats
from app.db.connecting import said_by
from app.db.stateless import StatelessConnection
from app.engine.store_errors import StoreUnavailable
from app.telemetry.logs import get_logger
from app.worker.process import this_process

RETRY_S = 0.5
_LOOK_S = 0.5

log = get_logger(__name__)


class LeaseLoss(StrEnum):
    """Why a lease was lost: the database could not be reached, or this replica's own loop stood still."""

    DATABASE = "database"
    LOOP = "loop"
    HEARTBEAT = "heartbeat"


def clock() -> float:
    """Monotonic seconds that also count while the machine is suspended: a lease runs out then too."""
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()


class Lease:
    """This replica's lease.

    Args:
        url: a connection of the heartbeat's own.
        lease_s: seconds after which a replica that was not heard of counts as dead.
        on_peers: called in the heartbeat's thread with the number of other live replicas.
    """

    def __init__(self, url: str, incarnation: str, lease_s: float, on_peers: Callable[[int], None]) -> None:
        self._url = url
        self._incarnation = incarnation
        self._process = this_process()
        self._lease_s = lease_s
        self._on_peers = on_peers
        self._on_lost: Callable[[LeaseLoss], None] | None = None
        self._main_loop: asyncio.AbstractEventLoop | None = None
        self._ticked_at = clock()
        self._beat_sent_at = float("-inf")
        self._failed = False  # a beat has, since the last one that got through
        self._judges_from = float("-inf")
        self._stop = threading.Event()
        self._stopping: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None  # in the heartbeat's own loop
        self._first = threading.Event()
        self._connection: asyncpg.Connection[asyncpg.Record] | None = None
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self.draining = False

    def on_lost(self, callback: Callable[[LeaseLoss], None]) -> None:
        """Have `callback` called in the main loop as soon as the lease is lost: it is the first that a loop does which
        was blocked until then."""
        self._on_lost = callback

    async def start(self) -> None:
        """Raises StoreUnavailable: the first beat did not get through within a lease."""
        self._main_loop = asyncio.get_running_loop()
        self.tick()  # the lease may have been made long ago, waiting for migrations
        self._thread.start()
        if not await asyncio.to_thread(self._first.wait, self._lease_s):
            self._stop.set()
            raise StoreUnavailable("the database did not take this replica's first heartbeat")

    async def stop(self) -> None:
        """Stop beating and take leave, so that nobody waits for this lease to run out."""
        self._stop.set()
        if self._stopping is not None:
            loop, stopping = self._stopping
            with contextlib.suppress(RuntimeError):  # it has ended already
                loop.call_soon_threadsafe(stopping.set)
        if self._thread.ident is not None:
            await asyncio.to_thread(self._thread.join, self._lease_s)

    def tick(self) -> None:
        """The main loop is alive; called by it every half second."""
        self._ticked_at = clock()

    def beating(self) -> bool:
        """Whether the heartbeat's thread lives, which it does from `start` to `stop`."""
        return self._thread.is_alive()

    def held(self) -> bool:
        """Whether no other replica can have taken this one for dead. The lease runs from when a beat was sent."""
        return self.beating() and clock() - self._beat_sent_at < self._lease_s * 2 / 3

    def may_judge(self) -> bool:
        """Whether this replica can tell who is dead.

        After beats of its own did not get through, others' may not have either: it first beats for a whole lease
        without a break, in which they are heard of again. One that has just started has missed nothing.
        """
        now = clock()
        return self.beating() and now - self._beat_sent_at < self._lease_s / 2 and now >= self._judges_from

    def why_lost(self) -> LeaseLoss:
        """Why the lease is not held."""
        if not self.beating():
            return LeaseLoss.HEARTBEAT
        return LeaseLoss.DATABASE if self._failed and self._ticking() else LeaseLoss.LOOP

    def _ticking(self) -> bool:
        return clock() - self._ticked_at < self._lease_s / 3

    def _run(self) -> None:
        asyncio.run(self._beat_until_stopped())

    async def _beat_until_stopped(self) -> None:
        interval = self._lease_s / heartbeats.BEATS_PER_LEASE
        stopping = asyncio.Event()
        self._stopping = asyncio.get_running_loop(), stopping
        watching = asyncio.create_task(self._tell_when_lost(), name="lease-watch")
        try:
            while not self._stop.is_set():
                # There is no lease to lose before the first beat, and a busy machine may be slow to connect.
                await self._tell(interval if self._first.is_set() else self._lease_s)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(min(interval, RETRY_S) if self._failed else interval):
                        await stopping.wait()
            await self._tell(interval)
        finally:
            watching.cancel()
            if self._connection is not None:
                with contextlib.suppress(OSError, TimeoutError, asyncpg.PostgresError):
                    await self._connection.close(timeout=1)

    async def _tell_when_lost(self) -> None:
        """Once for each loss, at the moment itself: the main loop's own look at its lease may come too late."""
        told = True  # there is nothing to lose before the first beat
        while True:
            left = self._beat_sent_at + self._lease_s * 2 / 3 - clock()
            if left <= 0 and not told and self._main_loop is not None and self._on_lost is not None:
                with contextlib.suppress(RuntimeError):  # the main loop is gone: so are its runs
                    self._main_loop.call_soon_threadsafe(self._on_lost, self.why_lost())
            told = left <= 0
            await asyncio.sleep(min(left, _LOOK_S) if left > 0 else _LOOK_S)

    async def _tell(self, within_s: float) -> None:
        """Say that this replica lives, or that it leaves."""
        try:
            if self._connection is None or self._connection.is_closed():
                self._connection = await asyncpg.connect(
                    self._url,
                    timeout=within_s,
                    command_timeout=within_s,
                    statement_cache_size=0,
                    connection_class=StatelessConnection,
                )
            if self._stop.is_set():
                await heartbeats.leave(self._connection, self._incarnation)
            elif self._ticking():
                await self._beat(self._connection)
        except Exception as error:  # noqa: BLE001 - a thread that ended would cost this replica its lease for good
            if self._failed:
                log.debug("heartbeat_failed", error=said_by(error))
            else:
                log.error("database_lost", error=said_by(error), hint="tried again until it is back")
            self._failed = True
            if self._connection is not None:
                self._connection.terminate()
                self._connection = None

    async def _beat(self, connection: asyncpg.Connection[asyncpg.Record]) -> None:
        sent_at = clock()
        peers = await heartbeats.beat(connection, self._incarnation, self._process, draining=self.draining)
        # Less than a lost lease counts as a break: others may need a little longer to be heard of again.
        if self._failed and sent_at - self._beat_sent_at > self._lease_s / 2:
            self._judges_from = sent_at + self._lease_s
        if self._failed:
            log.info("database_back")
        self._failed = False
        self._beat_sent_at = sent_at
        self._first.set()
        self._on_peers(peers)
