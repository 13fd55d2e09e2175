"""Whoever has to know of a change is told of it once it is stored."""

from __future__ import annotations

import pytest

from app.db.memory import MemoryStore
from app.engine.records import NewRun
from app.engine.status import RunStatus
from app.engine.store_errors import InteractionNotFound, ToolCallNotFound
from app.event_bus.memory import MemoryBus
from app.services.errors import Conflict
from app.services.run_control import RunControl
from tests.contract.stores import memory_subject
from tests.contract.waiting import (
    APPROVED,
    DENIED,
    a_question,
    asking_run,
    deferred,
    in_status,
    parent_of,
    started,
    waiting_run,
)


class Told:
    """What a bus has been told, in short."""

    def __init__(self, bus: MemoryBus) -> None:
        self.controlled: list[str] = []
        self.woken: list[str] = []
        self.queued = 0
        bus.on_control(lambda run_id, _: self.controlled.append(run_id))
        bus.on_wake(self.woken.append)
        bus.on_queued(self._count)

    def _count(self) -> None:
        self.queued += 1


@pytest.fixture
def store() -> MemoryStore:
    store = memory_subject().store
    assert isinstance(store, MemoryStore)
    return store


@pytest.fixture
def bus() -> MemoryBus:
    return MemoryBus()


@pytest.fixture
def told(bus: MemoryBus) -> Told:
    return Told(bus)


@pytest.fixture
def control(store: MemoryStore, bus: MemoryBus) -> RunControl:
    return RunControl(store, bus)


async def test_an_answer_is_told_to_readers_and_to_those_who_claim(
    store: MemoryStore, bus: MemoryBus, told: Told, control: RunControl
) -> None:
    question = a_question()
    owner = await asking_run(store, question)
    with bus.subscribe(owner.run_id) as reader:
        await control.answer(owner.run_id, question.interaction_id, APPROVED)
        assert [event.type for _, event in reader.take()] == ["interaction_resolved"]
        assert (told.queued, told.woken) == (1, [])
        await control.answer(owner.run_id, question.interaction_id, APPROVED)
        assert (reader.take(), told.queued) == ([], 1)


async def test_an_answer_to_a_run_that_is_under_way_wakes_its_owner(
    store: MemoryStore, told: Told, control: RunControl
) -> None:
    question = a_question()
    owner = await asking_run(store, question)
    await in_status(owner, RunStatus.RUNNING)
    await control.answer(owner.run_id, question.interaction_id, APPROVED)
    assert (told.queued, told.woken) == (0, [owner.run_id])


async def test_a_result_is_told_like_an_answer(store: MemoryStore, told: Told, control: RunControl) -> None:
    owner = await waiting_run(store, deferred())
    assert (await control.post_result(owner.run_id, "call-0", "1", None)).changed
    assert (told.queued, told.woken) == (1, [])
    assert not (await control.post_result(owner.run_id, "call-0", "1", None)).changed
    assert told.queued == 1


async def test_what_comes_too_late_is_a_conflict_with_the_runs_status(store: MemoryStore, control: RunControl) -> None:
    question = a_question()
    owner = await asking_run(store, question)
    await control.answer(owner.run_id, question.interaction_id, APPROVED)
    with pytest.raises(Conflict) as refused:
        await control.answer(owner.run_id, question.interaction_id, DENIED)
    assert refused.value.current_status is RunStatus.QUEUED
    waiting = await waiting_run(store, deferred())
    await control.cancel(waiting.run_id)
    with pytest.raises(Conflict) as refused:
        await control.post_result(waiting.run_id, "call-0", "1", None)
    assert refused.value.current_status is RunStatus.CANCELLED


async def test_what_is_not_there_is_told_so(store: MemoryStore, control: RunControl) -> None:
    owner = await waiting_run(store, deferred())
    with pytest.raises(InteractionNotFound):
        await control.answer(owner.run_id, "x", APPROVED)
    with pytest.raises(ToolCallNotFound):
        await control.post_result(owner.run_id, "x", "1", None)


async def test_the_owners_of_a_whole_family_are_told(store: MemoryStore, told: Told, control: RunControl) -> None:
    owner, (child,) = await parent_of(store, 1)
    await started(store, child)
    await control.interrupt(owner.run_id)
    assert sorted(told.controlled) == sorted([owner.run_id, child.run_id])
    told.controlled.clear()
    await control.resume(owner.run_id, None)
    assert sorted(told.controlled) == sorted([owner.run_id, child.run_id])
    assert told.queued


async def test_the_end_of_a_child_run_is_told_to_its_parents_side(
    store: MemoryStore, told: Told, control: RunControl
) -> None:
    owner, children = await parent_of(store, 2)
    child: NewRun = children[0]
    await control.cancel(child.run_id)
    assert told.controlled == [child.run_id]
    assert told.queued
    assert (await store.get(owner.run_id)).status is RunStatus.QUEUED
