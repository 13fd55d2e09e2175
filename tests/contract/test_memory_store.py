"""What only a store with an injected clock can be asked for."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from app.db.memory import MemoryStore
from app.engine.limits import RunLimits
from app.engine.records import IdempotencyKey
from app.engine.status import RunStatus
from app.engine.store_errors import LimitReached
from tests.contract.stores import OWNER, a_run, create_started, events_of
from tests.contract.waiting import parent_of

START = datetime(2026, 1, 1, tzinfo=UTC)


class Clock:
    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        return self.now


async def test_everything_is_stamped_by_the_clock() -> None:
    clock = Clock()
    store = MemoryStore(clock)
    owner = await create_started(store)
    clock.now += timedelta(hours=1)
    await owner.finish()
    run = await store.get(owner.run_id)
    assert (run.created_at, run.started_at, run.finished_at) == (START, START, clock.now)
    assert {event.created_at for event in await events_of(store, owner.run_id)} == {START, clock.now}


async def test_an_idempotency_key_is_forgotten_after_a_day() -> None:
    clock = Clock()
    store = MemoryStore(clock)

    async def replayed() -> bool:
        return (await store.create(a_run(idempotency=IdempotencyKey("key", b"hash")), owner=None)).replayed

    assert [await replayed(), await replayed()] == [False, True]
    clock.now += timedelta(hours=24)
    assert await replayed()
    clock.now += timedelta(seconds=1)
    assert not await replayed()


async def test_runs_that_start_later_become_ready_when_they_are_due_the_earliest_first() -> None:
    clock = Clock()
    store = MemoryStore(clock)
    late, early = [a_run("talk", start_after=START + timedelta(minutes=minutes)) for minutes in (2, 1)]
    for new in (late, early):
        await store.create(new, owner=None)
    assert store.promote_due(clock.now + timedelta(seconds=59)) == []
    clock.now += timedelta(minutes=2)
    assert store.promote_due(clock.now) == [early.run_id, late.run_id]
    (claim,) = await store.claim(OWNER, 10)
    assert claim.fence.run_id == early.run_id


async def test_a_resume_is_checked_against_the_limits_of_the_service() -> None:
    store = MemoryStore(limits=RunLimits(max_llm_calls=1))
    owner = await create_started(store)
    await owner.ask("look")
    await owner.close_step()
    await owner.finish(RunStatus.FAILED, messages=())
    with pytest.raises(LimitReached, match="max_llm_calls"):
        await store.resume(owner.run_id, None)


async def test_the_time_of_a_child_run_begins_again_when_it_is_resumed() -> None:
    clock = Clock()
    store = MemoryStore(clock)
    owner, (new,) = await parent_of(store, 1, deadline_s=60.0)
    clock.now += timedelta(seconds=60)
    await store.pause(owner.run_id)
    assert (await store.expire(10)).stopped == ()
    await store.resume(owner.run_id, None)
    clock.now += timedelta(seconds=59)
    assert (await store.expire(10)).stopped == ()
    clock.now += timedelta(seconds=1)
    assert [stopped.run.run_id for stopped in (await store.expire(10)).stopped] == [new.run_id]


async def test_a_released_run_is_claimed_once_its_delay_is_over() -> None:
    clock = Clock()
    store = MemoryStore(clock)
    owner = await create_started(store)
    assert await store.release(owner.fence, 1.0, delay_s=5.0)
    clock.now += timedelta(seconds=4.999)
    assert await store.claim(OWNER, 10) == []
    clock.now += timedelta(seconds=0.001)
    assert len(await store.claim(OWNER, 10)) == 1
