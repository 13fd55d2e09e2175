"""One replica's background work: claims, the lease, and what has to be looked at now and then."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress

from app.db import claims
from app.db.database import Connection, Database
from app.engine.ports import RunStore
from app.engine.store_errors import StoreError, reason_of
from app.event_bus.announce import announce_stopped
from app.event_bus.memory import MemoryBus
from app.event_bus.postgres import PostgresBus
from app.telemetry.logs import get_logger
from app.telemetry.metrics import Metrics
from app.worker.executor import LocalExecutor
from app.worker.expiry import EXPIRE_EVERY_S, expire_due
from app.worker.lease import Lease
from app.worker.watch import Watch

CLAIM_BATCH = 20
CLAIM_EVERY_S = 1.0
LOOK_EVERY_S = 1.0
GUARD_EVERY_S = 0.5
BATCH = 100
SWEEP_EVERY_S = 60.0
SWEEP_BATCH = 10_000

log = get_logger(__name__)


class ClaimLoop:
    """Claims queued runs while there is room for them: when told that there are some, and once a second anyway."""

    def __init__(self, store: RunStore, executor: LocalExecutor, bus: MemoryBus) -> None:
        self._store = store
        self._executor = executor
        self._wake = asyncio.Event()
        bus.on_queued(self._wake.set)
        executor.on_free(self._wake.set)
        self.backlog = False

    async def run(self) -> None:
        while True:
            self._wake.clear()
            room = min(self._executor.free_slots, CLAIM_BATCH)
            claimed = await self._claim(room) if room > 0 else 0
            # A full batch means that there may be more: then new runs join the queue instead of passing it.
            self.backlog = room == 0 or claimed == room
            if claimed == room and room > 0:
                continue
            with suppress(TimeoutError):
                async with asyncio.timeout(CLAIM_EVERY_S):
                    await self._wake.wait()

    async def _claim(self, limit: int) -> int:
        try:
            claimed = await self._store.claim(self._executor.owner, limit)
        except StoreError as error:
            log.warning("claim_failed", error=reason_of(error))
            return 0
        except Exception:
            log.exception("claim_failed")
            return 0
        for claim in claimed:
            self._executor.take(claim)
        return len(claimed)


class Worker:
    """Everything that a replica does besides answering requests. `start` and `stop` are called once each."""

    def __init__(
        self,
        database: Database,
        store: RunStore,
        executor: LocalExecutor,
        bus: PostgresBus,
        claim_loop: ClaimLoop,
        lease: Lease,
        lease_s: float,
        metrics: Metrics,
        watch: Watch,
    ) -> None:
        self._database = database
        self._store = store
        self._executor = executor
        self._bus = bus
        self._claim_loop = claim_loop
        self._lease = lease
        self._lease_s = lease_s
        self._metrics = metrics
        self._watch = watch
        self._tasks: list[asyncio.Task[None]] = []
        self._strays: dict[str, int] = {}
        self._known: dict[str, int] = {}

    async def start(self) -> None:
        """Raises StoreUnavailable: the database does not take this replica's heartbeat."""
        await self._lease.start()
        await self._bus.start()
        self._executor.accepting = True
        self._tasks = [
            asyncio.create_task(self._claim_loop.run(), name="claim-loop"),
            asyncio.create_task(self._guard(), name="lease-guard"),
            self._every("owned-runs", LOOK_EVERY_S, self._look_after_own_runs),
            self._every("read-runs", LOOK_EVERY_S, self._look_for_events),
            self._every("due-runs", LOOK_EVERY_S, self._promote_due),
            self._every("expiry", EXPIRE_EVERY_S, lambda: expire_due(self._store, self._bus)),
            self._every("recovery", self._lease_s / 3, self._recover),
            self._every("sweep", SWEEP_EVERY_S, self._sweep),
        ]
        for task in (self._bus.task, *self._tasks):
            self._watch.over(task)

    async def stop(self, grace_s: float) -> None:
        """Drain: no new runs, each goes to its next commit or the end of `grace_s`, then back to the queue."""
        self._lease.draining = True
        self._watch.stop()
        if self._tasks:
            self._tasks[0].cancel()
        await self._executor.drain(max(grace_s - 2.0, 0.1))
        self._bus.queued()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._bus.stop()
        await self._lease.stop()

    async def _guard(self) -> None:
        """Let go of all runs before anyone else can take them for orphans."""
        try:
            while True:
                self._lease.tick()
                if not self._lease.beating():
                    self._watch.lost("heartbeat")
                held = self._lease.held()
                if not held and self._executor.accepting:
                    log.error("lease_lost", runs=len(self._executor.under_way()))
                    self._metrics.lease_lost()
                    self._executor.drop_all()
                self._executor.accepting = held and not self._lease.draining
                await asyncio.sleep(GUARD_EVERY_S)
        finally:  # a lease that nobody looks after is none
            self._executor.accepting = False
            self._executor.drop_all()

    def _every(self, name: str, seconds: float, work: Callable[[], Awaitable[None]]) -> asyncio.Task[None]:
        async def loop() -> None:
            while True:
                try:
                    await work()
                except StoreError as error:
                    log.warning("background_work_failed", work=name, error=reason_of(error))
                except Exception:
                    log.exception("background_work_failed", work=name)
                await asyncio.sleep(seconds * random.uniform(0.8, 1.2))

        return asyncio.create_task(loop(), name=name)

    async def _look_after_own_runs(self) -> None:
        """One query for all runs of this replica: stop those that it has lost, disown those that it never began."""
        async with self._database.connection() as connection:
            owned = await claims.owned_runs(connection, self._executor.owner)
            mine = self._executor.under_way()
            strays = {run_id: run.epoch for run_id, run in owned.items() if run_id not in mine}
            # Seen twice with the same epoch: no claim that is only just being answered.
            certain = {run_id: epoch for run_id, epoch in strays.items() if self._strays.get(run_id) == epoch}
            self._strays = strays
            if certain:
                await self._let_go(connection, certain)
        for run_id, epoch in self._known.items():
            run = owned.get(run_id)
            if run_id in mine and mine[run_id] == epoch and (run is None or run.epoch != epoch):
                self._executor.signal(run_id, epoch + 1)
            elif run is not None:
                self._executor.wake(run_id, run.wakes)
        self._known = mine

    async def _let_go(self, connection: Connection, runs: dict[str, int]) -> None:
        crashed = {run_id: epoch for run_id, epoch in runs.items() if run_id in self._executor.crashed}
        dropped = {run_id: epoch for run_id, epoch in runs.items() if run_id not in crashed}
        log.warning("runs_let_go", dropped=len(dropped), crashed=len(crashed))
        await claims.disown(connection, self._executor.owner, crashed)
        await claims.put_back(connection, self._executor.owner, dropped)
        self._executor.crashed -= crashed.keys()
        self._bus.queued()

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

    async def _sweep(self) -> None:
        async with self._database.connection() as connection:
            await claims.forget_what_is_over(connection, SWEEP_BATCH)

    async def _recover(self) -> None:
        async with self._database.connection() as connection:
            recovered, poisoned = await claims.requeue_orphans(connection, self._lease_s, BATCH)
        for run_id in poisoned:
            async with self._database.transaction() as connection:
                stopped = await claims.poison(connection, run_id)
            self._metrics.run_ended(stopped.run.status, stopped.run.elapsed_s)
            announce_stopped(self._bus, stopped)
        self._metrics.runs_recovered(recovered)
        if recovered or poisoned:
            log.warning("runs_recovered", requeued=recovered, poisoned=len(poisoned))
            self._bus.queued()
