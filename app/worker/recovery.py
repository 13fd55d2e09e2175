"""Puts runs of dead replicas back into the queue. It executes none."""

from __future__ import annotations

import asyncio
import random

from app.db import heartbeats, recovery
from app.db.database import Database
from app.event_bus.announce import announce_stopped
from app.event_bus.memory import MemoryBus
from app.telemetry.logs import get_logger
from app.telemetry.metrics import Metrics
from app.worker.lease import Lease
from app.worker.process import is_gone, this_process

BATCH = 100
MOST_EVERY_S = 2.0
PAUSE_S = 0.05

log = get_logger(__name__)


class Recovery:
    """
    Args:
        owner: this replica's incarnation.
        lease_s: seconds after which a replica that was not heard of counts as dead.
    """

    def __init__(
        self, database: Database, owner: str, bus: MemoryBus, lease: Lease, lease_s: float, metrics: Metrics
    ) -> None:
        self._database = database
        self._owner = owner
        self._bus = bus
        self._lease = lease
        self._lease_s = lease_s
        self._metrics = metrics
        self.every_s = min(lease_s / 3, MOST_EVERY_S)

    async def bury_neighbours(self) -> None:
        """Remove replicas of this machine whose process is gone, so that nobody waits for their lease to run out.

        Fencing keeps their runs safe even if one of them lives. Raises: StoreUnavailable.
        """
        async with self._database.connection() as connection:
            neighbours = await heartbeats.neighbours(connection, self._owner, this_process())
            gone = [incarnation for incarnation, process in neighbours.items() if is_gone(process)]
            if gone:
                log.warning("replicas_gone", replicas=gone)
                await heartbeats.forget_replicas(connection, gone)

    async def look(self) -> None:
        """Recover all that there is, batch by batch. Raises: StoreUnavailable."""
        while self._lease.may_judge():
            if await self._recover_batch() < BATCH:
                return
            await asyncio.sleep(PAUSE_S * random.uniform(0.5, 1.5))

    async def _recover_batch(self) -> int:
        async with self._database.connection() as connection:
            requeued, given_up = await recovery.requeue_orphans(connection, self._owner, self._lease_s, BATCH)
        for run_id in given_up:
            async with self._database.transaction() as connection:
                stopped = await recovery.poison(connection, run_id)
            self._metrics.run_ended(stopped.run.status, stopped.run.elapsed_s)
            error = stopped.run.error
            log.error("run_given_up", run_id=run_id, error=None if error is None else error.message)
            announce_stopped(self._bus, stopped)
        self._metrics.runs_recovered(requeued)
        if requeued or given_up:
            log.warning("runs_recovered", requeued=requeued, poisoned=len(given_up))
            self._bus.queued()
        return requeued + len(given_up)
