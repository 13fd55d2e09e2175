"""What is not kept for ever: parts of runs that ended long ago, such runs, and what has no more use.

A batch of runs is read first, without locks. Whoever resumes or deletes a run holds its row, so each function locks the
runs of its batch, leaves out those that others hold, and looks at the rest again: what it removes belongs to runs that
are over, have been for long enough, and cannot go on before the caller's transaction has ended.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from uuid import UUID

from app.db.database import Connection
from app.db.deletion import Member, lock_families, remove_empty_threads, remove_runs
from app.db.keys import IDEMPOTENCY_TTL
from app.engine.events import DELTA_TYPES
from app.engine.status import RunStatus

RUNS_AT_ONCE = 100
ROWS_AT_ONCE = 5000
# Runs of a batch have so many events together, unless it is a single run: what a statement has to look at.
EVENTS_AT_ONCE = 50_000

BEGINNING = datetime.fromtimestamp(0, UTC)
_NO_RUN = UUID(int=0)

_DUE = """
    SELECT run_id, finished_at, last_seq - first_seq + 1 AS events FROM runs
    WHERE finished_at IS NOT NULL AND finished_at < $1
      AND (finished_at, run_id) > ($2, $3) {only}
    ORDER BY finished_at, run_id LIMIT $4"""

_LOCK = "SELECT run_id, status, finished_at FROM runs WHERE run_id = ANY ($1) FOR NO KEY UPDATE SKIP LOCKED"

# Of each run the oldest first, since the statement may end in the middle of a log. The last event stays: it tells how
# the run ended, and readers know by it that they have seen all.
_OLD_EVENTS = """
    SELECT e.run_id, e.seq FROM runs r CROSS JOIN LATERAL (
        SELECT run_id, seq FROM run_events
        WHERE run_id = r.run_id AND seq >= r.first_seq AND seq < r.last_seq {only}
        ORDER BY seq LIMIT $2) AS e
    WHERE r.run_id = ANY ($1) LIMIT $2"""

_TRIM_DELTAS = f"""
    WITH old AS ({_OLD_EVENTS.format(only="AND type = ANY ($3::text[])")}),
    gone AS (DELETE FROM run_events e USING old WHERE e.run_id = old.run_id AND e.seq = old.seq RETURNING e.run_id),
    told AS (UPDATE runs SET deltas_trimmed = true
             WHERE run_id IN (SELECT run_id FROM gone) AND NOT deltas_trimmed)
    SELECT count(*) FROM gone"""

_TRIM_EVENTS = f"""
    WITH old AS ({_OLD_EVENTS.format(only="")}),
    gone AS (DELETE FROM run_events e USING old WHERE e.run_id = old.run_id AND e.seq = old.seq RETURNING e.run_id)
    SELECT run_id, count(*) AS events FROM gone GROUP BY run_id"""

_FIRST_EVENTS = """
    UPDATE runs SET first_seq = COALESCE((SELECT min(seq) FROM run_events e WHERE e.run_id = runs.run_id), last_seq)
    WHERE run_id = ANY ($1)"""

# A run that is resumed goes on from its last checkpoint, and a fork may begin there.
_TRIM_CHECKPOINTS = """
    WITH old AS (
        SELECT c.run_id, c.seq FROM unnest($1::uuid[]) AS r(run_id) CROSS JOIN LATERAL (
            SELECT run_id, seq FROM checkpoints WHERE run_id = r.run_id
            AND seq < (SELECT max(seq) FROM checkpoints WHERE run_id = r.run_id) LIMIT $2) AS c
        LIMIT $2)
    DELETE FROM checkpoints c USING old WHERE c.run_id = old.run_id AND c.seq = old.seq"""


class Removed(StrEnum):
    """What was removed, as it is counted."""

    DELTAS = "deltas"
    EVENTS = "events"
    CHECKPOINTS = "checkpoints"
    RUNS = "runs"
    THREADS = "threads"
    IDEMPOTENCY_KEYS = "idempotency_keys"
    CACHED_ANSWERS = "cached_answers"
    REPLICAS = "replicas"


@dataclass(frozen=True, slots=True)
class Place:
    """A run's place in the order in which runs have ended; without a run, that before all that ended at the time."""

    finished_at: datetime
    run_id: UUID = _NO_RUN


@dataclass(frozen=True, slots=True)
class Swept:
    """What became of a batch.

    Args:
        removed: rows by kind.
        left: runs that have to be looked at again: others held them.
        more: whether the same batch has more to remove.
    """

    removed: dict[Removed, int]
    left: frozenset[UUID]
    more: bool = False


