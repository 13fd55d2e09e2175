"""What any store of runs promises about what waits for too long: questions, results from outside, child runs."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from app.engine.errors import RunError
from app.engine.interactions import Answer, InteractionStatus
from app.engine.moves import InteractionEnd, PostedResult
from app.engine.ports import RunStore
from app.engine.records import NewRun, Resolved, Stimulated
from app.engine.status import RunStatus as S
from app.engine.store_errors import InteractionDecided, ResultConflict
from app.engine.transition import ToolRecord
from tests.contract.stores import OWNER, STOPPED, Owner, answered, create_started, events_of, types_of
from tests.contract.waiting import (
    APPROVED,
    DENIED,
    FALLBACK,
    FUTURE,
    PAST,
    a_child,
    a_question,
    asking_run,
    data_of,
    deferred,
    delegate,
    end_child,
    everyone,
    in_status,
    only_question,
    started,
    state_of,
    statuses,
    waiting_run,
)

ALIVE = {S.WAITING: S.QUEUED, S.QUEUED: S.QUEUED, S.RUNNING: S.RUNNING, S.PAUSED: S.PAUSED}

# --- nobody answers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("before", "after"), ALIVE.items())
async def test_a_question_that_nobody_answers_gets_its_fallback(store: RunStore, before: S, after: S) -> None:
    question = a_question(expires_at=PAST)
    owner = await asking_run(store, question)
    await in_status(owner, before)
    expired = await store.expire(100)
    (stimulated,) = expired.stimulated
    assert (stimulated.run_id, stimulated.status, stimulated.changed) == (owner.run_id, after, True)
    assert expired.stopped == ()
    record = await only_question(store, owner)
    assert (record.status, record.answer) == (InteractionStatus.EXPIRED, FALLBACK)
    assert record.resolved_at is not None
    run = await store.get(owner.run_id)
    assert (run.status, run.wakes) == (after, 1)
    (event,) = stimulated.events
    assert (await events_of(store, owner.run_id))[-1] == event
    assert (event.type, state_of(event)) == ("interaction_resolved", after)
    assert data_of(event) == record.resolved_event_data()
    assert (await owner.look()).interactions == (
        InteractionEnd(question.interaction_id, 0, InteractionStatus.EXPIRED, FALLBACK),
    )


@pytest.mark.parametrize("late", [DENIED, FALLBACK, APPROVED], ids=["deny", "the fallback", "approve"])
async def test_an_answer_after_the_fallback_is_refused(store: RunStore, late: Answer) -> None:
    question = a_question(expires_at=PAST)
    owner = await asking_run(store, question)
    await store.expire(100)
    with pytest.raises(InteractionDecided):
        await store.answer(owner.run_id, question.interaction_id, late)
    assert (await only_question(store, owner)).answer == FALLBACK


async def test_a_late_answer_counts_until_the_fallback_is_recorded(store: RunStore) -> None:
    question = a_question(expires_at=PAST)
    owner = await asking_run(store, question)
    await store.answer(owner.run_id, question.interaction_id, APPROVED)
    assert (await store.expire(100)).stimulated == ()
    assert (await only_question(store, owner)).answer == APPROVED


async def test_only_what_has_waited_for_too_long_expires_and_only_once(store: RunStore) -> None:
    early, late = a_question(0), a_question(1, expires_at=PAST)
    owner = await asking_run(store, early, late)
    assert len((await store.expire(100)).stimulated) == 1
    assert (await store.expire(100)).stimulated == ()
    pending, expired = await store.interactions(owner.run_id)
    assert (pending.status, expired.status) == (InteractionStatus.PENDING, InteractionStatus.EXPIRED)
    assert (await store.get(owner.run_id)).wakes == 1


async def test_questions_of_a_run_that_is_over_do_not_expire(store: RunStore) -> None:
    question = a_question(expires_at=PAST)
    owner = await asking_run(store, question)
    await store.stop(owner.run_id, S.FAILED, RunError("poisoned", "it crashed"))
    assert (await store.expire(100)).stimulated == ()
    assert (await only_question(store, owner)).status is InteractionStatus.CLOSED


async def test_a_sweep_takes_no_more_than_it_is_asked_to(store: RunStore) -> None:
    owners = [await asking_run(store, a_question(expires_at=PAST)) for _ in range(3)]
    first, second = await store.expire(2), await store.expire(2)
    assert (len(first.stimulated), len(second.stimulated)) == (2, 1)
    woken = {stimulated.run_id for stimulated in (*first.stimulated, *second.stimulated)}
    assert woken == {owner.run_id for owner in owners}


async def test_two_sweeps_at_once_expire_each_question_once(store: RunStore) -> None:
    owners = [await asking_run(store, a_question(i, expires_at=PAST)) for i in range(5)]
    sweeps = await asyncio.gather(store.expire(100), store.expire(100))
    woken = [stimulated.run_id for sweep in sweeps for stimulated in sweep.stimulated if stimulated.changed]
    assert sorted(woken) == sorted(owner.run_id for owner in owners)
    for owner in owners:
        assert (await store.get(owner.run_id)).wakes == 1


async def test_an_answer_against_the_fallback_is_decided_once(store: RunStore) -> None:
    for _ in range(10):
        question = a_question(expires_at=PAST)
        owner = await asking_run(store, question)
        outcome, _ = await asyncio.gather(
            store.answer(owner.run_id, question.interaction_id, APPROVED), store.expire(100), return_exceptions=True
        )
        answer = (await only_question(store, owner)).answer
        assert answer == (APPROVED if isinstance(outcome, Resolved) else FALLBACK)
        assert (await store.get(owner.run_id)).wakes == 1
        assert (await types_of(store, owner.run_id)).count("interaction_resolved") == 1


# --- no result comes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("before", "after"), ALIVE.items())
async def test_a_result_that_does_not_come_is_an_error(store: RunStore, before: S, after: S) -> None:
    owner = await waiting_run(store, deferred(0, PAST), deferred(1, FUTURE))
    await in_status(owner, before)
    expired = await store.expire(100)
    assert (expired.stimulated, expired.stopped) == ((Stimulated(owner.run_id, after),), ())
    run = await store.get(owner.run_id)
    assert (run.status, run.wakes) == (after, 1)
    (posted,) = (await owner.look()).posted
    assert (posted.index, posted.output) == (0, None)
    assert posted.error == "no result came within its time"


async def test_a_result_after_its_time_counts_until_that_is_recorded(store: RunStore) -> None:
    owner = await waiting_run(store, deferred(0, PAST))
    await store.post_result(owner.run_id, "call-0", '"late"', None)
    assert (await store.expire(100)).stimulated == ()
    assert (await owner.look()).posted == (PostedResult(0, '"late"', None),)


async def test_a_result_after_it_was_given_up_is_refused(store: RunStore) -> None:
    owner = await waiting_run(store, deferred(0, PAST))
    await store.expire(100)
    with pytest.raises(ResultConflict):
        await store.post_result(owner.run_id, "call-0", '"late"', None)
    assert (await store.expire(100)).stimulated == ()
    assert (await store.get(owner.run_id)).wakes == 1


async def test_a_result_that_is_not_waited_for_any_more_does_not_fail(store: RunStore) -> None:
    owner = await waiting_run(store, deferred(0, PAST), status=S.RUNNING)
    await owner.surely(answered(1), records=(ToolRecord(1, replace(deferred(0), hold=None)),))
    assert (await store.expire(100)).stimulated == ()
    assert (await owner.look()).posted == ()


async def test_results_of_a_run_that_is_over_are_not_waited_for(store: RunStore) -> None:
    owner = await waiting_run(store, deferred(0, PAST))
    await store.stop(owner.run_id, S.CANCELLED, STOPPED)
    before = await store.get(owner.run_id)
    assert (await store.expire(100)).stimulated == ()
    assert await store.get(owner.run_id) == before


async def test_a_result_against_the_end_of_its_time_is_decided_once(store: RunStore) -> None:
    for _ in range(10):
        owner = await waiting_run(store, deferred(0, PAST))
        posted, _ = await asyncio.gather(
            store.post_result(owner.run_id, "call-0", '"late"', None), store.expire(100), return_exceptions=True
        )
        (stored,) = (await owner.look()).posted
        assert stored.output == ('"late"' if isinstance(posted, Stimulated) else None)
        assert owner.wakes == 1


# --- a child run takes too long -------------------------------------------------------------------------------


async def late_family(store: RunStore) -> tuple[Owner, NewRun, NewRun]:
    """A run that waits for two children, the first of which has had its time."""
    owner = await create_started(store)
    late, early = a_child(owner.new, deadline_s=0.0), a_child(owner.new)
    await delegate(owner, late, early)
    return owner, late, early


@pytest.mark.parametrize(("before", "after"), ALIVE.items())
async def test_a_child_run_past_its_deadline_is_interrupted_and_wakes_its_parent(
    store: RunStore, before: S, after: S
) -> None:
    owner, late, early = await late_family(store)
    if before is S.PAUSED:
        await store.pause(owner.run_id)
        await store.resume(late.run_id, None)
    elif before is not S.WAITING:
        await store.post_result(owner.run_id, "call-1", '"from elsewhere"', None)
    if before is S.RUNNING:
        claims = {claim.fence.run_id for claim in await store.claim(OWNER, 100)}
        assert claims == {owner.run_id, late.run_id, early.run_id}
    wakes = (await store.get(owner.run_id)).wakes
    expired = await store.expire(100)
    assert set(everyone(*expired.stopped)) == {late.run_id}
    (stopped,) = expired.stopped
    assert stopped.woken is not None
    assert (stopped.woken.run_id, stopped.woken.status) == (owner.run_id, after)
    child, parent = await store.get(late.run_id), await store.get(owner.run_id)
    assert (child.status, parent.status, parent.wakes) == (S.INTERRUPTED, after, wakes + 1)
    assert child.error is not None
    assert child.error.code == "subagent_timeout"
    assert (await types_of(store, late.run_id))[-1] == "run_interrupted"
    assert not (await store.get(early.run_id)).status.terminal
    (end,) = (await owner.look()).children
    assert (end.run_id, end.status, end.error) == (late.run_id, S.INTERRUPTED, child.error)


async def test_a_paused_child_run_may_take_its_time(store: RunStore) -> None:
    owner, late, early = await late_family(store)
    await store.pause(owner.run_id)
    assert (await store.expire(100)).stopped == ()
    assert await statuses(store, owner, late, early) == [S.PAUSED] * 3


async def test_what_a_late_child_run_has_begun_ends_with_it(store: RunStore) -> None:
    owner = await create_started(store)
    late = a_child(owner.new, deadline_s=0.0)
    await delegate(owner, late)
    child = await started(store, late)
    grandchild = a_child(late)
    await delegate(child, grandchild)
    expired = await store.expire(100)
    assert set(everyone(*expired.stopped)) == {late.run_id, grandchild.run_id}
    assert await statuses(store, owner, late, grandchild) == [S.QUEUED, S.INTERRUPTED, S.INTERRUPTED]


async def test_a_child_run_that_is_over_has_no_deadline(store: RunStore) -> None:
    owner = await create_started(store)
    child = a_child(owner.new, deadline_s=0.0)
    await delegate(owner, child)
    await end_child(await started(store, child))
    assert (await store.expire(100)).stopped == ()
    assert (await store.get(child.run_id)).status is S.COMPLETED


async def test_a_sweep_interrupts_no_more_child_runs_than_it_is_asked_to(store: RunStore) -> None:
    owner = await create_started(store)
    children = [a_child(owner.new, deadline_s=0.0) for _ in range(3)]
    await delegate(owner, *children)
    first, second = await store.expire(2), await store.expire(2)
    assert (len(first.stopped), len(second.stopped)) == (2, 1)
    assert await statuses(store, *children) == [S.INTERRUPTED] * 3
    assert (await store.get(owner.run_id)).wakes == 3


async def test_a_child_s_end_against_its_deadline_wakes_its_parent_once(store: RunStore) -> None:
    for _ in range(10):
        owner = await create_started(store)
        new = a_child(owner.new, deadline_s=0.0)
        await delegate(owner, new)
        child = await started(store, new)
        finish = {"status": S.COMPLETED, "result": {"final_text": "done"}, "parent_run_id": owner.run_id}
        written, _ = await asyncio.gather(child.try_write(answered(1), **finish), store.expire(100))
        status = (await store.get(new.run_id)).status
        assert status is (S.INTERRUPTED if written is None else S.COMPLETED)
        assert (await store.get(owner.run_id)).wakes == 1
        await store.stop(owner.run_id, S.CANCELLED, STOPPED)
