"""A sweep goes a little at a time, in one replica, and never under somebody who is at work on a run."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta

import pytest
import structlog

from app.db import chores, retention
from app.db.chores import ChoreName
from app.db.connecting import Connection
from app.db.database import Database
from app.db.retention import BEGINNING, ROWS_AT_ONCE, Place, Removed, Swept
from app.db.run_store import PostgresRunStore
from app.engine.status import RunStatus as S
from app.telemetry.metrics import Metrics
from app.worker.sweeper import Retention, Sweeper
from tests.contract.stores import (
    OTHER_OWNER,
    OWNER,
    STOPPED,
    Owner,
    create_started,
    events_of,
    new_id,
    types_of,
)
from tests.contract.waiting import parent_of
from tests.exposition import Exposition
from tests.integration.old_runs import (
    EVENTS,
    RUNS,
    a_long_run,
    a_sweeper,
    check_logs,
    count,
    expire,
    rows_of,
    set_back,
)

Sweep = Callable[[Connection, Sequence[Place], datetime], Awaitable[Swept]]

SWEEPS: dict[ChoreName, tuple[Sweep, Retention]] = {
    ChoreName.RUNS: (retention.remove_families, RUNS),
    ChoreName.EVENTS: (retention.trim_events, EVENTS),
    ChoreName.CHECKPOINTS: (retention.trim_checkpoints, Retention(checkpoints_days=1)),
    ChoreName.DELTAS: (retention.trim_deltas, Retention(deltas_days=1)),
}


# --- runs that somebody is at work on -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SWEEPS)
async def test_a_run_that_was_resumed_after_its_batch_was_read_loses_nothing(
    store: PostgresRunStore, database: Database, name: ChoreName
) -> None:
    """Without the second look at the status, a run that goes on has lost what it was to lose."""
    owner = await a_long_run(store, S.FAILED)
    await set_back(database)
    before = await rows_of(database, owner.run_id)
    sweep, _ = SWEEPS[name]
    async with database.transaction() as connection:
        yesterday = datetime.now(UTC) - timedelta(days=1)
        batch = await retention.due(connection, Place(BEGINNING), yesterday)
        assert [str(place.run_id) for place in batch] == [owner.run_id]
        await store.resume(owner.run_id, None)
        swept = await sweep(connection, batch, yesterday)
    assert not swept.left
    assert sum(swept.removed.values()) == 0
    assert await rows_of(database, owner.run_id) == before
    await check_logs(database)


@pytest.mark.parametrize("name", SWEEPS)
async def test_a_run_that_ended_anew_after_its_batch_was_read_loses_nothing(
    store: PostgresRunStore, database: Database, name: ChoreName
) -> None:
    """Without the second look at `finished_at`, a run that has just ended loses what is to be kept for days."""
    owner = await a_long_run(store, S.FAILED)
    await set_back(database)
    sweep, _ = SWEEPS[name]
    async with database.transaction() as connection:
        yesterday = datetime.now(UTC) - timedelta(days=1)
        batch = await retention.due(connection, Place(BEGINNING), yesterday)
        await store.resume(owner.run_id, None)
        await store.stop(owner.run_id, S.INTERRUPTED, STOPPED)
        before = await rows_of(database, owner.run_id)
        swept = await sweep(connection, batch, yesterday)
    assert sum(swept.removed.values()) == 0
    assert await rows_of(database, owner.run_id) == before


@pytest.mark.parametrize("name", SWEEPS)
async def test_a_run_that_somebody_holds_is_passed_over_and_found_again(
    store: PostgresRunStore, database: Database, name: ChoreName
) -> None:
    """Without SKIP LOCKED the sweep waits; where what was left counts as done, it is never found again."""
    held, other = await a_long_run(store), await a_long_run(store)
    await set_back(database)
    await set_back(database, held.run_id)  # it comes first
    _, keep = SWEEPS[name]
    sweeper = a_sweeper(database, keep)
    before = await rows_of(database, held.run_id)
    async with database.connection() as connection, asyncio.timeout(20):
        async with connection.transaction():
            await connection.execute("SELECT 1 FROM runs WHERE run_id = $1::uuid FOR NO KEY UPDATE", held.run_id)
            first = await sweeper.sweep()
            assert await rows_of(database, held.run_id) == before
        second = await sweeper.sweep()
    assert first == second
    assert await rows_of(database, held.run_id) == await rows_of(database, other.run_id) != before


async def test_a_family_of_which_somebody_holds_a_run_is_left_whole(
    store: PostgresRunStore, database: Database
) -> None:
    owner, children = await parent_of(store, 2)
    await store.stop(owner.run_id, S.CANCELLED, STOPPED)
    await set_back(database)
    sweeper = a_sweeper(database, RUNS)
    for lock in ("runs WHERE run_id = $1::uuid", "threads WHERE thread_key = $1::uuid"):
        async with database.connection() as connection, connection.transaction(), asyncio.timeout(20):
            held = children[1].run_id if lock.startswith("runs") else children[1].thread_key
            await connection.execute(f"SELECT 1 FROM {lock} FOR NO KEY UPDATE", held)
            assert await sweeper.sweep() == {}
    assert await sweeper.sweep() == {Removed.RUNS: 3, Removed.THREADS: 3}


# --- a little at a time, and once ------------------------------------------------------------------------------------


async def copies(database: Database, run_id: str, number: int) -> None:
    """More runs like this one that is over, with its events, which have all ended at the same time."""
    columns = await database.pool.fetchval(
        """SELECT string_agg(quote_ident(column_name), ', ') FROM information_schema.columns
           WHERE table_name = 'runs' AND column_name NOT IN ('run_id', 'root_run_id')"""
    )
    await database.pool.execute(
        f"""WITH made AS (SELECT gen_random_uuid() AS id FROM generate_series(1, $2::int)),
            log AS (INSERT INTO run_events (run_id, seq, type, created_at, body)
                    SELECT id, seq, type, created_at, body FROM made, run_events WHERE run_id = $1::uuid)
            INSERT INTO runs (run_id, root_run_id, {columns})
            SELECT id, id, {columns} FROM made, runs WHERE run_id = $1::uuid""",
        run_id,
        number,
    )


async def test_any_number_of_runs_that_ended_at_one_time_are_all_swept(
    store: PostgresRunStore, database: Database
) -> None:
    """Where a sweep goes by the times alone, it stops after the first batch of them, or passes over the rest."""
    owner = await a_long_run(store)
    await set_back(database)
    await copies(database, owner.run_id, 2 * retention.RUNS_AT_ONCE + 20)
    number = await count(database, "runs")
    events = (await store.get(owner.run_id)).last_event_seq - 1
    assert await a_sweeper(database, EVENTS).sweep() == {Removed.EVENTS: number * events}
    await check_logs(database)
    assert (await a_sweeper(database, RUNS).sweep())[Removed.RUNS] == number
    assert await count(database, "run_events") == 0


async def test_a_long_log_goes_in_parts_each_of_which_leaves_it_whole(
    store: PostgresRunStore, database: Database
) -> None:
    owner = await create_started(store)
    await owner.say(*("x" for _ in range(ROWS_AT_ONCE + 500)))
    await owner.finish()
    await set_back(database)
    yesterday = datetime.now(UTC) - timedelta(days=1)
    last = (await store.get(owner.run_id)).last_event_seq
    async with database.transaction() as connection:
        batch = await retention.due(connection, Place(BEGINNING), yesterday)
        swept = await retention.trim_events(connection, batch, yesterday)
    assert (swept.removed, swept.more) == ({Removed.EVENTS: ROWS_AT_ONCE}, True)
    assert (await events_of(store, owner.run_id))[0].seq == ROWS_AT_ONCE + 1
    await check_logs(database)
    assert await a_sweeper(database, EVENTS).sweep() == {Removed.EVENTS: last - 1 - ROWS_AT_ONCE}
    await check_logs(database)


async def test_a_batch_is_as_small_as_the_logs_of_its_runs_are_long(
    store: PostgresRunStore, database: Database
) -> None:
    for _ in range(3):
        await a_long_run(store)
    await set_back(database)
    yesterday = datetime.now(UTC) - timedelta(days=1)

    async def batches() -> list[int]:
        place, sizes = Place(BEGINNING), list[int]()
        async with database.connection() as connection:
            while batch := await retention.due(connection, place, yesterday):
                place = batch[-1]
                sizes.append(len(batch))
        return sizes

    assert await batches() == [3]
    await database.pool.execute("UPDATE runs SET last_seq = $1", retention.EVENTS_AT_ONCE)
    assert await batches() == [1, 1, 1]


async def test_what_is_done_is_not_looked_at_again(store: PostgresRunStore, database: Database) -> None:
    """A run behind the mark is not found: only a test can set one back so far. One at the mark is."""
    first = await a_long_run(store)
    await set_back(database)
    assert await a_sweeper(database, EVENTS).sweep()
    behind, at = await a_long_run(store), await a_long_run(store)
    await set_back(database, behind.run_id, days=3)
    mark = await database.pool.fetchval("SELECT done_up_to FROM chores WHERE name = 'events'")
    await database.pool.execute("UPDATE runs SET finished_at = $2 WHERE run_id = $1::uuid", at.run_id, mark)
    await a_sweeper(database, EVENTS).sweep()
    assert [(await rows_of(database, each.run_id))[1] for each in (first, at)] == [1, 1]
    assert (await rows_of(database, behind.run_id))[1] > 1


# --- one replica at a time -------------------------------------------------------------------------------------------


async def test_a_chore_is_for_one_replica_until_its_time_is_up(database: Database) -> None:
    name = ChoreName.EVENTS
    mark = datetime(2026, 1, 1, tzinfo=UTC)
    async with database.connection() as connection:
        taken = await chores.take(connection, name, OWNER, 60)
        assert taken is not None
        assert taken.done_up_to is None
        assert await chores.take(connection, name, OTHER_OWNER, 60) is None
        assert not await chores.hold(connection, name, OTHER_OWNER, 60, None)
        assert await chores.hold(connection, name, OWNER, 60, mark)
        assert await chores.hold(connection, name, OWNER, 60, mark - timedelta(days=1))
        again = await chores.take(connection, name, OWNER, 60)
        assert again is not None
        assert again.done_up_to == mark
    await expire(database)
    async with database.connection() as connection:
        over = await chores.take(connection, name, OTHER_OWNER, 60)
        assert over is not None
        assert over.done_up_to == mark
        assert await chores.take(connection, name, OWNER, 60) is None
        assert not await chores.hold(connection, name, OWNER, 60, None)


async def test_of_replicas_that_take_a_chore_at_once_one_has_it(database: Database) -> None:
    async def take(replica: str) -> bool:
        async with database.connection() as connection:
            return await chores.take(connection, ChoreName.RUNS, replica, 60) is not None

    for _ in range(5):
        assert sum(await asyncio.gather(*(take(new_id()) for _ in range(8)))) == 1
        await expire(database)


async def _in_the_midst(database: Database, holder: Connection, owner: Owner, sweeper: Sweeper) -> asyncio.Task[object]:
    """A sweep that has taken its chore and waits to remove a row that `holder` has locked."""
    await holder.execute("SELECT 1 FROM run_events WHERE run_id = $1::uuid FOR UPDATE", owner.run_id)
    sweeping: asyncio.Task[object] = asyncio.create_task(sweeper.sweep())
    async with asyncio.timeout(20), database.connection() as connection:
        while not await connection.fetchval(
            "SELECT count(*) FROM pg_stat_activity WHERE $1 = ANY (pg_blocking_pids(pid))", holder.get_server_pid()
        ):
            await asyncio.sleep(0.01)
    return sweeping


async def test_a_replica_that_dies_leaves_its_chore_to_the_next_one(
    store: PostgresRunStore, database: Database
) -> None:
    owner = await a_long_run(store)
    await set_back(database)
    before = await rows_of(database, owner.run_id)
    other = a_sweeper(database, EVENTS, OTHER_OWNER)
    async with database.connection() as connection, connection.transaction():
        sweeping = await _in_the_midst(database, connection, owner, a_sweeper(database, EVENTS))
        sweeping.cancel()
        await asyncio.gather(sweeping, return_exceptions=True)
    assert await other.sweep() == {}
    assert await rows_of(database, owner.run_id) == before
    await expire(database)
    assert await other.sweep() == {Removed.EVENTS: before[1] - 1}


async def test_a_batch_of_a_replica_that_has_lost_its_chore_is_not_committed(
    store: PostgresRunStore, database: Database
) -> None:
    """Where the batch does not hold its chore on as it ends, two replicas are at it."""
    owner = await a_long_run(store)
    await set_back(database)
    before = await rows_of(database, owner.run_id)
    with structlog.testing.capture_logs() as logs:
        async with database.connection() as connection:
            async with connection.transaction():
                sweeping = await _in_the_midst(database, connection, owner, a_sweeper(database, EVENTS))
                await database.pool.execute("UPDATE chores SET replica = $1::uuid", OTHER_OWNER)
            assert await sweeping == {}
    assert await rows_of(database, owner.run_id) == before
    assert [entry["event"] for entry in logs] == ["chore_taken_over"]


async def test_a_sweeper_looks_soon_and_again_and_says_what_it_removed(
    store: PostgresRunStore, database: Database
) -> None:
    metrics = Metrics()
    sweeper = Sweeper(database, OWNER, Retention(deltas_days=1), metrics, every_s=0.02, first_s=0.01)
    first = await a_long_run(store)
    await set_back(database)
    with structlog.testing.capture_logs() as logs:
        sweeping = sweeper.start()
        async with asyncio.timeout(20):
            while not logs:
                await asyncio.sleep(0.01)
            assert "text_delta" not in await types_of(store, first.run_id)
            second = await a_long_run(store)
            await database.pool.execute(
                """UPDATE runs SET finished_at = (SELECT done_up_to FROM chores WHERE name = 'deltas') + interval '1 s'
                   WHERE run_id = $1::uuid""",  # ahead of the mark, which moves on all the while
                second.run_id,
            )
            while "text_delta" in await types_of(store, second.run_id):
                await asyncio.sleep(0.01)
            while len([entry for entry in logs if entry["event"] == "swept"]) < 2:
                await asyncio.sleep(0.01)
        sweeping.cancel()
        await asyncio.gather(sweeping, return_exceptions=True)
    assert [(entry["event"], entry["deltas"]) for entry in logs] == [("swept", 4), ("swept", 4)]
    assert Exposition(metrics.exposition()).value("agent_runner_retention_removed_total", kind="deltas") == 8
