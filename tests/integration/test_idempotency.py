"""Keys under fire: duplicates at the same time, and locks that two requests take from two sides."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest

from app.db.database import Connection, Database
from app.db.deletion import delete_run
from app.db.run_store import PostgresRunStore
from app.engine.agent import AgentDefinition, AgentSettings
from app.engine.messages import Message, Role
from app.engine.ownership import Created
from app.engine.records import IdempotencyKey, OnBusyThread
from app.engine.status import RunStatus
from app.engine.store_errors import IdempotencyMismatch, StoreUnavailable
from app.services.agents import AgentService
from app.services.threads import ThreadService
from app.tools.registry import ToolRegistry
from tests.contract.stores import OWNER, STOPPED, a_run, create_started

KEY = IdempotencyKey("key", b"the request".ljust(32, b"."))
DUPLICATES = 8  # fewer than the pool has connections, so that all are under way at once
TAKES_OVER = {OnBusyThread.INTERRUPT: RunStatus.INTERRUPTED, OnBusyThread.ROLLBACK: RunStatus.CANCELLED}


@pytest.mark.parametrize("on_busy", TAKES_OVER)
@pytest.mark.parametrize("many", [False, True], ids=["one", "batch"])
async def test_a_duplicate_never_takes_the_thread_from_its_own_original(
    store: PostgresRunStore, database: Database, on_busy: OnBusyThread, many: bool
) -> None:
    async def send(thread_id: str) -> Created:
        new = a_run(thread_id, on_busy_thread=on_busy, idempotency=None if many else KEY)
        if many:
            (created,), replayed = await store.create_many([new], KEY)
            assert created.replayed == replayed
            return created
        return await store.create(new, owner=OWNER)

    for number in range(10):
        thread_id = f"busy-{number}"
        holder = await create_started(store, a_run(thread_id))
        waiting = a_run(thread_id)
        await store.create(waiting, owner=None)
        answers = await asyncio.gather(*(send(thread_id) for _ in range(DUPLICATES)))

        (made,) = [answer for answer in answers if not answer.replayed]
        assert {answer.run.run_id for answer in answers} == {made.run.run_id}
        assert [stopped.run.run_id for answer in answers for stopped in answer.stopped] == [holder.run_id]
        run = await store.get(made.run.run_id)
        assert run.status is (RunStatus.QUEUED if many else RunStatus.RUNNING)
        assert (await store.get(holder.run_id)).status is TAKES_OVER[on_busy]
        thread = await database.pool.fetchrow(
            "SELECT holder_run_id::text, queued FROM threads WHERE thread_id = $1", thread_id
        )
        assert tuple(thread or ()) == (run.run_id, 1)
        runs = await database.pool.fetch(
            "SELECT run_id::text, holds_thread FROM runs WHERE thread_id = $1 ORDER BY ordinal", thread_id
        )
        assert [tuple(row) for row in runs] == [(holder.run_id, False), (waiting.run_id, False), (run.run_id, True)]
        await database.pool.execute("DELETE FROM idempotency_keys")


@pytest.mark.parametrize("on_busy", [OnBusyThread.ENQUEUE, OnBusyThread.ROLLBACK])
async def test_a_key_whose_run_was_deleted_can_be_used_anew(
    store: PostgresRunStore, database: Database, on_busy: OnBusyThread
) -> None:
    async def send(key: IdempotencyKey = KEY) -> Created:
        return await store.create(a_run("t", idempotency=key, on_busy_thread=on_busy), owner=None)

    for _ in range(2):
        first = await send()
        assert (await send()).run == first.run
        await store.stop(first.run.run_id, RunStatus.CANCELLED, STOPPED)
        async with database.transaction() as connection:
            await delete_run(connection, first.run.run_id)
        again = await asyncio.gather(*(send() for _ in range(DUPLICATES)))
        assert len({created.run.run_id for created in again}) == 1
        assert [created.replayed for created in again].count(False) == 1
        await store.stop(again[0].run.run_id, RunStatus.CANCELLED, STOPPED)
        await ThreadService(database).delete("t")
    another = IdempotencyKey(KEY.key, b"another request".ljust(32, b"."))
    assert not (await send(another)).replayed
    with pytest.raises(IdempotencyMismatch):
        await send()


async def test_a_batch_of_which_a_run_was_deleted_is_made_anew(store: PostgresRunStore, database: Database) -> None:
    created, _ = await store.create_many([a_run(), a_run()], KEY)
    await store.stop(created[1].run.run_id, RunStatus.CANCELLED, STOPPED)
    assert (await store.create_many([a_run(), a_run()], KEY))[1]
    async with database.transaction() as connection:
        await delete_run(connection, created[1].run.run_id)
    anew, replayed = await store.create_many([a_run(), a_run()], KEY)
    assert not replayed
    assert await store.create_many([a_run(), a_run()], KEY) == ([replace(one, replayed=True) for one in anew], True)


async def test_a_keyed_append_and_a_takeover_of_its_thread_do_not_lock_each_other_out(
    store: PostgresRunStore, database: Database
) -> None:
    await create_started(store, a_run("shared"))
    threads = ThreadService(database)
    async with database.connection() as connection:
        async with connection.transaction():
            await connection.execute("SELECT 1 FROM threads FOR UPDATE")
            takeover = asyncio.create_task(
                store.create(a_run("shared", on_busy_thread=OnBusyThread.ROLLBACK, idempotency=KEY), owner=OWNER)
            )
            await _waiting(connection, 1)
            other = IdempotencyKey(KEY.key, b"another request".ljust(32, b"."))
            append = asyncio.create_task(
                threads.append_message("shared", Message(Role.USER, "hello"), idempotency_key=other)
            )
            await _waiting(connection, 2)
        with pytest.raises(IdempotencyMismatch):
            await append
    assert not (await takeover).replayed


async def _waiting(connection: Connection, count: int) -> None:
    """Wait until so many requests wait for a lock in this database."""
    async with asyncio.timeout(10):
        while count != await connection.fetchval(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        ):
            await connection.execute("SELECT pg_stat_clear_snapshot()")


# Fails once, as a deadlock does: what the sequence has given out is not undone with the rest.
UNDONE_ONCE = """
CREATE SEQUENCE attempts;
CREATE FUNCTION undo_the_first() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    IF nextval('attempts') <= {failures} THEN RAISE EXCEPTION 'deadlock detected' USING ERRCODE = '{code}'; END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER undo AFTER INSERT OR UPDATE OR DELETE ON {table}
    FOR EACH STATEMENT EXECUTE FUNCTION undo_the_first();
