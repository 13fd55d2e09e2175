"""Which replica owns which run: claims, releases, recovery, heartbeats. All times are the database's."""

from __future__ import annotations

from dataclasses import dataclass

from app.db.database import Connection
from app.db.steering import lock, stop
from app.engine.errors import RunError
from app.engine.records import Claim, Fence, Stopped
from app.engine.status import RunStatus

MAX_CRASHES = 3

# A replica is dead when its last beat is older than the lease, or when it has no row at all.
_DEAD_OWNERS = """
    SELECT r.run_id FROM runs r
    LEFT JOIN replicas p ON p.incarnation = r.owner
        AND p.heartbeat_at > clock_timestamp() - make_interval(secs => $1)
    WHERE r.status = 'running' AND p.incarnation IS NULL
    ORDER BY r.run_id LIMIT $2 FOR NO KEY UPDATE OF r SKIP LOCKED
"""


async def claim_runs(connection: Connection, owner: str, limit: int) -> list[Claim]:
    """Claim ready queued runs, those that have waited longest first."""
    rows = await connection.fetch(
        """WITH due AS (
               SELECT run_id FROM runs
               WHERE status = 'queued' AND holds_thread AND available_at <= clock_timestamp()
               ORDER BY available_at, run_id LIMIT $2 FOR NO KEY UPDATE SKIP LOCKED)
           UPDATE runs SET status = 'running', owner = $1::uuid, epoch = epoch + 1, attempt = attempt + 1,
                           started_at = COALESCE(started_at, clock_timestamp())
           FROM due WHERE runs.run_id = due.run_id
           RETURNING runs.run_id, thread_key, epoch, write_no, attempt, wakes""",
        owner,
        limit,
    )
    return [
        Claim(
            Fence(str(row["run_id"]), row["epoch"], row["write_no"]),
            str(row["thread_key"]),
            row["attempt"],
            wakes=row["wakes"],
        )
        for row in rows
    ]


async def release_run(connection: Connection, fence: Fence, elapsed_s: float, delay_s: float) -> bool:
    """Back to the queue, for any replica to go on with after `delay_s` seconds."""
    done = await connection.execute(
        """UPDATE runs SET status = 'queued', owner = NULL, epoch = epoch + 1, crashes = 0, elapsed_s = $4,
                  available_at = clock_timestamp() + make_interval(secs => $5), resume_reason = 'drain'
           WHERE run_id = $1::uuid AND epoch = $2 AND write_no = $3 AND status = 'running'""",
        fence.run_id,
        fence.epoch,
        fence.write_no,
        elapsed_s,
        delay_s,
    )
    return done.endswith(" 1")


async def requeue_orphans(connection: Connection, lease_s: float, limit: int) -> tuple[int, list[str]]:
    """Put runs of dead replicas back into the queue, but for those that have crashed too often; executes nothing.

    Returns:
        how many runs went back, and the ids of those that have now crashed `MAX_CRASHES` times: each is to be ended
        with `poison`.
    """
    rows = await connection.fetch(
        f"""WITH orphan AS ({_DEAD_OWNERS})
            UPDATE runs SET status = CASE WHEN crashes + 1 >= $3 THEN status ELSE 'queued' END,
                            owner = CASE WHEN crashes + 1 >= $3 THEN owner END,
                            epoch = epoch + 1, crashes = crashes + 1, resume_reason = 'crash',
                            available_at = clock_timestamp()
            FROM orphan WHERE runs.run_id = orphan.run_id
            RETURNING runs.run_id, crashes""",
        lease_s,
        limit,
        MAX_CRASHES,
    )
    poisoned = [str(row["run_id"]) for row in rows if row["crashes"] >= MAX_CRASHES]
    return len(rows) - len(poisoned), poisoned


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
    """Queue runs again that a replica owns by the database and let go of, or never heard that it has: no crash."""
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
    """Make orphans of runs whose task a defect has ended: recovery counts them as crashed."""
    await connection.execute(
        """UPDATE runs SET owner = NULL, epoch = runs.epoch + 1
           FROM unnest($2::uuid[], $3::bigint[]) AS stray(run_id, epoch)
           WHERE runs.run_id = stray.run_id AND runs.epoch = stray.epoch AND owner = $1::uuid AND status = 'running'""",
        owner,
        list(runs),
        list(runs.values()),
    )


