"""Removing runs that are over, with their child runs, and threads.

All that goes is locked first, from the top down: the parent of a run, its thread, the run, then the runs below it. Each
level is read as it is once it is locked, and so are the threads that others may have begun to use meanwhile. The
functions run inside the caller's transaction; a statement of theirs removes `ROWS_AT_ONCE` rows or little more.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

from app.db.database import Connection
from app.db.family import lock_parent, may_need
from app.db.rows import run_uuid
from app.engine.status import RunStatus
from app.engine.store_errors import RunConflict, RunNotFound

ROWS_AT_ONCE = 10_000
_RUNS_AT_ONCE = 500  # of these each has some hundred rows at most in a table that is not the log

_THREADS = """
    SELECT thread_key FROM threads WHERE thread_key IN (SELECT thread_key FROM runs WHERE run_id = ANY ($1::uuid[]))
    ORDER BY thread_key FOR NO KEY UPDATE"""

_RUNS = """
    SELECT run_id, thread_key, status, finished_at, first_seq, last_seq FROM runs
    WHERE run_id = ANY ($1::uuid[]) ORDER BY run_id FOR NO KEY UPDATE"""

_EMPTY_THREADS = """
    DELETE FROM threads t WHERE thread_key = ANY ($1::uuid[]) AND ($2::timestamptz IS NULL OR updated_at < $2)
    AND NOT EXISTS (SELECT 1 FROM runs r WHERE r.thread_key = t.thread_key)
    RETURNING thread_key, next_seq - 1 AS last_seq"""

_SPANS = "unnest($1::uuid[], $2::bigint[], $3::bigint[]) AS span(key, low, high)"
_EVENTS = f"DELETE FROM run_events USING {_SPANS} WHERE run_id = key AND seq BETWEEN low AND high"
_MESSAGES = f"DELETE FROM messages USING {_SPANS} WHERE thread_key = key AND seq BETWEEN low AND high"


@dataclass(frozen=True, slots=True)
class Span:
    """Rows of one run's log, or of one thread, by their numbers, both of them included."""

    key: UUID
    low: int
    high: int


@dataclass(frozen=True, slots=True)
class Member:
    """A run that this transaction has locked, as it is since."""

    run_id: UUID
    thread_key: UUID
    status: RunStatus
    finished_at: datetime | None
    log: Span


@dataclass(slots=True)
class Family:
    """A run and those below it, from the top down.

    `free` is False where others hold one of its rows; that run, and what is below it, is then not among the members.
    """

    members: list[Member] = field(default_factory=list[Member])
    free: bool = True

    @property
    def active(self) -> Member | None:
        """The first one that is not terminal."""
        return next((member for member in self.members if not member.status.terminal), None)


async def delete_run(connection: Connection, run_id: str) -> None:
    """Remove a terminal run and its child runs, with their threads. The messages that it wrote stay in its own thread.

    Raises:
        RunNotFound: there is no such run.
        RunConflict: it, or one of its child runs, is not terminal; or its parent may have to take in how it ended.
    """
    key = run_uuid(run_id)
    parent = await lock_parent(connection, key)
    family = (await lock_families(connection, [key]))[key]
    if not family.members:
        raise RunNotFound(run_id)
    if parent is not None and await may_need(connection, parent, run_id):
        raise RunConflict(
            f"its parent run {parent} may go on and need it: delete that, when it is over", family.members[0].status
        )
    active = family.active
    if active is not None:
        which = "the run" if active.run_id == key else f"its child run {active.run_id}"
        raise RunConflict(f"{which} is {active.status}: cancel it before it is deleted", active.status)
    await remove_runs(connection, family.members)
    await remove_empty_threads(connection, [member.thread_key for member in family.members if member.run_id != key])


async def delete_thread(connection: Connection, tenant_id: str, thread_id: str) -> bool:
    """Remove a thread with its messages and runs, and the runs below these with their threads.

    Returns:
        False if there is no such thread.

    Raises:
        RunConflict: one of these runs is not terminal, or the parent of one may have to take in how it ended; with the
            status of that run.
    """
    key = await connection.fetchval(
        "SELECT thread_key FROM threads WHERE tenant_id = $1 AND thread_id = $2", tenant_id, thread_id
    )
    # A thread that was made for a child run keeps it as long as both are there, so that no parent comes up later.
    children = await connection.fetch(
        "SELECT run_id FROM runs WHERE thread_key = $1 AND parent_run_id IS NOT NULL ORDER BY parent_run_id", key
    )
    parents = [(await lock_parent(connection, row["run_id"]), row["run_id"]) for row in children]
    # This lock keeps new runs away: a create takes the thread's row first.
    held = await connection.fetchval("SELECT 1 FROM threads WHERE thread_key = $1 FOR NO KEY UPDATE", key)
    if held is None:
        return False
    runs = await connection.fetch("SELECT run_id FROM runs WHERE thread_key = $1", key)
    families = (await lock_families(connection, [row["run_id"] for row in runs])).values()
    active = next((family.active for family in families if family.active is not None), None)
    if active is not None:
        raise RunConflict(f"a run of the thread {thread_id!r} is {active.status}; cancel it first", active.status)
    for parent, child in parents:
        if parent is not None and await may_need(connection, parent, child):
            status = await connection.fetchval("SELECT status FROM runs WHERE run_id = $1::uuid", parent)
            raise RunConflict(
                f"the run {parent} may go on and need a run of the thread {thread_id!r}; "
                "delete that first, when it is over",
                RunStatus(status),
            )
    members = [member for family in families for member in family.members]
    await remove_runs(connection, members)
    await remove_empty_threads(connection, {key, *(member.thread_key for member in members)})
    return True


