"""What any store of runs promises an owner for whose run others store something: it writes nothing before it saw it."""

from __future__ import annotations

import asyncio

import pytest

from app.engine.interactions import InteractionStatus
from app.engine.moves import Stimuli
from app.engine.ownership import Committed, Woken
from app.engine.ports import RunStore
from app.engine.status import RunStatus as S
from app.engine.store_errors import RunNotFound
from tests.contract.stores import (
    STOPPED,
    Owner,
    answered,
    claim_only,
    create_owned,
    events_of,
    new_id,
    texts_of,
    user,
)
from tests.contract.waiting import APPROVED, a_question, asking_run, only_question


async def answered_run(store: RunStore) -> Owner:
    """A run under way whose question has an answer that its owner has not seen."""
    question = a_question()
    owner = await asking_run(store, question, status=S.RUNNING)
    await store.answer(owner.run_id, question.interaction_id, APPROVED)
    return owner


async def test_a_write_of_an_owner_who_has_not_seen_an_answer_writes_nothing(store: RunStore) -> None:
    owner = await answered_run(store)

    async def picture() -> object:
        return (
            await store.get(owner.run_id),
            await events_of(store, owner.run_id),
            await texts_of(store, owner.thread_key),
        )

    before, another = await picture(), a_question(1)
    parts = {"opening": (answered(2),), "messages": (user("late"),), "interactions": (another,)}
    assert await owner.try_write(answered(1), **parts) == Woken()
    finish = {"status": S.COMPLETED, "result": {"final_text": "late"}}
    assert await owner.try_write(answered(1), **finish) == Woken()
    assert await picture() == before
    assert (await only_question(store, owner)).status is InteractionStatus.RESOLVED
    assert [end.answer for end in (await owner.look()).interactions] == [APPROVED]
    assert isinstance(await owner.try_write(answered(1), **parts), Committed)


async def test_a_lost_owner_is_told_that_and_not_that_something_was_stored(store: RunStore) -> None:
    owner = await answered_run(store)
    await store.stop(owner.run_id, S.CANCELLED, STOPPED)
    assert await owner.try_write(answered(1)) is None


async def test_deltas_and_a_release_need_nothing_to_be_seen(store: RunStore) -> None:
    owner = await answered_run(store)
    assert isinstance(await owner.say("text"), Committed)
    assert await store.release(owner.fence, 1.0)
    assert (await claim_only(store, owner.new)).wakes == 1


async def test_an_answer_against_the_write_that_goes_waiting_is_never_lost(store: RunStore) -> None:
    for _ in range(10):
        question = a_question()
        owner = await asking_run(store, question, status=S.RUNNING)
        wait = {"status": S.WAITING, "waiting_for": ({"kind": "interaction", "id": question.interaction_id},)}
        outcome, resolved = await asyncio.gather(
            owner.try_write(answered(1), **wait),
            store.answer(owner.run_id, question.interaction_id, APPROVED),
        )
        status = (await store.get(owner.run_id)).status
        assert status is (S.QUEUED if isinstance(outcome, Committed) else S.RUNNING)
        assert status is resolved.run.status
        await store.stop(owner.run_id, S.CANCELLED, STOPPED)


async def test_a_run_for_which_nothing_was_stored_has_no_stimuli(store: RunStore) -> None:
    owner = await create_owned(store)
    assert (await store.load(owner.run_id)).stimuli == Stimuli(0)
    await owner.start()
    assert await owner.look() == Stimuli(0)
    assert (await store.get(owner.run_id)).wakes == 0


async def test_the_stimuli_of_an_unknown_run_are_not_found(store: RunStore) -> None:
    for run_id in (new_id(), "no-uuid"):
        with pytest.raises(RunNotFound):
            await store.stimuli(run_id)
