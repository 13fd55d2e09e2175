"""What a replica does in the background: deltas on their way, recovery, and runs that it does not know."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from app.db import heartbeats, recovery
from app.db.database import Database
from app.db.heartbeats import Process
from app.db.run_store import PostgresRunStore
from app.engine.crashes import MAX_CRASHES
from app.engine.errors import RunError
from app.engine.events import EventType
from app.engine.ownership import Fence
from app.engine.status import RunStatus
from app.engine.store_errors import StoreUnavailable
from app.event_bus.memory import MemoryBus
from app.worker.deltas import DeltaGatherer, DeltaLog
from app.worker.lease import Lease
from tests.contract.stores import (
    OTHER_OWNER,
    OWNER,
    Owner,
    a_run,
    create_started,
    events_of,
    new_id,
    types_of,
)

JUDGE = new_id()


@asynccontextmanager
async def gathering(store: PostgresRunStore, bus: MemoryBus) -> AsyncIterator[DeltaGatherer]:
    gatherer = DeltaGatherer(store, bus, time.monotonic)
    bus.on_watched(gatherer.noticed)
    gatherer.start()
    yield gatherer
    await gatherer.stop()


def log_of(owner: Owner, lost: list[str] | None = None) -> DeltaLog:
    return DeltaLog(owner.new.identity, owner.fence, lambda: (lost if lost is not None else []).append(owner.run_id))


async def text_of(store: PostgresRunStore, run_id: str) -> str:
    events = await events_of(store, run_id)
    return "".join(event.as_dict()["data"]["delta"] for event in events if event.type == "text_delta")


async def test_what_a_reader_waits_for_is_written_and_handed_over(store: PostgresRunStore) -> None:
    owner = await create_started(store)
    bus = MemoryBus()
    async with gathering(store, bus) as gatherer:
        deltas = log_of(owner)
        with bus.subscribe(owner.run_id) as reader:
            for text in ("a", "b", "c"):
                deltas.add(EventType.TEXT_DELTA, text)
                gatherer.touched(deltas)
            assert await reader.wait(5)
            await deltas.settle()
        assert await text_of(store, owner.run_id) == "abc"
        # The fence is the one that the next write needs.
        owner.fence = deltas.fence
        await owner.finish()


async def test_text_that_nobody_reads_waits_until_someone_does(store: PostgresRunStore) -> None:
    owner = await create_started(store)
    bus = MemoryBus()
    async with gathering(store, bus) as gatherer:
        deltas = log_of(owner)
        deltas.add(EventType.TEXT_DELTA, "late")
        gatherer.touched(deltas)
        await asyncio.sleep(0)
        assert await text_of(store, owner.run_id) == ""
        with bus.subscribe(owner.run_id) as reader:
            assert await reader.wait(5)
        assert await text_of(store, owner.run_id) == "late"


async def test_one_run_that_was_lost_does_not_take_the_others_text_with_it(store: PostgresRunStore) -> None:
    lost_run, kept_run = await create_started(store), await create_started(store)
    await store.stop(lost_run.run_id, RunStatus.CANCELLED, RunError("cancelled", "by the test"))
    lost: list[str] = []
    bus = MemoryBus()
    async with gathering(store, bus) as gatherer:
        with bus.subscribe(kept_run.run_id) as reader, bus.subscribe(lost_run.run_id):
            for owner in (lost_run, kept_run):
                deltas = log_of(owner, lost)
                deltas.add(EventType.TEXT_DELTA, "text")
                gatherer.touched(deltas)
            assert await reader.wait(5)
    assert lost == [lost_run.run_id]
    assert await text_of(store, kept_run.run_id) == "text"
    assert (await types_of(store, lost_run.run_id))[-1] == "run_cancelled"


async def test_text_behind_a_lock_is_written_when_the_lock_is_gone(store: PostgresRunStore, database: Database) -> None:
    owner = await create_started(store)
    bus = MemoryBus()
    async with gathering(store, bus) as gatherer, database.connection() as connection:
        deltas = log_of(owner)
        async with connection.transaction():
            await connection.execute("SELECT 1 FROM runs WHERE run_id = $1::uuid FOR UPDATE", owner.run_id)
            with bus.subscribe(owner.run_id) as reader:
                deltas.add(EventType.TEXT_DELTA, "first ")
                gatherer.touched(deltas)
                assert not await reader.wait(0.1)
        deltas.add(EventType.TEXT_DELTA, "second")
        with bus.subscribe(owner.run_id):
            gatherer.touched(deltas)
            async with asyncio.timeout(5):  # the first may have been on its way before the second was there
                while await text_of(store, owner.run_id) != "first second":
                    await asyncio.sleep(0.01)


async def beat(database: Database, replica: str) -> None:
    async with database.connection() as connection:
        await heartbeats.beat(connection, replica, Process("host", 1), draining=False)


async def recover(database: Database) -> tuple[int, list[str]]:
    """What a live replica does with the runs of dead ones."""
    await beat(database, JUDGE)
    async with database.connection() as connection:
        return await recovery.requeue_orphans(connection, JUDGE, 15, 100)


async def test_runs_of_a_dead_replica_go_back_to_the_queue_and_those_of_a_live_one_stay(
    store: PostgresRunStore, database: Database
) -> None:
    orphan, kept = await create_started(store), await create_started(store)
    await database.pool.execute("UPDATE runs SET owner = $1 WHERE run_id = $2", OTHER_OWNER, kept.run_id)
    await beat(database, OTHER_OWNER)
    assert await recover(database) == (1, [])
    assert (await store.get(orphan.run_id)).status is RunStatus.QUEUED
    assert (await store.get(kept.run_id)).status is RunStatus.RUNNING
    assert await orphan.write() is None  # the zombie's write
    (claim,) = await store.claim(OTHER_OWNER, 10)
    loaded = await store.load(claim.fence.run_id)
    assert (loaded.resume_reason, claim.attempt) == ("crash", 2)


async def test_only_a_run_that_crashes_again_and_again_without_a_step_is_poisoned(
    store: PostgresRunStore, database: Database
) -> None:
    await create_started(store)
    for crash in range(1, MAX_CRASHES + 1):
        requeued, poisoned = await recover(database)
        assert (requeued, len(poisoned)) == ((1, 0) if crash < MAX_CRASHES else (0, 1))
        for run_id in poisoned:
            async with database.transaction() as connection:
                stopped = await recovery.poison(connection, run_id)
            assert stopped.run.error is not None
            assert (stopped.run.status, stopped.run.error.code) == (RunStatus.FAILED, "poisoned")
        await store.claim(OWNER, 10, suspect=True)


async def test_a_committed_step_wipes_earlier_crashes_out(store: PostgresRunStore, database: Database) -> None:
    owner = await create_started(store)
    for _ in range(2 * MAX_CRASHES):
        assert await recover(database) == (1, [])
        (claim,) = await store.claim(OWNER, 10)
        owner.fence = claim.fence
        await owner.ask("look")
        await owner.close_step()


async def test_a_claim_whose_answer_was_lost_is_found_and_recovered(
    store: PostgresRunStore, database: Database
) -> None:
    owner = await create_started(store)
    await beat(database, OWNER)
    async with database.connection() as connection:
        owned = {run_id: run.epoch for run_id, run in (await recovery.owned_runs(connection, OWNER)).items()}
        assert owned == {owner.run_id: owner.fence.epoch}
        await recovery.disown(connection, OWNER, owned)
    assert await recover(database) == (1, [])


async def test_a_lease_is_held_only_while_the_main_loop_ticks(database_url: str, database: Database) -> None:
    replica = new_id()
    peers: list[int] = []
    lease = Lease(database_url, replica, 2.0, peers.append)
    await lease.start()
    assert lease.held()
    assert peers == [0]
    async with asyncio.timeout(10):
        while lease.held():  # nobody ticks
            await asyncio.sleep(0.05)
        while not lease.held():
            lease.tick()
            await asyncio.sleep(0.05)
    await lease.stop()
    assert await database.pool.fetchval("SELECT count(*) FROM replicas") == 0


async def test_a_fence_of_another_run_writes_nothing(store: PostgresRunStore) -> None:
    owner = await create_started(store)
    owner.fence = Fence(a_run().run_id, owner.fence.epoch, owner.fence.write_no)
    assert await owner.write() is None


async def test_a_run_that_its_replica_let_go_of_is_queued_again_and_has_not_crashed(
    store: PostgresRunStore, database: Database
) -> None:
    owner = await create_started(store)
    for _ in range(2 * MAX_CRASHES):
        async with database.connection() as connection:
            owned = {run_id: run.epoch for run_id, run in (await recovery.owned_runs(connection, OWNER)).items()}
            await recovery.put_back(connection, OWNER, owned)
        assert await owner.write() is None
        (claim,) = await store.claim(OWNER, 10)
        assert claim.fence.run_id == owner.run_id
    assert await database.pool.fetchval("SELECT crashes FROM runs") == 0


async def test_a_statement_that_the_server_cancelled_is_an_outage_and_no_defect(database: Database) -> None:
    async def too_slow() -> None:
        async with database.transaction() as connection:
            await connection.execute("SET LOCAL statement_timeout = '50ms'")
            await connection.execute("SELECT pg_sleep(10)")

    with pytest.raises(StoreUnavailable):
        await too_slow()


async def test_a_heartbeat_goes_on_whatever_becomes_of_its_connections(database_url: str, database: Database) -> None:
    lease = Lease(database_url, new_id(), 2.0, lambda _: None)
    await lease.start()
    async with asyncio.timeout(60):
        for _ in range(20):
            lease.tick()
            await database.pool.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            await asyncio.sleep(0.03)
        while not lease.held():
            lease.tick()
            await asyncio.sleep(0.05)
    await lease.stop()
