"""What is deleted goes whole, and never from under someone who is at work on it.

In the races somebody holds a row until the deletion waits for it: `_waits_for` asks the server who waits for whom.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from uuid import UUID

import asyncpg
import pytest

from app.db.connecting import Connection
from app.db.create import create_run
from app.db.database import Database
from app.db.deletion import ROWS_AT_ONCE, Span, delete_run, delete_thread, parts_of
from app.db.run_store import PostgresRunStore
from app.engine.status import RunStatus as S
from app.engine.store_errors import RunConflict
from tests.contract.stores import STOPPED, Owner, a_run, create_started
from tests.contract.waiting import parent_of, three_generations
from tests.invariants import check_invariants

Delete = Callable[[Connection], Awaitable[object]]


async def _waits_for(database: Database, holder: Connection) -> None:
    """Wait until somebody waits for a lock of that connection."""
    async with asyncio.timeout(20), database.connection() as connection:
        while not await connection.fetchval(
            "SELECT count(*) FROM pg_stat_activity WHERE $1 = ANY (pg_blocking_pids(pid))", holder.get_server_pid()
        ):
            await asyncio.sleep(0.01)


def _begin(database: Database, delete: Delete) -> asyncio.Task[object]:
    async def in_transaction() -> object:
        async with database.transaction() as connection:
            return await delete(connection)

    return asyncio.create_task(in_transaction())


async def _count(database: Database, table: str) -> int:
    return await database.pool.fetchval(f"SELECT count(*) FROM {table}")


def _deletions(top: Owner) -> list[Delete]:
    """The two ways in which a run can go."""
    return [
        lambda connection: delete_run(connection, top.run_id),
        lambda connection: delete_thread(connection, "", top.new.thread_id),
    ]


@pytest.mark.parametrize("way", [0, 1], ids=["run", "thread"])
async def test_a_run_below_that_somebody_has_just_moved_on_keeps_its_family(
    store: PostgresRunStore, database: Database, way: int
) -> None:
    """Without the locks on the runs below the first one, a run that is active is deleted.

    No request leads there today: a run below goes on with those above it only. The deletion does not rely on it.
    """
    top, _, last = await three_generations(store)
    await store.stop(top.run_id, S.INTERRUPTED, STOPPED)
    async with database.connection() as connection:
        async with connection.transaction():
            await connection.execute(
                """UPDATE runs SET status = 'paused', finished_at = NULL, result = NULL, error = NULL
                   WHERE run_id = $1::uuid""",
                last.run_id,
            )
            deleting = _begin(database, _deletions(top)[way])
            await _waits_for(database, connection)
        with pytest.raises(RunConflict) as refused:
            await deleting
    assert refused.value.current_status is S.PAUSED
    assert await _count(database, "runs") == 3


@pytest.mark.parametrize("way", [0, 1], ids=["run", "thread"])
async def test_a_run_that_is_created_on_a_child_runs_thread_meanwhile_keeps_the_thread(
    store: PostgresRunStore, database: Database, database_url: str, way: int
) -> None:
    """Without the lock on the child run's thread, or where it is seen before the lock whether others use the thread,
    a new run is left without its thread."""
    owner, (child,) = await parent_of(store, 1)
    await store.stop(owner.run_id, S.CANCELLED, STOPPED)
    new = a_run(child.thread_id)
    async with database.connection() as connection:
        async with connection.transaction():
            await create_run(connection, new, None)
            deleting = _begin(database, _deletions(owner)[way])
            await _waits_for(database, connection)
        await deleting
    assert [str(row["run_id"]) for row in await database.pool.fetch("SELECT run_id FROM runs")] == [new.run_id]
    threads = await database.pool.fetch("SELECT thread_id, holder_run_id FROM threads")
    expected = [(child.thread_id, UUID(new.run_id))] + [(owner.new.thread_id, None)] * (way == 0)
    assert sorted((row["thread_id"], row["holder_run_id"]) for row in threads) == sorted(expected)
    looking = await asyncpg.connect(database_url)
    await check_invariants(looking)
    await looking.close()


async def test_a_thread_is_locked_after_the_run_that_one_of_its_runs_answers_to(
    store: PostgresRunStore, database: Database
) -> None:
    """Where the thread is locked before that run, who goes from the run to the thread and the deletion wait for each
    other for ever."""
    owner, (child,) = await parent_of(store, 1)
    await store.stop(owner.run_id, S.CANCELLED, STOPPED)
    async with database.connection() as connection:
        async with connection.transaction():
            await connection.execute("SELECT 1 FROM runs WHERE run_id = $1::uuid FOR NO KEY UPDATE", owner.run_id)
            deleting = _begin(database, lambda other: delete_thread(other, "", child.thread_id))
            await _waits_for(database, connection)
            await connection.execute(
                "SELECT 1 FROM threads WHERE thread_key = $1::uuid FOR NO KEY UPDATE NOWAIT", child.thread_key
            )
        assert await deleting
    assert (await store.get(owner.run_id)).status is S.CANCELLED


@pytest.mark.parametrize("way", [0, 1], ids=["run", "thread"])
async def test_a_run_that_is_resumed_first_is_not_deleted(
    store: PostgresRunStore, database: Database, way: int
) -> None:
    """Without the locks on the run and its thread, what was read before the resume is deleted after it."""
    owner = await create_started(store)
    await owner.finish(S.FAILED)
    async with database.connection() as connection:
        async with connection.transaction():
            await connection.execute("SELECT 1 FROM threads WHERE thread_key = $1::uuid FOR UPDATE", owner.thread_key)
            deleting = _begin(database, _deletions(owner)[way])
            await _waits_for(database, connection)
            await connection.execute(
                """UPDATE runs SET status = 'queued', holds_thread = true, finished_at = NULL, result = NULL,
                                   error = NULL WHERE run_id = $1::uuid""",
                owner.run_id,
            )
            await connection.execute(
                "UPDATE threads SET holder_run_id = $1::uuid WHERE thread_key = $2::uuid",
                owner.run_id,
                owner.thread_key,
            )
        with pytest.raises(RunConflict):
            await deleting
    assert (await store.get(owner.run_id)).status is S.QUEUED


async def test_of_two_deletions_at_once_one_finds_nothing(store: PostgresRunStore, database: Database) -> None:
    top, _, _ = await three_generations(store)
    await store.stop(top.run_id, S.CANCELLED, STOPPED)
    run, thread = (_begin(database, delete) for delete in _deletions(top))
    answers = await asyncio.gather(run, thread, return_exceptions=True)
    assert answers[0] is None or type(answers[0]).__name__ == "RunNotFound", answers
    assert answers[1] is True, answers
    for table in ("runs", "threads", "messages", "run_events", "checkpoints", "tool_executions"):
        assert await _count(database, table) == 0, table


@pytest.mark.parametrize("way", [0, 1], ids=["run", "thread"])
async def test_a_log_far_longer_than_one_statement_removes_goes_whole(
    store: PostgresRunStore, database: Database, way: int
) -> None:
    kept, owner = await create_started(store), await create_started(store)
    for each in (kept, owner):
        await each.finish()
    more = 2 * ROWS_AT_ONCE + 1
    await database.pool.execute(
        """INSERT INTO run_events (run_id, seq, type, created_at, body)
           SELECT $1::uuid, last_seq + n, 'text_delta', now(), '{}' FROM runs, generate_series(1, $2::int) AS n
           WHERE run_id = $1::uuid""",
        owner.run_id,
        more,
    )
    await database.pool.execute("UPDATE runs SET last_seq = last_seq + $2 WHERE run_id = $1::uuid", owner.run_id, more)
    await _begin(database, _deletions(owner)[way])
    left = await database.pool.fetch("SELECT DISTINCT run_id FROM run_events")
    assert [str(row["run_id"]) for row in left] == [kept.run_id]
    assert await _count(database, "run_events") == (await store.get(kept.run_id)).last_event_seq
    assert await _count(database, "messages") == (4 if way == 0 else 2)


def test_parts_hold_every_row_once_and_none_is_longer_than_it_may_be() -> None:
    spans = [Span(UUID(int=1), 1, 7), Span(UUID(int=2), 5, 5), Span(UUID(int=3), 1, 0), Span(UUID(int=4), 3, 12)]
    for most in (1, 2, 3, 8, 18, 100):
        parts = list(parts_of(spans, most))
        rows = [[(span.key, seq) for span in part for seq in range(span.low, span.high + 1)] for part in parts]
        assert [row for part in rows for row in part] == [
            (span.key, seq) for span in spans for seq in range(span.low, span.high + 1)
        ]
        assert all(len(part) == most for part in rows[:-1])
        assert 0 < len(rows[-1]) <= most
