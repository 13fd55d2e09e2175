"""Runs on their way in and out of the queue, and what a replica asks about many runs at once.

All times are the database's.
"""

from __future__ import annotations

from app.db.database import Connection
from app.db.steering import lock
from app.engine.crashes import SUSPECT_CRASHES
from app.engine.ownership import Fence


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
            # It is ready from now on, and not since it was to start: claims do not look back for ever.
            """UPDATE runs SET ordinal = $2, holds_thread = $3,
                      available_at = CASE WHEN $3 THEN clock_timestamp() ELSE available_at END
               WHERE run_id = $1""",
            row["run_id"],
            line["ordinal"],
            line["got"],
        )
        if line["got"]:
            ready.append(str(row["run_id"]))
    return ready


async def last_events(connection: Connection, run_ids: list[str]) -> dict[str, int]:
    """The seq of the last event of each of these runs; runs that are gone are left out."""
    rows = await connection.fetch("SELECT run_id, last_seq FROM runs WHERE run_id = ANY ($1::uuid[])", run_ids)
    return {str(row["run_id"]): row["last_seq"] for row in rows}


async def count_queued(connection: Connection, most: int) -> int:
    """How many runs are queued; counting stops at `most`."""
    # In two parts, since the queue and its suspects have an index each.
    return await connection.fetchval(
        f"""SELECT count(*) FROM (
                SELECT 1 FROM runs WHERE status = 'queued' AND crashes < {SUSPECT_CRASHES}
                UNION ALL SELECT 1 FROM runs WHERE status = 'queued' AND crashes >= {SUSPECT_CRASHES}
                LIMIT $1) AS queued""",
        most,
    )