"""


@pytest.mark.parametrize("code", ["40P01", "40001"])
async def test_a_request_whose_transaction_postgres_undid_is_done_again(database: Database, code: str) -> None:
    threads = ThreadService(database)
    await database.pool.execute(UNDONE_ONCE.format(table="messages", failures=1, code=code))
    appended = await threads.append_message("t", Message(Role.USER, "hello"), idempotency_key=KEY)
    assert (appended.replayed, appended.message.seq) == (False, 1)
    assert await database.pool.fetchval("SELECT count(*) FROM messages") == 1


@pytest.mark.parametrize(
    ("table", "request_"),
    [
        ("threads", lambda threads, _: threads.create("new", {})),
        ("threads", lambda threads, _: threads.copy("t", "copy", None)),
        ("threads", lambda threads, _: threads.update("t", {"team": "a"})),
        ("threads", lambda threads, _: threads.delete("t")),
        ("agents", lambda _, agents: agents.put("helper", AgentSettings(model="demo/echo"))),
        ("agents", lambda _, agents: agents.delete("there")),
        ("agent_versions", lambda _, agents: agents.resolve(AgentDefinition(name="inline", model="demo/echo"))),
    ],
    ids=["create thread", "copy thread", "update thread", "delete thread", "put agent", "delete agent", "inline agent"],
)
async def test_whatever_a_caller_changes_is_tried_again(
    database: Database, table: str, request_: Callable[[ThreadService, AgentService], Awaitable[object]]
) -> None:
    threads, agents = ThreadService(database), AgentService(database, ToolRegistry(), lambda _: None)
    await threads.create("t", {})
    await agents.put("there", AgentSettings(model="demo/echo"))
    await database.pool.execute(UNDONE_ONCE.format(table=table, failures=1, code="40P01"))
    await request_(threads, agents)


async def test_a_request_that_is_undone_time_after_time_is_told_to_come_back(database: Database) -> None:
    await database.pool.execute(UNDONE_ONCE.format(table="messages", failures=1000, code="40P01"))
    with pytest.raises(StoreUnavailable, match="try again"):  # which the API answers with 503 and Retry-After
        await ThreadService(database).append_message("t", Message(Role.USER, "hello"))


async def test_a_run_that_is_undone_time_after_time_is_told_to_come_back(
    store: PostgresRunStore, database: Database
) -> None:
    await create_started(store, a_run("busy"))
    await database.pool.execute(UNDONE_ONCE.format(table="runs", failures=1000, code="40P01"))
    with pytest.raises(StoreUnavailable, match="try again"):
        await store.create(a_run("busy", on_busy_thread=OnBusyThread.ROLLBACK), owner=OWNER)
