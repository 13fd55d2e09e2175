"""The queue of ready runs, as a replica claims from it. All times are the database's.

A claim leaves a dead entry in the queue's index, which vacuum cannot remove while any old transaction is open. So a
replica looks from its low-water mark on, behind which it knows of nothing left to claim; whatever came to stand there
later, by a transaction that took long to commit, is found by the full look that it takes now and then.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from app.db.database import Connection
from app.engine.crashes import SUSPECT_CRASHES
from app.engine.ownership import Claim, Fence

FULL_LOOK_EVERY_S = 5.0
# How much later than its `available_at` a run may become visible and still be found by the next look.
SLACK = timedelta(seconds=2)

# An array, since Postgres takes that for short: were it joined, statistics of a time when all runs were queued would
# have each claim read all runs.
CLAIM = f"""
WITH suspect AS (
    SELECT run_id FROM runs
    WHERE $4 AND status = 'queued' AND crashes >= {SUSPECT_CRASHES} AND holds_thread
      AND available_at <= clock_timestamp()
    ORDER BY available_at LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED),
due AS (
    SELECT run_id FROM runs
    WHERE status = 'queued' AND crashes < {SUSPECT_CRASHES} AND holds_thread
      AND available_at >= COALESCE($3::timestamptz, '-infinity') AND available_at <= clock_timestamp()
    ORDER BY available_at, run_id LIMIT $2::bigint - (SELECT count(*) FROM suspect) FOR NO KEY UPDATE SKIP LOCKED),
claimed AS (
    UPDATE runs SET status = 'running', owner = $1::uuid, epoch = epoch + 1, attempt = attempt + 1,
                    started_at = COALESCE(started_at, clock_timestamp())
    WHERE run_id = ANY (ARRAY(SELECT run_id FROM suspect UNION ALL SELECT run_id FROM due))
    RETURNING runs.run_id, thread_key, epoch, write_no, attempt, wakes, available_at, crashes,
              extract(epoch FROM clock_timestamp() - available_at)::float8 AS waited_s)
SELECT statement_timestamp() AS looked_at, claimed.*
FROM (SELECT 1) AS one LEFT JOIN claimed ON true
ORDER BY available_at, run_id"""


@dataclass(frozen=True, slots=True)
class _Look:
    """What a look has claimed; before `up_to` it has left nothing that it saw."""

    claims: list[Claim]
    up_to: datetime | None


class ReadyQueue:
    """The queue as one replica sees it. Its low-water mark is its own.

    Args:
        clock: monotonic seconds, for when the next full look is due.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since: datetime | None = None
        self._full_look_at = float("-inf")

    async def claim(self, connection: Connection, owner: str, limit: int, *, suspect: bool) -> list[Claim]:
        """See `RunStore.claim`."""
        full = self._clock() >= self._full_look_at
        look = await _claim(connection, owner, limit, None if full else self._since, suspect=suspect)
        if full:
            self._full_look_at = self._clock() + FULL_LOOK_EVERY_S
        if look.up_to is not None:
            self._since = look.up_to - SLACK
        return look.claims


async def _claim(connection: Connection, owner: str, limit: int, since: datetime | None, *, suspect: bool) -> _Look:
    rows = await connection.fetch(CLAIM, owner, limit, since, suspect)
    claims = [
        Claim(
            Fence(str(row["run_id"]), row["epoch"], row["write_no"]),
            str(row["thread_key"]),
            row["attempt"],
            wakes=row["wakes"],
            suspect=row["crashes"] >= SUSPECT_CRASHES,
            waited_s=row["waited_s"],
        )
        for row in rows
        if row["run_id"] is not None
    ]
    if len(claims) < limit:
        return _Look(claims, rows[0]["looked_at"])
    ordinary = [row["available_at"] for row in rows if row["crashes"] < SUSPECT_CRASHES]
    return _Look(claims, max(ordinary, default=None))
