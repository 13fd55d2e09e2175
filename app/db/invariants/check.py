"""Ask a database for all invariants: in one snapshot, read-only, and within bounds of rows and time."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import assert_never
from uuid import UUID

import asyncpg

from app.db.database import Connection
from app.db.invariants.invariant import Invariant, Over
from app.db.invariants.promises import INVARIANTS

MOST_RUNS = 10_000
MOST_ROWS = 10
WITHIN_S = 60.0
_BATCH = 1000
_AT_LEAST_S = 1.0
_SHARE = 0.25  # of the time, for one invariant

# The newest runs, and those that are not over, which is those that hold a thread or stand in a queue. Ids and keys are
# ordered by time.
_RUNS = """
    SELECT run_id, thread_key FROM (
        (SELECT run_id, thread_key FROM runs ORDER BY run_id DESC LIMIT $1)
        UNION (SELECT run_id, thread_key FROM runs WHERE holds_thread LIMIT $1)
        UNION (SELECT run_id, thread_key FROM runs WHERE status = 'queued' LIMIT $1)) AS looked_at
    ORDER BY run_id"""
_THREADS = "SELECT thread_key FROM threads ORDER BY thread_key DESC LIMIT $1"


@dataclass(frozen=True, slots=True)
class Broken:
    """An invariant that does not hold, with the first rows that break it; `more` says that there are others."""

    invariant: Invariant
    rows: tuple[Mapping[str, object], ...]
    more: bool


@dataclass(frozen=True, slots=True)
class Checked:
    """What a check found.

    Args:
        unfinished: those that could not be asked for within the time.
        runs, threads: how many were looked at.
        all_runs: whether these are all that there are.
    """

    broken: tuple[Broken, ...]
    unfinished: tuple[Invariant, ...]
    runs: int
    threads: int
    all_runs: bool


async def check_all(
    connection: Connection, *, most_runs: int = MOST_RUNS, most_rows: int = MOST_ROWS, within_s: float = WITHIN_S
) -> Checked:
    """Check every invariant in one read-only REPEATABLE READ transaction.

    Args:
        connection: one that is in no transaction; nothing of the session is changed, so a pooler may stand in between.
        most_runs: how many of the newest runs and threads are looked at, and as many again that are not over.
        most_rows: how many rows are kept of each invariant that does not hold.
        within_s: seconds for all of it, about; what is not asked for by then is `unfinished`.

    Raises:
        asyncpg.PostgresError: a query was refused, such as for want of a table or of a right to read one; or the ids
            alone could not be read within the time.
    """
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        return await check_here(connection, most_runs=most_runs, most_rows=most_rows, within_s=within_s)


async def check_here(
    connection: Connection, *, most_runs: int = MOST_RUNS, most_rows: int = MOST_ROWS, within_s: float = WITHIN_S
) -> Checked:
    """The same inside the caller's transaction, whose statement_timeout is changed."""
    until = time.monotonic() + within_s
    await _limit_time(connection, until + _AT_LEAST_S)
    rows = await connection.fetch(_RUNS, most_runs)
    newest = await connection.fetch(_THREADS, most_runs)
    run_ids: list[UUID] = [row["run_id"] for row in rows]
    keys: list[UUID] = list({row["thread_key"]: None for row in (*rows, *newest)})
    count = await connection.fetchval("SELECT count(*) FROM (SELECT 1 FROM runs LIMIT $1) AS runs", len(rows) + 1)
    broken: list[Broken] = []
    unfinished: list[Invariant] = []
    for invariant in INVARIANTS:
        match invariant.over:
            case Over.RUNS:
                arguments: Iterator[list[UUID] | int] = _batches(run_ids)
            case Over.THREADS:
                arguments = _batches(keys)
            case Over.LEFTOVERS:
                arguments = iter((most_runs,))
            case _:
                assert_never(invariant.over)
        now = time.monotonic()
        if now >= until:
            unfinished.append(invariant)
            continue
        try:
            async with connection.transaction():  # a savepoint: a query that took too long ends alone
                found = await _rows_of(connection, invariant, arguments, most_rows + 1, now + within_s * _SHARE)
        except asyncpg.QueryCanceledError:
            unfinished.append(invariant)
            continue
        if found:
            broken.append(Broken(invariant, tuple(found[:most_rows]), len(found) > most_rows))
    return Checked(tuple(broken), tuple(unfinished), len(run_ids), len(keys), count <= len(rows))


async def _rows_of(
    connection: Connection, invariant: Invariant, arguments: Iterator[list[UUID] | int], limit: int, until: float
) -> list[Mapping[str, object]]:
    """Up to `limit` rows that break an invariant. Raises: asyncpg.QueryCanceledError, when its time is up."""
    found: list[Mapping[str, object]] = []
    for argument in arguments:
        await _limit_time(connection, until)
        query = f"SELECT * FROM ({invariant.query}) AS breaking LIMIT $2"
        found += [dict(row) for row in await connection.fetch(query, argument, limit - len(found))]
        if len(found) >= limit:
            break
    return found


async def _limit_time(connection: Connection, until: float) -> None:
    left_ms = max(int((until - time.monotonic()) * 1000), 1)
    await connection.execute(f"SET LOCAL statement_timeout = {left_ms}")


def _batches(ids: Sequence[UUID]) -> Iterator[list[UUID] | int]:
    for start in range(0, len(ids), _BATCH):
        yield list(ids[start : start + _BATCH])
