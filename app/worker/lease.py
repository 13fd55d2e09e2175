"""The heartbeat: how the other replicas know that this one lives, and how this one knows that they may think it dead.

Beats come from a thread with a loop and a connection of its own, so that a busy main loop does not cost the lease; but
only while the main loop ticks, so that a blocked one does.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable

import asyncpg

from app.db import claims
from app.engine.store_errors import StoreUnavailable
from app.telemetry.logs import get_logger

log = get_logger(__name__)


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
        self._lease_s = lease_s
        self._on_peers = on_peers
        self._ticked_at = clock()
        self._beat_sent_at = float("-inf")
        self._stop = threading.Event()
        self._first = threading.Event()
        self._connection: asyncpg.Connection[asyncpg.Record] | None = None
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self.draining = False

    async def start(self) -> None:
        """Raises StoreUnavailable: the first beat did not get through within a lease."""
        self.tick()  # the lease may have been made long ago, waiting for migrations
        self._thread.start()
        if not await asyncio.to_thread(self._first.wait, self._lease_s):
            self._stop.set()
            raise StoreUnavailable("the database did not take this replica's first heartbeat")

    async def stop(self) -> None:
        """Stop beating and take leave, so that nobody waits for this lease to run out."""
        self._stop.set()
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

    def _run(self) -> None:
        asyncio.run(self._beat_until_stopped())

    async def _beat_until_stopped(self) -> None:
        interval = self._lease_s / 5
        try:
            while not self._stop.is_set():
                await self._tell(interval)
                await asyncio.to_thread(self._stop.wait, interval)
            await self._tell(interval)
        finally:
            if self._connection is not None:
                with contextlib.suppress(OSError, TimeoutError, asyncpg.PostgresError):
                    await self._connection.close(timeout=1)

    async def _tell(self, within_s: float) -> None:
        """Say that this replica lives, or that it leaves."""
        try:
            if self._connection is None or self._connection.is_closed():
                self._connection = await asyncpg.connect(
                    self._url, timeout=within_s, command_timeout=within_s, statement_cache_size=0
                )
            if self._stop.is_set():
                await claims.leave(self._connection, self._incarnation)
            elif clock() - self._ticked_at < self._lease_s / 3:
                await self._beat(self._connection)
        except Exception as error:  # noqa: BLE001 - a thread that ended would cost this replica its lease for good
            log.warning("heartbeat_failed", error=str(error) or type(error).__name__)
            if self._connection is not None:
                self._connection.terminate()
                self._connection = None

    async def _beat(self, connection: asyncpg.Connection[asyncpg.Record]) -> None:
        sent_at = clock()
        peers = await claims.beat(
            connection, self._incarnation, socket.gethostname(), os.getpid(), draining=self.draining
        )
        self._beat_sent_at = sent_at
        self._first.set()
        self._on_peers(peers)
