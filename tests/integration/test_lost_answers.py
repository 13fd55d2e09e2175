"""Connections that break while a write is under way: it is not known whether it took place, and it must not matter."""

from __future__ import annotations

import time

import pytest

from app.db.run_store import PostgresRunStore
from app.engine.events import EventType
from app.engine.ownership import Committed, DeltaOutcome, DeltaWrite
from app.engine.status import RunStatus
from app.event_bus.memory import MemoryBus
from app.worker.deltas import DeltaGatherer, DeltaLog
from tests.contract.stores import STOPPED, Owner, answered, create_started, delta, events_of, types_of
from tests.integration.breaking import Breaking


def says(owner: Owner, *texts: str) -> DeltaWrite:
    return DeltaWrite(owner.fence, owner.new.identity, tuple(delta(text) for text in texts))


BREAKS = pytest.mark.parametrize(("before", "after"), [(2, 0), (0, 1), (0, 2), (1, 1)])


@BREAKS
async def test_a_write_is_committed_once(store: PostgresRunStore, database: Breaking, before: int, after: int) -> None:
    owner = await create_started(store)
    known = len(await types_of(store, owner.run_id))
    database.before, database.after = before, after
    committed = await owner.write(answered(1, "once"))
    assert committed is not None
    assert (await events_of(store, owner.run_id))[known:] == list(committed.events)
    assert (await owner.finish()).status is RunStatus.COMPLETED


@BREAKS
async def test_deltas_are_written_once(store: PostgresRunStore, database: Breaking, before: int, after: int) -> None:
    owners = [await create_started(store) for _ in range(3)]
    known = {owner.run_id: len(await types_of(store, owner.run_id)) for owner in owners}
    database.before, database.after = before, after
    answers = await store.append_deltas([says(owner, "a", "b") for owner in owners])
    for owner, answer in zip(owners, answers, strict=True):
        assert isinstance(answer, Committed)
        assert (await events_of(store, owner.run_id))[known[owner.run_id] :] == list(answer.events)
        owner.fence = answer.fence
        await owner.say("c")
        await owner.finish()


async def test_deltas_are_found_in_front_of_what_others_have_appended(
    store: PostgresRunStore, database: Breaking
) -> None:
    owner = await create_started(store)
    await owner.say("same", "same")
    known = await events_of(store, owner.run_id)
    database.after = 1
    database.meanwhile = """
        WITH run AS (UPDATE runs SET last_seq = last_seq + 1 RETURNING run_id, last_seq)
        INSERT INTO run_events (run_id, seq, type, created_at, body)
        SELECT run_id, last_seq, 'warning', clock_timestamp(), '{}' FROM run"""
    (answer,) = await store.append_deltas([says(owner, "same", "same")])
    assert isinstance(answer, Committed)
    assert list(answer.events) == (await events_of(store, owner.run_id))[len(known) : -1]


async def test_deltas_of_a_run_that_was_lost_meanwhile_are_not_taken_for_written(
    store: PostgresRunStore, database: Breaking
) -> None:
    kept, ended, moved = [await create_started(store) for _ in range(3)]
    batch = [says(owner, "text") for owner in (kept, ended, moved)]
    await store.stop(ended.run_id, RunStatus.CANCELLED, STOPPED)
    await moved.write(answered(1))  # one write further, as a delta write would have left it, and another
    await moved.write(answered(1))
    database.after = 1
    committed, *lost = await store.append_deltas(batch)
    assert isinstance(committed, Committed)
    assert lost == [DeltaOutcome.LOST, DeltaOutcome.LOST]
    assert (await types_of(store, ended.run_id))[-1] == "run_cancelled"


async def test_a_broken_connection_costs_no_run_its_text(store: PostgresRunStore, database: Breaking) -> None:
    owners = [await create_started(store) for _ in range(3)]
    lost: list[str] = []
    logs = [DeltaLog(owner.new.identity, owner.fence, lambda: lost.append("lost")) for owner in owners]
    bus = MemoryBus()
    gatherer = DeltaGatherer(store, bus, time.monotonic)
    gatherer.start()
    try:
        for number in range(5):
            database.before, database.after = number % 2, 1
            for log in logs:
                with bus.subscribe(log.identity.run_id) as reader:
                    log.add(EventType.TEXT_DELTA, f"{number} ")
                    gatherer.touched(log)
                    assert await reader.wait(10)
        for owner, log in zip(owners, logs, strict=True):
            owner.fence = await log.settle()
            deltas = [event for event in await events_of(store, owner.run_id) if event.type == "text_delta"]
            assert "".join(event.as_dict()["data"]["delta"] for event in deltas) == "0 1 2 3 4 "
            await owner.finish()
    finally:
        await gatherer.stop()
    assert lost == []
