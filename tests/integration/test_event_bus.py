"""Wake-ups between replicas: told over Postgres, gathered, and never trusted with more than that."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import asyncpg

from app.engine.events import StoredEvent
from app.event_bus.memory import SUBSCRIPTION_LIMIT, MemoryBus
from app.event_bus.postgres import PAYLOAD_BYTES, PostgresBus

RUN, OTHER_RUN = "01a203dd-30a3-75aa-b799-69baebda129d", "01a203dd-30b1-71c3-8956-f15d56c2e42e"


def event(seq: int) -> StoredEvent:
    return StoredEvent(seq, "text_delta", datetime(2026, 1, 1, tzinfo=UTC), "{}")


@asynccontextmanager
async def two_buses(url: str) -> AsyncIterator[tuple[PostgresBus, PostgresBus]]:
    """Two buses that hear each other."""
    here, there = PostgresBus(url, "here"), PostgresBus(url, "there")
    heard = asyncio.Event()
    there.on_queued(heard.set)
    await here.start()
    await there.start()
    async with asyncio.timeout(10):
        while not heard.is_set():
            here.queued()
            await asyncio.wait([asyncio.create_task(heard.wait())], timeout=0.05)
    yield here, there
    await here.stop()
    await there.stop()


async def within(seconds: float, condition: Callable[[], bool], again: Callable[[], None] = lambda: None) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            again()
            await asyncio.sleep(0.01)


async def test_events_of_one_replica_wake_the_readers_of_another(database_url: str) -> None:
    async with two_buses(database_url) as (here, there):
        with there.subscribe(RUN) as reader:
            reader.take()
            reader.stale()
            here.publish(RUN, [event(1)])
            assert await reader.wait(5)
            assert reader.take() == []  # ids only: the events themselves are in the rows
            assert reader.stale()


async def test_readers_on_the_same_replica_are_handed_the_events(database_url: str) -> None:
    async with two_buses(database_url) as (here, _):
        with here.subscribe(RUN) as reader:
            here.publish(RUN, [event(1), event(2)])
            assert await reader.wait(5)
            assert [event.seq for _, event in reader.take()] == [1, 2]


async def test_control_reaches_the_other_replica_with_its_epoch_also_when_it_seems_alone(database_url: str) -> None:
    async with two_buses(database_url) as (here, there):
        told: list[tuple[str, int]] = []
        there.on_control(lambda run_id, epoch: told.append((run_id, epoch)))
        here.alone = True
        here.control(RUN, 7)
        await within(5, lambda: told == [(RUN, 7)])


async def test_the_owner_learns_that_a_run_is_read_on_another_replica(database_url: str) -> None:
    async with two_buses(database_url) as (here, there):
        noticed: list[str] = []
        here.on_watched(noticed.append)
        assert not here.watched(RUN)
        with there.subscribe(RUN):
            await within(5, lambda: here.watched(RUN))
        assert noticed == [RUN]
        assert not here.watched(OTHER_RUN)


async def test_a_burst_of_ids_is_told_in_payloads_that_postgres_takes(database_url: str) -> None:
    async with two_buses(database_url) as (here, there):
        told: set[str] = set()
        there.on_control(lambda run_id, _: told.add(run_id))
        ids = {f"{n:036d}" for n in range(3 * PAYLOAD_BYTES // 36)}
        for run_id in ids:
            here.control(run_id, 1)
        await within(5, lambda: told == ids)


async def test_a_listener_that_was_cut_off_comes_back_and_its_readers_look(database_url: str) -> None:
    async with two_buses(database_url) as (here, there):
        admin = await asyncpg.connect(database_url)
        with there.subscribe(RUN) as reader:
            reader.stale()
            await admin.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            assert await reader.wait(10)
            assert reader.stale()
            heard: list[str] = []
            there.on_control(lambda run_id, _: heard.append(run_id))
            await within(10, lambda: bool(heard), lambda: here.control(RUN, 1))
        await admin.close()


async def test_a_bus_that_cannot_listen_tells_the_others_and_hears_nothing(database_url: str) -> None:
    """Seen to fail where it listens."""
    async with two_buses(database_url) as (here, there):
        deaf = PostgresBus(database_url, "deaf", hears=False)
        heard: list[str] = []
        told: set[str] = set()
        deaf.on_control(lambda run_id, _: heard.append(run_id))
        there.on_control(lambda run_id, epoch: told.add(f"{run_id}/{epoch}"))
        await deaf.start()
        await within(10, lambda: f"{RUN}/1" in told, lambda: deaf.control(RUN, 1))  # it is connected, then
        here.control(OTHER_RUN, 1)
        await within(10, lambda: f"{OTHER_RUN}/1" in told)
        deaf.control(RUN, 2)  # and what came before this was read by then
        await within(10, lambda: f"{RUN}/2" in told)
        await deaf.stop()
        assert OTHER_RUN not in heard


async def test_a_slow_reader_is_sent_to_the_rows_and_keeps_nothing_in_memory() -> None:
    bus = MemoryBus()
    with bus.subscribe(RUN) as reader:
        for seq in range(1, SUBSCRIPTION_LIMIT + 2):
            bus.publish(RUN, [event(seq)])
        assert len(reader.take()) <= SUBSCRIPTION_LIMIT
        assert reader.stale()
    assert bus.read_runs() == {}
