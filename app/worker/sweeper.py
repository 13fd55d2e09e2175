"""Removes what is not kept for ever, a little at a time, while no other replica does."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal, TypeAlias, assert_never

from app.db import chores, retention
from app.db.chores import ChoreName, Held
from app.db.database import Connection, Database
from app.db.model_cache import forget_expired
from app.db.retention import BEGINNING, Place, Removed, Swept
from app.engine.store_errors import StoreError, reason_of
from app.telemetry.logs import get_logger
from app.telemetry.metrics import Metrics
from app.telemetry.recurring import Recurring

SWEEP_EVERY_S = 60.0
FIRST_SWEEP_S = 2.0
PAUSE_S = 0.02
# A replica that dies leaves its chore to the next one after this; far longer than a batch takes.
HOLD_S = 60.0
# The end of a run is in its row before it is committed: what is younger than this may still come up.
MARGIN = timedelta(minutes=1)
KEYS_AT_ONCE = 5000
ANSWERS_AT_ONCE = 500  # each may have many pages

# Removes at most so many rows of a kind; tells how many.
_Forget: TypeAlias = Callable[[Connection, int], Awaitable[int]]
# Chores that go through the runs that have ended.
_Trim: TypeAlias = Literal[ChoreName.RUNS, ChoreName.EVENTS, ChoreName.CHECKPOINTS, ChoreName.DELTAS]

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Retention:
    """For how many days after a run's end things are kept; None: for ever."""

    runs_days: float | None = None
    events_days: float | None = None
    checkpoints_days: float | None = None
    deltas_days: float | None = None

    def chores(self) -> dict[_Trim, timedelta]:
        """What there is to do, by how long it is kept; what removes most comes first and spares the others work."""
        days: dict[_Trim, float | None] = {
            ChoreName.RUNS: self.runs_days,
            ChoreName.EVENTS: self.events_days,
            ChoreName.CHECKPOINTS: self.checkpoints_days,
            ChoreName.DELTAS: self.deltas_days,
        }
        return {name: timedelta(days=kept) for name, kept in days.items() if kept is not None}


class _TakenOver(Exception):
    """Another replica has the chore now: the batch is not committed."""


