"""The ends of waits: questions, tool results and child runs that have had their time.

Each is found without a lock, and ended in a transaction of its own that locks the run and looks again, so that any
number of replicas may do this at once.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from app.db import interactions, results, steering
from app.db.conflicts import again_if_undone
from app.db.database import Connection, Database
from app.engine.errors import RunError
from app.engine.records import Expired, Stimulated, Stopped
from app.engine.status import RunStatus
from app.engine.store_errors import RunNotFound

_TIMED_OUT = RunError("subagent_timeout", "the child run did not end within its parent's subagent_timeout_s")

_T = TypeVar("_T")


async def in_transaction(database: Database, work: Callable[[Connection], Awaitable[_T]]) -> _T:
    """Run `work` in a transaction, again from the start where Postgres asks for that."""

    @again_if_undone
    async def transaction() -> _T:
        async with database.transaction() as connection:
            return await work(connection)

    return await transaction()


async def expire(database: Database, limit: int) -> Expired:
    """See `RunStore.expire`."""
    async with database.connection() as connection:
        questions = await interactions.due(connection, limit)
        calls = await results.due(connection, limit)
        children = await _late_children(connection, limit)
    stimulated: list[Stimulated | None] = []
    for run_id, interaction_id in questions:
        stimulated.append(await in_transaction(database, _question(run_id, interaction_id)))
    for run_id, step, call_index in calls:
        stimulated.append(await in_transaction(database, _call(run_id, step, call_index)))
    stopped = [await in_transaction(database, _child(run_id)) for run_id in children]
    return Expired(
        tuple(each for each in stimulated if each is not None),
        tuple(each for each in stopped if each is not None and each.changed),
    )


def _question(run_id: str, interaction_id: str) -> Callable[[Connection], Awaitable[Stimulated | None]]:
    async def work(connection: Connection) -> Stimulated | None:
        try:
            locked = await steering.lock(connection, run_id)
        except RunNotFound:
            return None
        resolved = await interactions.expire(connection, locked, interaction_id)
        return None if resolved is None else resolved.run

    return work


def _call(run_id: str, step: int, call_index: int) -> Callable[[Connection], Awaitable[Stimulated | None]]:
    async def work(connection: Connection) -> Stimulated | None:
        try:
            locked = await steering.lock(connection, run_id)
        except RunNotFound:
            return None
        return await results.expire(connection, locked, step, call_index)

    return work


def _child(run_id: str) -> Callable[[Connection], Awaitable[Stopped | None]]:
    async def work(connection: Connection) -> Stopped | None:
        try:
            locked = await steering.lock(connection, run_id)
        except RunNotFound:
            return None
        return await steering.stop(connection, locked, RunStatus.INTERRUPTED, _TIMED_OUT)

    return work


async def _late_children(connection: Connection, limit: int) -> list[str]:
    rows = await connection.fetch(
        """SELECT run_id FROM runs WHERE deadline_at <= clock_timestamp() AND finished_at IS NULL AND status <> 'paused'
           ORDER BY deadline_at LIMIT $1""",
        limit,
    )
    return [str(row["run_id"]) for row in rows]