async def lock_families(
    connection: Connection, run_ids: Sequence[UUID], *, skip_locked: bool = False
) -> dict[UUID, Family]:
    """Lock runs, whose parents are locked or do not matter, and all runs below them, each after its thread.

    Nothing is locked below a run that is not terminal: that family stays as it is anyway.

    Args:
        skip_locked: leave out what others have locked, instead of waiting for it.

    Returns:
        a family for each of the ids; one without members if there is no such run.
    """
    families = {run_id: Family() for run_id in run_ids}
    level: dict[UUID, Family] = dict(families)  # each run with the family that it is of
    while level:
        locked = await _lock_level(connection, list(level), skip_locked=skip_locked)
        for run_id, family in level.items():
            if run_id in locked:
                family.members.append(locked[run_id])
            else:
                family.free = False
        over = [run_id for run_id, member in locked.items() if member.status.terminal]
        below = await connection.fetch("SELECT run_id, parent_run_id FROM runs WHERE parent_run_id = ANY ($1)", over)
        level = {row["run_id"]: level[row["parent_run_id"]] for row in below}
    return families


async def remove_runs(connection: Connection, members: Sequence[Member]) -> None:
    """Remove locked runs with their events, checkpoints, tool executions and interactions."""
    # A log is numbered without gaps but for those that retention has made, so that its numbers bound its rows.
    await _remove_spans(connection, _EVENTS, [member.log for member in members])
    for start in range(0, len(members), _RUNS_AT_ONCE):
        ids = [member.run_id for member in members[start : start + _RUNS_AT_ONCE]]
        for table in ("checkpoints", "tool_executions", "interactions", "runs"):
            await connection.execute(f"DELETE FROM {table} WHERE run_id = ANY ($1)", ids)


async def remove_empty_threads(
    connection: Connection, thread_keys: Iterable[UUID], untouched_since: datetime | None = None
) -> int:
    """Remove those of some locked threads that have no runs any more, with their messages and summaries.

    Args:
        untouched_since: leave threads that somebody has written to since then.

    Returns:
        how many they were.
    """
    rows = await connection.fetch(_EMPTY_THREADS, list(thread_keys), untouched_since)
    await _remove_spans(connection, _MESSAGES, [Span(row["thread_key"], 1, row["last_seq"]) for row in rows])
    removed = [row["thread_key"] for row in rows]
    await connection.execute("DELETE FROM compactions WHERE thread_key = ANY ($1)", removed)
    return len(rows)


async def _lock_level(connection: Connection, run_ids: Sequence[UUID], *, skip_locked: bool) -> dict[UUID, Member]:
    skip = " SKIP LOCKED" if skip_locked else ""
    threads = {row["thread_key"] for row in await connection.fetch(_THREADS + skip, run_ids)}
    rows = await connection.fetch(_RUNS + skip, run_ids)
    return {
        row["run_id"]: Member(
            row["run_id"],
            row["thread_key"],
            RunStatus(row["status"]),
            row["finished_at"],
            Span(row["run_id"], row["first_seq"], row["last_seq"]),
        )
        for row in rows
        if not skip_locked or row["thread_key"] in threads
    }


async def _remove_spans(connection: Connection, statement: str, spans: Sequence[Span]) -> None:
    for part in parts_of(spans, ROWS_AT_ONCE):
        keys, lows, highs = zip(*((span.key, span.low, span.high) for span in part), strict=True)
        await connection.execute(statement, keys, lows, highs)


def parts_of(spans: Iterable[Span], most: int) -> Iterator[list[Span]]:
    """The same rows in parts of at most `most`: several spans together, and long ones cut."""
    part: list[Span] = []
    room = most
    for span in spans:
        low = span.low
        while low <= span.high:
            high = min(span.high, low + room - 1)
            part.append(Span(span.key, low, high))
            room -= high - low + 1
            low = high + 1
            if room == 0:
                yield part
                part, room = [], most
    if part:
        yield part
