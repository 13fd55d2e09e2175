"""What any store of runs promises about families: what a caller or a write does to a run, it does to its child runs."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from decimal import Decimal

import pytest

from app.engine.events import ResumeReason
from app.engine.interactions import InteractionStatus
from app.engine.ownership import Woken
from app.engine.ports import RunStore
from app.engine.records import NewRun
from app.engine.status import RunStatus as S
from app.engine.store_errors import RunConflict, RunNotFound
from app.engine.transition import ToolRecord
from tests.contract.stores import (
    STOPPED,
    Owner,
    Subject,
    answered,
    claim_only,
    create_started,
    events_of,
    result,
    types_of,
)
from tests.contract.waiting import (
    a_child,
    a_question,
    asking,
    claim_these,
    delegate,
    end_child,
    everyone,
    hold,
    only_question,
    parent_of,
    spent,
    started,
    statuses,
    three_generations,
)

ENDS = [S.CANCELLED, S.INTERRUPTED]


async def family(store: RunStore) -> tuple[Owner, NewRun, Owner, Owner]:
    """A run that waits for a queued child, one that runs, and one that waits for a person."""
    owner = await create_started(store)
    queued, running, asks = [a_child(owner.new) for _ in range(3)]
    await delegate(owner, queued, running, asks)
    first, second, third = await claim_these(store, queued, running, asks)
    await store.release(first.fence, 0.0)
    await second.start()
    await third.start()
    question = a_question()
    await hold(third, asking(question), interactions=(question,))
    assert await statuses(store, owner, queued, second, third) == [S.WAITING, S.QUEUED, S.RUNNING, S.WAITING]
    return owner, queued, second, third


# --- cancel and interrupt -------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", ENDS)
async def test_a_stop_ends_child_runs_three_generations_deep(store: RunStore, status: S) -> None:
    members = await three_generations(store)
    stopped = await store.stop(members[0].run_id, status, STOPPED)
    changed = everyone(stopped)
    assert set(changed) == {member.run_id for member in members}
    for member in members:
        run = await store.get(member.run_id)
        assert (run.status, run.owner) == (status, None)
        assert run.finished_at is not None
        reason = None if run.error is None else run.error.code
        assert reason == (None if status is S.CANCELLED else STOPPED.code if member is members[0] else "parent_ended")
        assert changed[member.run_id].run == run
        assert changed[member.run_id].changed
        (event,) = changed[member.run_id].events
        assert (await events_of(store, member.run_id))[-1] == event
        assert event.type == f"run_{status}"
        assert await member.try_write(answered(1)) is None
    assert await store.claim(members[0].run_id, 100) == []


@pytest.mark.parametrize("status", ENDS)
async def test_a_stop_ends_child_runs_whatever_they_are_doing(store: RunStore, status: S) -> None:
    owner, queued, running, asks = await family(store)
    await store.stop(owner.run_id, status, STOPPED)
    assert await statuses(store, queued, running, asks) == [status] * 3
    assert (await only_question(store, asks)).status is InteractionStatus.CLOSED


async def test_a_stop_leaves_child_runs_that_are_over_as_they_are(store: RunStore) -> None:
    owner, (done, runs) = await parent_of(store, 2)
    first, _ = await claim_these(store, done, runs)
    await end_child(first)
    before = await store.get(done.run_id)
    stopped = await store.stop(owner.run_id, S.CANCELLED, STOPPED)
    assert set(everyone(stopped)) == {owner.run_id, runs.run_id}
    assert await store.get(done.run_id) == before


async def test_a_stop_of_a_child_leaves_its_parent_and_its_siblings(store: RunStore) -> None:
    owner, (one, other) = await parent_of(store, 2)
    await store.stop(one.run_id, S.CANCELLED, STOPPED)
    assert await statuses(store, owner, one, other) == [S.QUEUED, S.CANCELLED, S.QUEUED]


async def test_a_run_that_is_failed_from_outside_can_go_on_with_its_children(store: RunStore) -> None:
    members = await three_generations(store)
    await store.stop(members[0].run_id, S.FAILED, STOPPED)
    assert await statuses(store, *members) == [S.FAILED, S.INTERRUPTED, S.INTERRUPTED]
    await store.resume(members[0].run_id, None)
    assert await statuses(store, *members) == [S.QUEUED] * 3


async def test_stops_of_a_parent_and_of_its_child_at_once_end_both(store: RunStore) -> None:
    for _ in range(10):
        members = await three_generations(store)
        await asyncio.gather(*(store.stop(member.run_id, S.CANCELLED, STOPPED) for member in members))
        assert await statuses(store, *members) == [S.CANCELLED] * 3
        for member in members:
            assert (await types_of(store, member.run_id)).count("run_cancelled") == 1


async def test_a_cancel_against_a_child_s_end_ends_both_and_counts_what_it_used(store: RunStore) -> None:
    for _ in range(10):
        owner, (new,) = await parent_of(store, 1)
        child = await started(store, new)
        child.usage = spent(3)
        await child.surely(answered(1))
        finish = {"status": S.COMPLETED, "result": {"final_text": "done"}, "parent_run_id": owner.run_id}
        written, _ = await asyncio.gather(
            child.try_write(answered(1), **finish), store.stop(owner.run_id, S.CANCELLED, STOPPED)
        )
        parent, ended = await store.get(owner.run_id), await store.get(new.run_id)
        assert parent.status is S.CANCELLED
        assert ended.status is (S.CANCELLED if written is None else S.COMPLETED)
        assert (parent.usage, ended.usage) == (spent(3), spent(3))


# --- what a stopped family has used ---------------------------------------------------------------------------


async def test_a_stopped_run_is_charged_with_what_its_whole_family_has_used(store: RunStore) -> None:
    members = await three_generations(store)
    stopped = await store.stop(members[0].run_id, S.CANCELLED, STOPPED)
    runs = [await store.get(member.run_id) for member in members]
    assert [run.usage for run in runs] == [spent(7), spent(6), spent(4)]
    assert [run.cost_usd for run in runs] == [Decimal("0.7"), Decimal("0.6"), Decimal("0.4")]
    assert stopped.run == runs[0]


async def test_a_stopped_run_with_a_child_whose_price_is_unknown_has_no_cost(store: RunStore) -> None:
    members = await three_generations(store, last_cost=None)
    await store.stop(members[0].run_id, S.CANCELLED, STOPPED)
    runs = [await store.get(member.run_id) for member in members]
    assert [run.cost_usd for run in runs] == [None, None, None]
    assert runs[0].usage == spent(7)


async def test_what_children_have_used_counts_once_whether_it_was_taken_in_or_not(store: RunStore) -> None:
    owner, news = await parent_of(store, 3)
    taken, ended, runs = await claim_these(store, *news)
    for child, calls in ((taken, 1), (ended, 2), (runs, 4)):
        child.usage = spent(calls)
        await child.surely(answered(1))
    await end_child(taken)
    again = await claim_only(store, owner.new)
    await again.look()
    call = replace(owner.calls[0], hold=None, result=result())
    await again.surely(answered(1), records=(ToolRecord(1, call),), usage=spent(1))
    await end_child(ended)
    await store.stop(owner.run_id, S.CANCELLED, STOPPED)
    assert (await store.get(owner.run_id)).usage == spent(7)


async def test_a_run_that_is_stopped_again_is_charged_once(store: RunStore) -> None:
    members = await three_generations(store)
    for _ in range(2):
        await store.stop(members[0].run_id, S.INTERRUPTED, STOPPED)
        assert (await store.get(members[0].run_id)).usage == spent(7)
        await store.resume(members[0].run_id, None)


# --- resume -----------------------------------------------------------------------------------------------------


async def test_an_interrupted_family_goes_on_as_the_same_runs(store: RunStore) -> None:
    members = await three_generations(store)
    await store.stop(members[0].run_id, S.INTERRUPTED, STOPPED)
    resumed = await store.resume(members[0].run_id, None)
    changed = everyone(resumed)
    assert set(changed) == {member.run_id for member in members}
    for again in await claim_these(store, *(member.new for member in members)):
        run = await store.get(again.run_id)
        assert (run.status, run.attempt, run.result, run.error, run.finished_at) == (S.RUNNING, 2, None, None, None)
        loaded = await store.load(again.run_id)
        assert (loaded.resume_reason, loaded.stimuli.children) == (ResumeReason.INTERRUPT, ())
        await again.surely(answered(1))


async def test_a_child_that_ended_is_not_resumed_once_its_parent_needs_it_no_more(store: RunStore) -> None:
    owner, (failed, gone) = await parent_of(store, 2)
    first, second = await claim_these(store, failed, gone)
    await end_child(first, S.FAILED)
    resumed = await store.resume(failed.run_id, None)
    assert resumed.run.status is S.QUEUED, "its parent still waits for it"
    await store.stop(owner.run_id, S.INTERRUPTED, STOPPED)
    for child in (failed, second.new):
        with pytest.raises(RunConflict, match="does not wait for it any more"):
            await store.resume(child.run_id, None)


async def test_children_that_ended_before_stay_ended_and_their_ends_are_found(store: RunStore) -> None:
    owner, news = await parent_of(store, 4)
    done, failed, cancelled, runs = await claim_these(store, *news)
    await end_child(done)
    await end_child(failed, S.FAILED)
    await store.stop(cancelled.run_id, S.CANCELLED, STOPPED)
    await store.stop(owner.run_id, S.INTERRUPTED, STOPPED)
    await store.resume(owner.run_id, None)
    assert await statuses(store, done, failed, cancelled, runs) == [S.COMPLETED, S.FAILED, S.CANCELLED, S.QUEUED]
    ends = (await store.load(owner.run_id)).stimuli.children
    assert {end.run_id: end.status for end in ends} == {
        done.run_id: S.COMPLETED,
        failed.run_id: S.FAILED,
        cancelled.run_id: S.CANCELLED,
    }


async def test_a_child_whose_call_has_ended_does_not_go_on(store: RunStore) -> None:
    owner = await create_started(store)
    new = a_child(owner.new)
    await delegate(owner, new, status=S.RUNNING)
    await store.stop(new.run_id, S.INTERRUPTED, STOPPED)
    await owner.look()
    call = replace(owner.calls[0], hold=None, result=result())
    await owner.surely(answered(1), records=(ToolRecord(1, call),))
    await store.stop(owner.run_id, S.INTERRUPTED, STOPPED)
    await store.resume(owner.run_id, None)
    assert await statuses(store, owner, new) == [S.QUEUED, S.INTERRUPTED]


async def test_a_child_that_goes_on_ends_for_its_parent_as_ever(store: RunStore) -> None:
    owner, (new,) = await parent_of(store, 1)
    await store.stop(owner.run_id, S.INTERRUPTED, STOPPED)
    await store.resume(owner.run_id, None)
    again, child = await claim_these(store, owner.new, new)
    await end_child(child)
    assert await again.try_write(answered(1)) == Woken()
    assert [end.status for end in (await again.look()).children] == [S.COMPLETED]


# --- pause ------------------------------------------------------------------------------------------------------


async def test_a_pause_reaches_child_runs_whatever_they_are_doing(store: RunStore) -> None:
    owner, queued, running, asks = await family(store)
    paused = await store.pause(owner.run_id)
    assert set(everyone(paused)) == {owner.run_id, queued.run_id, running.run_id, asks.run_id}
    assert await statuses(store, owner, queued, running, asks) == [S.PAUSED, S.PAUSED, S.RUNNING, S.PAUSED]
    assert (await store.get(running.run_id)).pause_requested
    assert (await types_of(store, asks.run_id))[-1] == "run_paused"
    assert everyone(await store.pause(owner.run_id)) == {}


async def test_a_resume_reaches_child_runs_that_were_paused(store: RunStore) -> None:
    owner, queued, running, asks = await family(store)
    await store.pause(owner.run_id)
    resumed = await store.resume(owner.run_id, None)
    assert set(everyone(resumed)) == {owner.run_id, queued.run_id, running.run_id, asks.run_id}
    assert await statuses(store, owner, queued, running, asks) == [S.QUEUED, S.QUEUED, S.RUNNING, S.QUEUED]
    assert not (await store.get(running.run_id)).pause_requested
    assert (await only_question(store, asks)).status is InteractionStatus.PENDING


async def test_a_pause_and_a_resume_reach_three_generations(store: RunStore) -> None:
    first, second, third = await three_generations(store)
    await store.pause(first.run_id)
    assert await statuses(store, first, second, third) == [S.PAUSED, S.PAUSED, S.RUNNING]
    await third.ask("look")
    assert (await third.close_step()).status is S.PAUSED
    await store.resume(first.run_id, None)
    assert await statuses(store, first, second, third) == [S.QUEUED] * 3


async def test_a_pause_of_a_run_under_way_that_is_taken_back_is_taken_back_from_its_children(store: RunStore) -> None:
    owner = await create_started(store)
    new = a_child(owner.new)
    await delegate(owner, new, status=S.RUNNING)
    await store.pause(owner.run_id)
    assert await statuses(store, owner, new) == [S.RUNNING, S.PAUSED]
    resumed = await store.resume(owner.run_id, None)
    assert resumed.changed
    assert await statuses(store, owner, new) == [S.RUNNING, S.QUEUED]


async def test_a_pause_that_outlived_its_owner_is_taken_back_from_the_children_too(store: RunStore) -> None:
    owner = await create_started(store)
    new = a_child(owner.new)
    await delegate(owner, new, status=S.RUNNING)
    await store.pause(owner.run_id)
    await store.release(owner.fence, 1.0)
    resumed = await store.resume(owner.run_id, None)
    assert (resumed.changed, resumed.run.pause_requested) == (True, False)
    assert await statuses(store, owner, new) == [S.QUEUED, S.QUEUED]


async def test_a_resume_of_a_run_that_waits_reaches_a_child_that_was_paused_by_itself(store: RunStore) -> None:
    owner, (new,) = await parent_of(store, 1)
    await store.pause(new.run_id)
    assert new.run_id in everyone(await store.resume(owner.run_id, None))
    assert await statuses(store, owner, new) == [S.WAITING, S.QUEUED]


async def test_a_resume_of_a_run_under_way_leaves_ended_children_for_it_to_take_in(store: RunStore) -> None:
    owner = await create_started(store)
    new = a_child(owner.new)
    await delegate(owner, new, status=S.RUNNING)
    await store.stop(new.run_id, S.INTERRUPTED, STOPPED)
    assert everyone(await store.resume(owner.run_id, None)) == {}
    assert await statuses(store, owner, new) == [S.RUNNING, S.INTERRUPTED]


async def test_a_pause_of_a_paused_run_reaches_child_runs_that_go_on(store: RunStore) -> None:
    owner = await create_started(store)
    new = a_child(owner.new)
    await store.pause(owner.run_id)
    await delegate(owner, new)
    assert await statuses(store, owner, new) == [S.PAUSED, S.QUEUED]
    assert new.run_id in everyone(await store.pause(owner.run_id))
    assert await statuses(store, owner, new) == [S.PAUSED, S.PAUSED]


async def test_a_cancel_ends_a_paused_family(store: RunStore) -> None:
    members = await family(store)
    await store.pause(members[0].run_id)
    await store.stop(members[0].run_id, S.CANCELLED, STOPPED)
    assert await statuses(store, *members) == [S.CANCELLED] * 4


# --- deleting ---------------------------------------------------------------------------------------------------


async def test_deleting_a_run_removes_its_child_runs_and_theirs(subject: Subject) -> None:
    store = subject.store
    members = await three_generations(store)
    await store.stop(members[0].run_id, S.CANCELLED, STOPPED)
    await subject.delete_run(members[0].run_id)
    for member in members:
        with pytest.raises(RunNotFound):
            await store.get(member.run_id)
        assert await events_of(store, member.run_id) == []
        with pytest.raises(RunNotFound):
            await store.interactions(member.run_id)


async def test_deleting_a_child_leaves_its_parent(subject: Subject) -> None:
    store = subject.store
    owner, (gone, kept) = await parent_of(store, 2)
    await store.stop(owner.run_id, S.CANCELLED, STOPPED)
    await subject.delete_run(gone.run_id)
    run = await store.get(owner.run_id)
    assert run.subagent_executions is not None
    assert [one.run_id for one in run.subagent_executions] == [kept.run_id]


async def test_a_run_that_is_not_over_is_not_deleted(subject: Subject) -> None:
    owner, (new,) = await parent_of(subject.store, 1)
    for run_id in (owner.run_id, new.run_id):
        with pytest.raises(RunConflict):
            await subject.delete_run(run_id)
    assert await statuses(subject.store, owner, new) == [S.WAITING, S.QUEUED]


async def test_an_unknown_run_is_not_deleted(subject: Subject) -> None:
    with pytest.raises(RunNotFound):
        await subject.delete_run(a_child((await create_started(subject.store)).new).run_id)
