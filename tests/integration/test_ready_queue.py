"""What claims cost, and that none is missed: the queue of ready runs on Postgres."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta

import asyncpg
import pytest

from app.db import claims, heartbeats, recovery
from app.db.database import Database
from app.db.heartbeats import Process
from app.db.ready_queue import CLAIM, FULL_LOOK_EVERY_S, SLACK, ReadyQueue
from app.db.run_store import PostgresRunStore
from app.engine.status import RunStatus
from tests.contract.stores import OTHER_OWNER, OWNER, STOPPED, a_run, create_started
from tests.contract.waiting import parent_of

CLAIMED = 4000
BATCH = 100


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@asynccontextmanager
async def old_snapshot(url: str) -> AsyncGenerator[None]:
    """A transaction that stays open: nothing that dies meanwhile can be cleared away."""
    connection = await asyncpg.connect(url)
    async with connection.transaction(isolation="repeatable_read"):
        await connection.fetchval("SELECT count(*) FROM runs")
        yield
    await connection.close()


async def queue_runs(database: Database, store: PostgresRunStore, count: int, words: int = 200) -> None:
    """So many runs, ready one after the other over the last hours; each with that much text."""
    created = await store.create(a_run(), owner=None)
    await database.pool.execute(
        """INSERT INTO runs (run_id, thread_key, thread_id, ordinal, root_run_id, agent_name, agent_version_id,
                             requested_model, overrides, context, input, status, holds_thread, available_at)
           SELECT gen_random_uuid(), gen_random_uuid(), 't' || n, 1, run_id, agent_name, agent_version_id,
                  requested_model, overrides, context, to_json(repeat('words ', $3)), 'queued', true,
                  clock_timestamp() - make_interval(secs => 2 * ($2 - n + 1))
           FROM runs, generate_series(1, $2) AS n WHERE run_id = $1::uuid""",
        created.run.run_id,
        count,
        words,
    )


async def buffers(database: Database, since: datetime | None) -> int:
    """How many buffers a claim touches that takes one run; it is undone."""
    async with database.connection() as connection:
        transaction = connection.transaction()
        await transaction.start()
        explained = await connection.fetchval(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {CLAIM}", OWNER, 1, since, True)
        await transaction.rollback()
    plan = json.loads(explained)[0]["Plan"]
    assert plan["Actual Rows"] == 1
    return plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]


@pytest.mark.parametrize("analyzed", [False, True])
async def test_a_claim_costs_little_after_thousands_of_others_though_an_old_transaction_is_open(
    store: PostgresRunStore, database: Database, database_url: str, analyzed: bool
) -> None:
    """Seen to fail where the statement does not use its lower bound; with statistics of a time when nothing was queued,
    where the look for suspects can go through the same index.
    """
    await queue_runs(database, store, CLAIMED)
    queue = ReadyQueue(Clock())
    async with old_snapshot(database_url), database.connection() as connection:
        taken = 0
        while claimed := await queue.claim(connection, OWNER, BATCH, suspect=True):
            taken += len(claimed)
        assert taken == CLAIMED + 1
        if analyzed:
            await connection.execute("ANALYZE runs")
        mark = await connection.fetchval("SELECT max(available_at) FROM runs") - SLACK
        await store.create(a_run(), owner=None)
        without, with_bound = await buffers(database, None), await buffers(database, mark)
    assert with_bound < 100, f"{with_bound} buffers, {without} without the bound"
    assert without > 20 * with_bound


async def test_a_claim_costs_little_though_statistics_are_of_a_time_when_all_runs_were_queued(
    store: PostgresRunStore, database: Database
) -> None:
    """Seen to fail where the claimed runs are joined with the runs: then all of these are read."""
    await queue_runs(database, store, CLAIMED, words=1)
    await database.pool.execute("ANALYZE runs")
    await database.pool.execute("UPDATE runs SET status = 'completed', holds_thread = false WHERE ordinal = 1")
    await store.create(a_run(), owner=None)
    await database.pool.execute("VACUUM runs")  # what is left is the choice between looking for few and reading all
    assert await buffers(database, None) < 100


async def test_a_queue_looks_from_its_mark_on_and_at_all_of_it_now_and_then(
    store: PostgresRunStore, database: Database
) -> None:
    """What became visible late, behind the mark, is found by the full look. Seen to fail without either."""
    clock = Clock()
    queue = ReadyQueue(clock)
    async with database.connection() as connection:

        async def claimed() -> list[str]:
            return [claim.fence.run_id for claim in await queue.claim(connection, OWNER, 10, suspect=False)]

        assert await claimed() == []
        late, fresh = [(await store.create(a_run(), owner=None)).run.run_id for _ in range(2)]
        behind = SLACK + timedelta(minutes=1)
        await connection.execute(
            "UPDATE runs SET available_at = available_at - $2::interval WHERE run_id = $1", late, behind
        )
        assert await claimed() == [fresh]
        clock.now = FULL_LOOK_EVERY_S - 0.1
        assert await claimed() == []
        clock.now = FULL_LOOK_EVERY_S
        assert await claimed() == [late]


async def test_a_run_that_commits_a_little_late_is_found_at_once(store: PostgresRunStore, database: Database) -> None:
    """Seen to fail without the slack."""
    queue = ReadyQueue(Clock())
    async with database.connection() as connection:
        assert await queue.claim(connection, OWNER, 10, suspect=False) == []
        first, second = [(await store.create(a_run(), owner=None)).run.run_id for _ in range(2)]
        await connection.execute(
            "UPDATE runs SET available_at = available_at - $2::interval WHERE run_id = $1",
            first,
            SLACK - timedelta(seconds=1),
        )
        claimed = await queue.claim(connection, OWNER, 10, suspect=False)
    assert [claim.fence.run_id for claim in claimed] == [first, second]


async def test_a_full_batch_leaves_the_mark_at_its_last_run(store: PostgresRunStore, database: Database) -> None:
    """Seen to fail where a look that could not take all counts as one that did."""
    await queue_runs(database, store, 20)
    queue = ReadyQueue(Clock())
    taken: list[float] = []
    async with database.connection() as connection:
        while claimed := await queue.claim(connection, OWNER, 2, suspect=False):
            taken += [claim.waited_s for claim in claimed]
    assert len(taken) == 21
    assert taken == sorted(taken, reverse=True), "oldest first"


@pytest.mark.parametrize("way", ["due", "promoted", "woken", "released", "orphaned", "put back", "resumed"])
async def test_whatever_becomes_ready_is_ready_from_that_moment_on(
    store: PostgresRunStore, database: Database, way: str
) -> None:
    """However long ago it was created, or was to start. Seen to fail for runs that were due, without their new time."""
    owner = await create_started(store)
    run_id, child = owner.run_id, ""
    if way == "promoted":
        run_id = (await store.create(a_run(owner.new.thread_id), owner=None)).run.run_id
    elif way == "due":
        start = await database.pool.fetchval("SELECT clock_timestamp()")
        run_id = (await store.create(a_run(start_after=start), owner=None)).run.run_id
    elif way == "woken":
        owner, (new,) = await parent_of(store, 1)
        run_id, child = owner.run_id, new.run_id
        await owner.write(status=RunStatus.WAITING)
    await database.pool.execute("UPDATE runs SET available_at = available_at - interval '1 hour'")
    async with database.transaction() as connection:
        match way:
            case "due":
                assert await claims.promote_due(connection, 10) == [run_id]
            case "promoted":
                assert (await owner.finish()).promoted == run_id
            case "woken":
                await store.stop(child, RunStatus.CANCELLED, STOPPED)
            case "released":
                assert await store.release(owner.fence, 1.0)
            case "orphaned":
                await heartbeats.beat(connection, OTHER_OWNER, Process("host", 1), draining=False)
                assert await recovery.requeue_orphans(connection, OTHER_OWNER, 60, 10) == (1, [])
            case _:
                await recovery.put_back(connection, OWNER, {run_id: owner.fence.epoch})
    if way == "resumed":
        await store.pause(run_id)
        await database.pool.execute("UPDATE runs SET available_at = available_at - interval '1 hour'")
        await store.resume(run_id, None)
    row = await database.pool.fetchrow(
        "SELECT status, holds_thread, clock_timestamp() - available_at AS waited FROM runs WHERE run_id = $1", run_id
    )
    assert row is not None
    assert (row["status"], row["holds_thread"]) == ("queued", True)
    assert row["waited"] < timedelta(minutes=30)
