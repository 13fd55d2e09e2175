"""One replica's background work, started and stopped together."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

from app.db import claims
from app.db.database import Database
from app.engine.ports import RunStore
from app.engine.store_errors import StoreError, reason_of
from app.event_bus.postgres import PostgresBus
from app.telemetry.logs import get_logger
from app.telemetry.metrics import Metrics
from app.telemetry.recurring import Recurring
from app.worker.backfill import Backfill
from app.worker.claim_loop import ClaimLoop
from app.worker.executor import LocalExecutor
from app.worker.expiry import EXPIRE_EVERY_S, expire_due
from app.worker.guard import LeaseGuard
from app.worker.lease import Lease
from app.worker.own_runs import OwnRuns
from app.worker.recovery import Recovery
from app.worker.stalls import Stalls
from app.worker.sweeper import Sweeper
from app.worker.watch import Watch

LOOK_EVERY_S = 1.0
BATCH = 100

log = get_logger(__name__)


class Worker:
    """Everything that a replica does besides answering requests. `start` and `stop` are called once each.

    Args:
        backfill: embeds memories; None where there is no model for that.
        lease_s: seconds after which a replica that was not heard of counts as dead.
        step_deadline_s: seconds without progress after which a run is reported as stalled.
    """

    def __init__(
        self,
        database: Database,
        store: RunStore,
        executor: LocalExecutor,
        bus: PostgresBus,
        claim_loop: ClaimLoop,
        lease: Lease,
        metrics: Metrics,
        watch: Watch,
        sweeper: Sweeper,
        backfill: Backfill | None,
        *,
        lease_s: float,
        step_deadline_s: float,
    ) -> None:
        self._database = database
        self._store = store
        self._executor = executor
        self._bus = bus
        self._claim_loop = claim_loop
        self._lease = lease
        self._watch = watch
        self._sweeper = sweeper
        self._backfill = backfill
        self._own_runs = OwnRuns(database, executor, bus, lease)
        self._guard = LeaseGuard(lease, executor, metrics, watch, self._own_runs.dropped)
        self._recovery = Recovery(database, executor.owner, bus, lease, lease_s, metrics)
        self._stalls = Stalls(executor.drivers, step_deadline_s)
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def stalled(self) -> int:
        """Runs under way here that make no progress."""
        return self._stalls.count

    async def start(self) -> None:
        """Raises StoreUnavailable: the database does not take this replica's heartbeat."""
        await self._lease.start()
        await self._recovery.bury_neighbours()
        await self._bus.start()
        self._executor.accepting = True
        self._tasks = [
            asyncio.create_task(self._claim_loop.run(), name="claim-loop"),
            asyncio.create_task(self._guard.run(), name="lease-guard"),
            self._every("owned-runs", LOOK_EVERY_S, self._own_runs.look),
            self._every("read-runs", LOOK_EVERY_S, self._look_for_events),
            self._every("due-runs", LOOK_EVERY_S, self._promote_due),
            self._every("expiry", EXPIRE_EVERY_S, lambda: expire_due(self._store, self._bus)),
            self._every("recovery", self._recovery.every_s, self._recovery.look),
            self._every("stalls", LOOK_EVERY_S, self._stalls.look),
            self._sweeper.start(),
        ]
        if self._backfill is not None:
            self._tasks.append(self._backfill.start())
        for task in (self._bus.task, *self._tasks):
            self._watch.over(task)

    async def drain(self, grace_s: float) -> None:
        """Take no more runs; each goes to its next commit or the end of `grace_s` less two seconds, then back to the
        queue. All else goes on until `stop`."""
        self._lease.draining = True
        self._watch.stop()
        await self._executor.drain(max(grace_s - 2.0, 0.1))
        self._bus.queued()

    async def stop(self) -> None:
        """End, after `drain`; a run that came while that went on goes back as well."""
        await self._executor.drain(0.0)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._bus.stop()
        await self._lease.stop()

    def _every(self, name: str, seconds: float, work: Callable[[], Awaitable[None]]) -> asyncio.Task[None]:
        failures = Recurring(log, "background_work_failed")

        async def loop() -> None:
            while True:
                try:
                    await work()
                except StoreError as error:
                    failures.failed(str(error), work=name, error=reason_of(error))
                except Exception:
                    log.exception("background_work_failed", work=name)
                await asyncio.sleep(seconds * random.uniform(0.8, 1.2))

        return asyncio.create_task(loop(), name=name)

    async def _look_for_events(self) -> None:
        """One query for all runs that are read here: wake the readers of those whose log has grown."""
        cursors = self._bus.read_runs()
        if not cursors:
            return
        async with self._database.connection() as connection:
            heads = await claims.last_events(connection, list(cursors))
        for run_id, cursor in cursors.items():
            if heads.get(run_id, cursor + 1) > cursor:  # a run that is gone is news as well
                self._bus.poke(run_id)

    async def _promote_due(self) -> None:
        async with self._database.transaction() as connection:
            ready = await claims.promote_due(connection, BATCH)
        if ready:
            self._bus.queued()
