"""Whose crash it was: how many crashes in a row a run may have, by what else has died in the meantime."""

from __future__ import annotations

from app.db import heartbeats, recovery
from app.db.database import Database
from app.db.heartbeats import Process
from app.db.run_store import PostgresRunStore
from app.engine.crashes import MAX_CRASHES, MAX_CRASHES_AMONG_OTHERS
from tests.contract.stores import a_run, new_id

JUDGE = "00000000-0000-4000-8000-0000000000aa"


async def recover(database: Database) -> list[str]:
    """The runs that are given up when a live replica looks after those of dead ones."""
    async with database.connection() as connection:
        await heartbeats.beat(connection, JUDGE, Process("host", 1), draining=False)
        _, given_up = await recovery.requeue_orphans(connection, JUDGE, 15, 100)
    return given_up


async def a_new_run(store: PostgresRunStore) -> str:
    return (await store.create(a_run(), owner=None)).run.run_id


async def crash(store: PostgresRunStore, database: Database, *run_ids: str) -> list[str]:
    """A replica claims these runs, which are all that are queued, and dies; those that are given up then."""
    claims = await store.claim(new_id(), 100, suspect=True)
    assert {claim.fence.run_id for claim in claims} == set(run_ids)
    return await recover(database)


async def crashes_until_given_up(store: PostgresRunStore, database: Database, run_id: str) -> int:
    for crash_ in range(1, 2 * MAX_CRASHES_AMONG_OTHERS):
        if await crash(store, database, run_id) == [run_id]:
            return crash_
    raise AssertionError("the run was not given up")


async def test_a_run_that_alone_is_under_way_whenever_a_process_dies_is_given_up(
    store: PostgresRunStore, database: Database
) -> None:
    assert await crashes_until_given_up(store, database, await a_new_run(store)) == MAX_CRASHES


async def test_where_others_die_without_it_a_run_is_not_taken_for_the_cause_so_soon(
    store: PostgresRunStore, database: Database
) -> None:
    """But it is in the end. Seen to fail without the look at the crashes of others, and without its bound."""
    other = await a_new_run(store)
    await crash(store, database, other)
    await store.claim(JUDGE, 1)
    assert await crashes_until_given_up(store, database, await a_new_run(store)) == MAX_CRASHES_AMONG_OTHERS


async def test_what_died_at_the_same_time_without_it_speaks_for_a_run(
    store: PostgresRunStore, database: Database
) -> None:
    """Seen to fail without the look at the other orphans of the same batch."""
    run_id = await a_new_run(store)
    for _ in range(MAX_CRASHES - 1):
        await crash(store, database, run_id)
    await store.claim(new_id(), 1, suspect=True)
    await a_new_run(store)
    await store.claim(new_id(), 1)
    assert await recover(database) == []


async def test_crashes_of_others_speak_for_a_run_for_a_minute(store: PostgresRunStore, database: Database) -> None:
    """Seen to fail without the look at the time."""
    await crash(store, database, await a_new_run(store))
    await store.claim(JUDGE, 1)
    await database.pool.execute("UPDATE crashes SET at = at - interval '1 minute'")
    assert await crashes_until_given_up(store, database, await a_new_run(store)) == MAX_CRASHES


async def test_a_crash_that_it_was_in_with_others_does_not_speak_for_a_run(
    store: PostgresRunStore, database: Database
) -> None:
    """Not even once it has got further since. Seen to fail where crashes are counted, and not looked at."""
    first, second = await a_new_run(store), await a_new_run(store)
    await crash(store, database, first, second)
    await store.claim(JUDGE, 1)  # the first comes through
    await database.pool.execute("UPDATE runs SET crashes = 0")
    assert await crashes_until_given_up(store, database, second) == MAX_CRASHES


async def test_a_run_whose_own_task_fails_has_nobody_to_speak_for_it(
    store: PostgresRunStore, database: Database
) -> None:
    """Seen to fail where a run without an owner is held against the crashes of others."""
    await crash(store, database, await a_new_run(store))
    await store.claim(JUDGE, 1)
    run_id = await a_new_run(store)
    for number in range(1, MAX_CRASHES + 1):
        (claim,) = await store.claim(JUDGE, 1, suspect=True)
        async with database.connection() as connection:
            await recovery.disown(connection, JUDGE, {run_id: claim.fence.epoch})
        assert await recover(database) == ([run_id] if number == MAX_CRASHES else [])


async def test_a_replica_that_was_only_taken_for_dead_speaks_for_nobody(
    store: PostgresRunStore, database: Database
) -> None:
    """Seen to fail without the removal of its crash."""
    other, replica = await a_new_run(store), new_id()
    (claim,) = await store.claim(replica, 1)
    await recover(database)
    await store.claim(JUDGE, 1)
    async with database.connection() as connection:
        await recovery.take_crash_back(connection, replica, {other: claim.fence.epoch})
    assert await crashes_until_given_up(store, database, await a_new_run(store)) == MAX_CRASHES
