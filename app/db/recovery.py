"""Runs whose replica is gone, or has let go of them: back into the queue, with or without a crash to their name.

All times are the database's.
"""

from __future__ import annotations

from dataclasses import dataclass

from app.db.database import Connection
from app.db.steering import lock, stop
from app.engine.crashes import AMONG_OTHERS_S, MAX_CRASHES, MAX_CRASHES_AMONG_OTHERS, poisoned
from app.engine.records import Stopped
from app.engine.status import RunStatus

# A replica is dead when its last beat is older than the lease, or when it has no row at all. After the database itself
# has stood still, everyone's last beat is old, and that of whoever asks as well: then nobody is judged.
_DEAD_OWNERS = """
    SELECT r.run_id, r.owner, r.crashes + 1 AS crashes FROM runs r
    LEFT JOIN replicas p ON p.incarnation = r.owner
        AND p.heartbeat_at > clock_timestamp() - make_interval(secs => $1)
    WHERE r.status = 'running' AND p.incarnation IS NULL
      AND EXISTS (SELECT 1 FROM replicas
                  WHERE incarnation = $3::uuid AND heartbeat_at > clock_timestamp() - make_interval(secs => $1 / 2))
    ORDER BY r.run_id LIMIT $2 FOR NO KEY UPDATE OF r SKIP LOCKED
"""

# `without` is those runs beside which others have died lately. A run without an owner has itself to blame (`disown`).
_REQUEUE = f"""
WITH orphan AS ({_DEAD_OWNERS}),
crash AS (
    INSERT INTO crashes AS c (incarnation, run_ids)
    SELECT owner, array_agg(run_id) FROM orphan WHERE owner IS NOT NULL GROUP BY owner ORDER BY owner
    ON CONFLICT (incarnation) DO UPDATE SET run_ids = c.run_ids || EXCLUDED.run_ids),
without AS (
    SELECT o.run_id FROM orphan o
    WHERE EXISTS (SELECT 1 FROM crashes c
                  WHERE c.at > clock_timestamp() - make_interval(secs => {AMONG_OTHERS_S})
                    AND c.incarnation <> o.owner AND o.run_id <> ALL (c.run_ids))
       OR EXISTS (SELECT 1 FROM orphan c WHERE c.owner <> o.owner)),
judged AS (
    SELECT run_id, crashes,
           crashes >= CASE WHEN run_id IN (SELECT run_id FROM without)
                           THEN {MAX_CRASHES_AMONG_OTHERS} ELSE {MAX_CRASHES} END AS given_up
    FROM orphan)
UPDATE runs SET status = CASE WHEN given_up THEN status ELSE 'queued' END, owner = CASE WHEN given_up THEN owner END,
                epoch = epoch + 1, crashes = judged.crashes, resume_reason = 'crash', available_at = clock_timestamp()
FROM judged WHERE runs.run_id = judged.run_id
RETURNING runs.run_id, given_up"""


async def requeue_orphans(connection: Connection, judge: str, lease_s: float, limit: int) -> tuple[int, list[str]]:
    """Put runs of dead replicas back into the queue, but for those that have crashed too often; executes nothing.

    Too often is `MAX_CRASHES` in a row, or, where other processes have died without the run in the last minute,
    `MAX_CRASHES_AMONG_OTHERS`.

    Args:
        judge: the replica that asks; without a beat of its own within half a lease it finds nothing.
        lease_s: seconds after which a replica that was not heard of counts as dead.

    Returns:
        how many runs went back, and the ids of those that are given up: each is to be ended with `poison`.
    """
    rows = await connection.fetch(_REQUEUE, lease_s, limit, judge)
    given_up = [str(row["run_id"]) for row in rows if row["given_up"]]
    return len(rows) - len(given_up), given_up


async def poison(connection: Connection, run_id: str) -> Stopped:
    """End a run that has taken its process down time after time."""
    locked = await lock(connection, run_id)
    return await stop(connection, locked, RunStatus.FAILED, poisoned(locked.row["crashes"]))


@dataclass(frozen=True, slots=True)
class OwnedRun:
    """What an owner asks of its runs now and then: whether they are still its own, and whether they were woken."""

    epoch: int
    wakes: int


async def owned_runs(connection: Connection, owner: str) -> dict[str, OwnedRun]:
    """The runs that a replica owns according to the database."""
    rows = await connection.fetch(
        "SELECT run_id, epoch, wakes FROM runs WHERE status = 'running' AND owner = $1::uuid", owner
    )
    return {str(row["run_id"]): OwnedRun(row["epoch"], row["wakes"]) for row in rows}


async def put_back(connection: Connection, owner: str, runs: dict[str, int]) -> None:
    """Queue runs again that a replica owns by the database and let go of, or never heard that it has: no crash.

    Args:
        runs: each with the epoch of the owner's claim.
    """
    await connection.execute(
        """UPDATE runs SET status = 'queued', owner = NULL, epoch = runs.epoch + 1, resume_reason = 'crash',
                           available_at = clock_timestamp()
           FROM unnest($2::uuid[], $3::bigint[]) AS stray(run_id, epoch)
           WHERE runs.run_id = stray.run_id AND runs.epoch = stray.epoch AND owner = $1::uuid AND status = 'running'""",
        owner,
        list(runs),
        list(runs.values()),
    )


async def disown(connection: Connection, owner: str, runs: dict[str, int]) -> None:
    """Make orphans of runs whose task a defect has ended: recovery counts them as crashed.

    Args:
        runs: each with the epoch of the owner's claim.
    """
    await connection.execute(
        """UPDATE runs SET owner = NULL, epoch = runs.epoch + 1
           FROM unnest($2::uuid[], $3::bigint[]) AS stray(run_id, epoch)
           WHERE runs.run_id = stray.run_id AND runs.epoch = stray.epoch AND owner = $1::uuid AND status = 'running'""",
        owner,
        list(runs),
        list(runs.values()),
    )


async def take_crash_back(connection: Connection, owner: str, runs: dict[str, int]) -> int:
    """Say of a replica's runs that it has let go of them before it was taken for dead: that was no crash.

    Call it once for each such run, when none of them can be counted as crashed any more.

    Args:
        runs: each with the epoch of the claim that was let go of; those that nobody has moved on stay as they are.

    Returns:
        how many runs have a crash less.
    """
    rows = await connection.fetch(
        """WITH none AS (DELETE FROM crashes WHERE incarnation = $1::uuid)
           UPDATE runs SET crashes = crashes - 1
           FROM unnest($2::uuid[], $3::bigint[]) AS dropped(run_id, epoch)
           WHERE runs.run_id = dropped.run_id AND runs.epoch > dropped.epoch AND crashes > 0 AND finished_at IS NULL
           RETURNING 1""",
        owner,
        list(runs),
        list(runs.values()),
    )
    return len(rows)