class Sweeper:
    """Looks about once a minute for what is to be removed, and goes on while there is more.

    Every batch is a transaction of its own. How far a chore has come is noted with it, so that what is done is never
    looked at again: not by this replica, nor by one that goes on with the chore.

    Args:
        replica: the incarnation that the chores are taken for.
        keep: without any days only idempotency keys, cached answers and rows of dead replicas are removed.
    """

    def __init__(
        self,
        database: Database,
        replica: str,
        keep: Retention,
        metrics: Metrics,
        *,
        every_s: float = SWEEP_EVERY_S,
        first_s: float = FIRST_SWEEP_S,
        hold_s: float = HOLD_S,
    ) -> None:
        self._database = database
        self._replica = replica
        self._chores = keep.chores()
        self._removed: Counter[Removed] = Counter()
        metrics.counter(
            "agent_runner.retention.removed",
            "Rows that this replica removed because they are not kept any longer, by kind.",
            lambda: [(count, {"kind": kind.value}) for kind, count in self._removed.items()],
        )
        self._failures = Recurring(log, "background_work_failed")
        self._every_s = every_s
        self._first_s = first_s
        self._hold_s = hold_s

    def start(self) -> asyncio.Task[None]:
        """Begin; cancelling the task ends it, with the batch that is under way undone."""
        return asyncio.create_task(self._run(), name="sweep")

    async def sweep(self) -> Counter[Removed]:
        """Do all chores that no other replica has; how much of each kind was removed.

        A chore that the database refuses is left for the next time, with a line in the log.
        """
        removed: Counter[Removed] = Counter()
        await self._unless_refused(ChoreName.HOUSEKEEPING, self._keep_house(removed))
        for name in self._chores:
            await self._unless_refused(name, self._go_through(name, removed))
        if removed:
            log.info("swept", **{kind.value: count for kind, count in removed.items()})
        return removed

    async def _run(self) -> None:
        await asyncio.sleep(self._first_s * random.uniform(0.5, 1.5))
        while True:
            await self.sweep()
            await asyncio.sleep(self._every_s * random.uniform(0.8, 1.2))

    async def _unless_refused(self, name: ChoreName, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except _TakenOver:
            log.warning("chore_taken_over", chore=name.value)
        except StoreError as error:
            self._failures.failed(str(error), work="sweep", chore=name.value, error=reason_of(error))
        except Exception:
            log.exception("background_work_failed", work="sweep", chore=name.value)

    async def _keep_house(self, removed: Counter[Removed]) -> None:
        if await self._take(ChoreName.HOUSEKEEPING) is None:
            return
        async with self._database.connection() as connection:
            self._count(removed, {Removed.REPLICAS: await retention.forget_dead_replicas(connection)})
        await self._forget(removed, Removed.IDEMPOTENCY_KEYS, retention.forget_keys, KEYS_AT_ONCE)
        await self._forget(removed, Removed.CACHED_ANSWERS, forget_expired, ANSWERS_AT_ONCE)

    async def _forget(self, removed: Counter[Removed], kind: Removed, forget: _Forget, at_once: int) -> None:
        """Batch after batch of what its own time has made useless."""
        gone = at_once
        while gone == at_once:
            async with self._database.transaction() as connection:
                gone = await forget(connection, at_once)
                await self._hold(connection, ChoreName.HOUSEKEEPING, None)
            self._count(removed, {kind: gone})
            await asyncio.sleep(PAUSE_S)

    async def _go_through(self, name: _Trim, removed: Counter[Removed]) -> None:
        """Batch after batch of the runs that have ended for long enough, from where the chore stands."""
        held = await self._take(name)
        if held is None:
            return
        ended_before = held.now - max(self._chores[name], MARGIN)
        place = Place(held.done_up_to or BEGINNING)
        left: datetime | None = None  # the first end of a run to look at again: nothing behind it counts as done
        while True:
            async with self._database.transaction() as connection:
                only_first = name is ChoreName.RUNS
                batch = await retention.due(connection, place, ended_before, only_first=only_first)
                if not batch:
                    await self._hold(connection, name, left or ended_before)
                    return
                swept = await _sweep_batch(connection, name, batch, ended_before)
                if not swept.more:
                    left = left or next((run.finished_at for run in batch if run.run_id in swept.left), None)
                    place = batch[-1]
                await self._hold(connection, name, left or place.finished_at)
            self._count(removed, swept.removed)
            await asyncio.sleep(PAUSE_S)

    async def _take(self, name: ChoreName) -> Held | None:
        async with self._database.connection() as connection:
            return await chores.take(connection, name, self._replica, self._hold_s)

    async def _hold(self, connection: Connection, name: ChoreName, done_up_to: datetime | None) -> None:
        if not await chores.hold(connection, name, self._replica, self._hold_s, done_up_to):
            raise _TakenOver

    def _count(self, removed: Counter[Removed], counts: dict[Removed, int]) -> None:
        for kind, count in counts.items():
            if count:
                removed[kind] += count
                self._removed[kind] += count


async def _sweep_batch(connection: Connection, name: _Trim, batch: Sequence[Place], ended_before: datetime) -> Swept:
    match name:
        case ChoreName.RUNS:
            return await retention.remove_families(connection, batch, ended_before)
        case ChoreName.EVENTS:
            return await retention.trim_events(connection, batch, ended_before)
        case ChoreName.CHECKPOINTS:
            return await retention.trim_checkpoints(connection, batch, ended_before)
        case ChoreName.DELTAS:
            return await retention.trim_deltas(connection, batch, ended_before)
        case _:
            assert_never(name)