async def poison(connection: Connection, run_id: str) -> Stopped:
    """End a run that has taken its process down time after time."""
    locked = await lock(connection, run_id)
    reason = RunError(
        "poisoned", f"the run was under way in {MAX_CRASHES} crashes of its process in a row and was given up"
    )
    return await stop(connection, locked, RunStatus.FAILED, reason)


async def promote_due(connection: Connection, limit: int) -> list[str]:
    """Let runs whose `start_after` has come join the line of their thread.

    Returns:
        the ids of those that hold their thread now and can be claimed.
    """
    due = await connection.fetch(
        """SELECT run_id, thread_id FROM runs
           WHERE status = 'queued' AND ordinal IS NULL AND available_at <= clock_timestamp()
           ORDER BY available_at LIMIT $1""",
        limit,
    )
    ready: list[str] = []
    for row in sorted(due, key=lambda row: row["thread_id"]):  # one order of locks for all; a thread's runs keep theirs
        locked = await lock(connection, str(row["run_id"]))
        if locked.row["status"] != "queued" or locked.row["ordinal"] is not None:
            continue
        line = await connection.fetchrow(
            """UPDATE threads SET next_ordinal = next_ordinal + 1, queued = queued + (holder_run_id IS NOT NULL)::int,
                                  holder_run_id = COALESCE(holder_run_id, $2)
               WHERE thread_key = $1 RETURNING next_ordinal - 1 AS ordinal, holder_run_id = $2 AS got""",
            locked.row["thread_key"],
            row["run_id"],
        )
        assert line is not None
        await connection.execute(
            "UPDATE runs SET ordinal = $2, holds_thread = $3 WHERE run_id = $1",
            row["run_id"],
            line["ordinal"],
            line["got"],
        )
        if line["got"]:
            ready.append(str(row["run_id"]))
    return ready


async def beat(connection: Connection, incarnation: str, host: str, pid: int, *, draining: bool) -> int:
    """Say that this replica lives.

    Returns:
        how many other replicas do, by the same lease of a minute that keeps their rows.
    """
    return await connection.fetchval(
        """WITH me AS (
               INSERT INTO replicas (incarnation, host, pid, draining) VALUES ($1::uuid, $2, $3, $4)
               ON CONFLICT (incarnation) DO UPDATE
               SET heartbeat_at = clock_timestamp(), draining = EXCLUDED.draining)
           SELECT count(*) FROM replicas
           WHERE incarnation <> $1::uuid AND heartbeat_at > clock_timestamp() - interval '1 minute'""",
        incarnation,
        host,
        pid,
        draining,
    )


async def leave(connection: Connection, incarnation: str) -> None:
    """Say good-bye, so that runs left behind are recovered without waiting for a lease."""
    await connection.execute("DELETE FROM replicas WHERE incarnation = $1::uuid", incarnation)


async def forget_what_is_over(connection: Connection, limit: int) -> None:
    """Remove replicas that died long ago and idempotency keys that no longer count, at most `limit` keys a call."""
    await connection.execute(
        """DELETE FROM idempotency_keys WHERE (tenant_id, key) IN (
               SELECT tenant_id, key FROM idempotency_keys
               WHERE created_at < clock_timestamp() - interval '24 hours' LIMIT $1)""",
        limit,
    )
    await connection.execute(
        """DELETE FROM replicas p WHERE heartbeat_at < clock_timestamp() - interval '1 hour'
           AND NOT EXISTS (SELECT 1 FROM runs WHERE owner = p.incarnation AND status = 'running')"""
    )


async def last_events(connection: Connection, run_ids: list[str]) -> dict[str, int]:
    """The seq of the last event of each of these runs; runs that are gone are left out."""
    rows = await connection.fetch("SELECT run_id, last_seq FROM runs WHERE run_id = ANY ($1::uuid[])", run_ids)
    return {str(row["run_id"]): row["last_seq"] for row in rows}


async def count_queued(connection: Connection, most: int) -> int:
    """How many runs are queued; counting stops at `most`."""
    return await connection.fetchval(
        "SELECT count(*) FROM (SELECT 1 FROM runs WHERE status = 'queued' LIMIT $1) AS queued", most
    )
