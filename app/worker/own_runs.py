"""Whether the runs that a replica executes are the ones that it owns, and what becomes of the others."""

from __future__ import annotations

from collections.abc import Mapping

from app.db import recovery
from app.db.database import Connection, Database
from app.event_bus.memory import MemoryBus
from app.telemetry.logs import get_logger
from app.worker.executor import LocalExecutor
from app.worker.lease import Lease

log = get_logger(__name__)


class OwnRuns:
    """Looks after the runs of this replica, as the database has them."""

    def __init__(self, database: Database, executor: LocalExecutor, bus: MemoryBus, lease: Lease) -> None:
        self._database = database
        self._executor = executor
        self._bus = bus
        self._lease = lease
        self._strays: dict[str, int] = {}
        self._known: dict[str, int] = {}
        self._dropped: dict[str, int] = {}

    def dropped(self, runs: Mapping[str, int]) -> None:
        """These runs, each with the epoch of its claim, were let go of because the database could not be reached: if
        others take them for crashed, that is taken back."""
        self._dropped |= runs

    async def look(self) -> None:
        """One query for all runs of this replica: stop those that it has lost, put back those that it does not execute,
        wake those for which something was stored. Raises: StoreUnavailable."""
        async with self._database.connection() as connection:
            owned = await recovery.owned_runs(connection, self._executor.owner)
            mine = self._executor.under_way()
            strays = {run_id: run.epoch for run_id, run in owned.items() if run_id not in mine}
            # Seen twice with the same epoch: no claim that is only just being answered.
            certain = {run_id: epoch for run_id, epoch in strays.items() if self._strays.get(run_id) == epoch}
            self._strays = strays
            if certain:
                await self._let_go(connection, certain)
            if self._dropped and self._lease.held():  # from now on nobody takes this replica for dead
                await self._take_crashes_back(connection, owned)
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
        await recovery.disown(connection, self._executor.owner, crashed)
        await recovery.put_back(connection, self._executor.owner, dropped)
        self._executor.crashed -= crashed.keys()
        self._dropped = {run_id: epoch for run_id, epoch in self._dropped.items() if run_id not in runs}
        self._bus.queued()

    async def _take_crashes_back(self, connection: Connection, owned: Mapping[str, recovery.OwnedRun]) -> None:
        kept = {run_id: run.epoch for run_id, run in owned.items()}
        taken = {run_id: epoch for run_id, epoch in self._dropped.items() if kept.get(run_id) != epoch}
        # Forgotten first: were it sent twice, a crash would be taken back that did happen.
        self._dropped = {run_id: epoch for run_id, epoch in self._dropped.items() if run_id not in taken}
        if taken and (count := await recovery.take_crash_back(connection, self._executor.owner, taken)):
            log.info("crashes_taken_back", runs=count)
