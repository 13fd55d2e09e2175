"""Counting what becomes of runs, where it is committed."""

from __future__ import annotations

from collections.abc import Sequence

from app.db.database import Database
from app.db.run_store import PostgresRunStore
from app.engine.errors import RunError
from app.engine.ownership import Claim, Committed, Created, Fence, Woken, Write
from app.engine.records import Expired, IdempotencyKey, NewRun, Stopped
from app.engine.status import RunStatus
from app.telemetry.metrics import Metrics


class MeteredRunStore(PostgresRunStore):
    """A `PostgresRunStore` that counts claims and ends of runs: every one is committed through one replica's store."""

    def __init__(self, database: Database, metrics: Metrics) -> None:
        super().__init__(database)
        self._metrics = metrics

    async def create(self, new: NewRun, *, owner: str | None) -> Created:
        created = await super().create(new, owner=owner)
        self._created(created)
        return created

    async def create_many(
        self, runs: Sequence[NewRun], idempotency: IdempotencyKey | None
    ) -> tuple[list[Created], bool]:
        created, replayed = await super().create_many(runs, idempotency)
        for one in created:
            self._created(one)
        return created, replayed

    async def claim(self, owner: str, limit: int, *, suspect: bool = False) -> list[Claim]:
        claims = await super().claim(owner, limit, suspect=suspect)
        if claims:
            self._metrics.runs_claimed(len(claims))
        for claim in claims:
            self._metrics.run_waited(claim.waited_s)
        return claims

    async def commit(self, fence: Fence, thread_key: str, write: Write) -> Committed | Woken | None:
        committed = await super().commit(fence, thread_key, write)
        if isinstance(committed, Committed):
            if committed.status.terminal:
                self._metrics.run_ended(committed.status, write.elapsed_s)
            for stopped in committed.stopped:
                self._stopped(stopped)
        return committed

    async def stop(self, run_id: str, status: RunStatus, reason: RunError) -> Stopped:
        stopped = await super().stop(run_id, status, reason)
        self._stopped(stopped)
        return stopped

    async def expire(self, limit: int) -> Expired:
        expired = await super().expire(limit)
        for stopped in expired.stopped:
            self._stopped(stopped)
        return expired

    def _created(self, created: Created) -> None:
        if created.claim is not None:
            self._metrics.runs_claimed(1)
        for stopped in created.stopped:
            self._stopped(stopped)

    def _stopped(self, stopped: Stopped) -> None:
        if stopped.changed:
            self._metrics.run_ended(stopped.run.status, stopped.run.elapsed_s)
        for member in stopped.family:
            self._stopped(member)