async def due(connection: Connection, place: Place, ended_before: datetime, *, only_first: bool = False) -> list[Place]:
    """The next batch of runs behind a place that ended before a time, as the places that they have themselves.

    Args:
        only_first: runs without a parent.
    """
    only = "AND parent_run_id IS NULL" if only_first else ""
    rows = await connection.fetch(_DUE.format(only=only), ended_before, place.finished_at, place.run_id, RUNS_AT_ONCE)
    batch: list[Place] = []
    events = 0
    for row in rows:
        events += row["events"]
        if batch and events > EVENTS_AT_ONCE:
            break
        batch.append(Place(row["finished_at"], row["run_id"]))
    return batch


async def trim_deltas(connection: Connection, batch: Sequence[Place], ended_before: datetime) -> Swept:
    """Remove the deltas of runs: their texts are in other events. Readers go on over the gaps."""
    run_ids, left = await _lock(connection, batch, ended_before)
    types = [kind.value for kind in DELTA_TYPES]
    removed = await connection.fetchval(_TRIM_DELTAS, run_ids, ROWS_AT_ONCE, types)
    return Swept({Removed.DELTAS: removed}, left, more=removed == ROWS_AT_ONCE)


async def trim_events(connection: Connection, batch: Sequence[Place], ended_before: datetime) -> Swept:
    """Remove the events of runs but for the last one, and move `first_seq` with them."""
    run_ids, left = await _lock(connection, batch, ended_before)
    rows = await connection.fetch(_TRIM_EVENTS, run_ids, ROWS_AT_ONCE)
    await connection.execute(_FIRST_EVENTS, [row["run_id"] for row in rows])
    removed = sum(row["events"] for row in rows)
    return Swept({Removed.EVENTS: removed}, left, more=removed == ROWS_AT_ONCE)


async def trim_checkpoints(connection: Connection, batch: Sequence[Place], ended_before: datetime) -> Swept:
    """Remove the checkpoints of runs but for the last one."""
    run_ids, left = await _lock(connection, batch, ended_before)
    removed = _count(await connection.execute(_TRIM_CHECKPOINTS, run_ids, ROWS_AT_ONCE))
    return Swept({Removed.CHECKPOINTS: removed}, left, more=removed == ROWS_AT_ONCE)


async def remove_families(connection: Connection, batch: Sequence[Place], ended_before: datetime) -> Swept:
    """Remove runs that have no parent with all runs below them, if all are over; and the threads that this leaves
    without runs, with their messages, unless somebody has written to them since.
    """
    families = await lock_families(connection, [place.run_id for place in batch], skip_locked=True)
    members: list[Member] = []
    left: set[UUID] = set()
    for run_id, family in families.items():
        if not family.free:
            left.add(run_id)
        elif _is_due(family.members[0].status, family.members[0].finished_at, ended_before):
            if family.active is None:
                members += family.members
            else:
                left.add(run_id)
    await remove_runs(connection, members)
    threads = await remove_empty_threads(connection, {member.thread_key for member in members}, ended_before)
    return Swept({Removed.RUNS: len(members), Removed.THREADS: threads}, frozenset(left))


async def forget_keys(connection: Connection, limit: int) -> int:
    """Remove idempotency keys that no longer count, at most `limit` of them; how many they were."""
    done = await connection.execute(
        f"""DELETE FROM idempotency_keys WHERE (tenant_id, key) IN (
                SELECT tenant_id, key FROM idempotency_keys
                WHERE created_at < clock_timestamp() - interval '{IDEMPOTENCY_TTL}'
                LIMIT $1 FOR UPDATE SKIP LOCKED)""",
        limit,
    )
    return _count(done)


async def forget_dead_replicas(connection: Connection) -> int:
    """Remove the rows of replicas that died long ago and own nothing, and their crashes; how many they were."""
    await connection.execute("DELETE FROM crashes WHERE at < clock_timestamp() - interval '1 hour'")
    done = await connection.execute(
        """DELETE FROM replicas p WHERE heartbeat_at < clock_timestamp() - interval '1 hour'
           AND NOT EXISTS (SELECT 1 FROM runs WHERE owner = p.incarnation AND status = 'running')"""
    )
    return _count(done)


async def _lock(
    connection: Connection, batch: Sequence[Place], ended_before: datetime
) -> tuple[list[UUID], frozenset[UUID]]:
    """Lock the runs of a batch: those that are still due, and those that others hold."""
    run_ids = [place.run_id for place in batch]
    rows = await connection.fetch(_LOCK, run_ids)
    still_due = [row["run_id"] for row in rows if _is_due(RunStatus(row["status"]), row["finished_at"], ended_before)]
    return still_due, frozenset(run_ids) - {row["run_id"] for row in rows}


def _is_due(status: RunStatus, finished_at: datetime | None, ended_before: datetime) -> bool:
    return status.terminal and finished_at is not None and finished_at < ended_before


def _count(done: str) -> int:
    """How many rows a statement says that it has changed."""
    return int(done.rpartition(" ")[2])
