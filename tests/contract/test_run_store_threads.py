"""What any store of runs promises about threads: one holder, and a line in order behind it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from app.engine.events import ResumeReason
from app.engine.ports import RunStore
from app.engine.records import NewRun, OnBusyThread
from app.engine.status import RunStatus
from app.engine.store_errors import RunNotFound, ThreadBusy
from tests.contract.stores import (
    OTHER_OWNER,
    OWNER,
    STOPPED,
    Subject,
    a_run,
    answered,
    claim_only,
    create_owned,
    create_started,
    run_in,
    texts_of,
    types_of,
)

HOLDING = [RunStatus.QUEUED, RunStatus.RUNNING, RunStatus.PAUSED, RunStatus.WAITING]
PAST, FUTURE = datetime(2020, 1, 1, tzinfo=UTC), datetime.now(UTC) + timedelta(days=365)


async def queued(store: RunStore, *texts: str, **fields: Any) -> list[NewRun]:
    """Runs of one thread, in line in this order."""
    runs = [a_run("talk", text, **fields) for text in texts]
    for new in runs:
        await store.create(new, owner=None)
    return runs


# --- the line -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", HOLDING)
async def test_a_run_waits_in_line_while_another_holds_its_thread(store: RunStore, status: RunStatus) -> None:
    holder = await run_in(store, status, a_run("talk"))
    created = await store.create(a_run("talk"), owner=OTHER_OWNER)
    assert (created.run.status, created.claim, created.stopped) == (RunStatus.QUEUED, None, ())
    claims = await store.claim(OTHER_OWNER, 10)
    assert [claim.fence.run_id for claim in claims] == ([holder.run_id] if status is RunStatus.QUEUED else [])


async def test_runs_of_a_thread_run_one_after_the_other_in_the_order_of_their_creation(
    store: RunStore,
) -> None:
    runs = await queued(store, "one", "two", "three")
    for new, following in zip(runs, [*runs[1:], None], strict=True):
        owner = await claim_only(store, new)
        await owner.start()
        committed = await owner.finish(text="done " + new.input[0].text())
        assert committed.promoted == (following and following.run_id)
    assert await texts_of(store, runs[0].thread_key) == [
        "one",
        "done one",
        "two",
        "done two",
        "three",
        "done three",
    ]


@pytest.mark.parametrize("status", [RunStatus.COMPLETED, RunStatus.DEGRADED, RunStatus.FAILED])
async def test_a_terminal_write_promotes_the_next_in_line(store: RunStore, status: RunStatus) -> None:
    owner = await create_started(store, a_run("talk"))
    waiting, _ = await queued(store, "second", "third")
    committed = await owner.finish(status)
    assert committed.promoted == waiting.run_id
    await claim_only(store, waiting)


@pytest.mark.parametrize("status", [RunStatus.CANCELLED, RunStatus.INTERRUPTED])
@pytest.mark.parametrize("held", HOLDING)
async def test_stopping_the_holder_promotes_the_next_in_line(
    store: RunStore, held: RunStatus, status: RunStatus
) -> None:
    holder = await run_in(store, held, a_run("talk"))
    waiting, _ = await queued(store, "second", "third")
    stopped = await store.stop(holder.run_id, status, STOPPED)
    assert stopped.promoted == waiting.run_id
    await claim_only(store, waiting)


async def test_a_run_that_leaves_the_line_is_passed_over(store: RunStore) -> None:
    owner = await create_started(store, a_run("talk"))
    cancelled, paused, interrupted, last = await queued(store, "a", "b", "c", "d")
    for gone, status in ((cancelled, RunStatus.CANCELLED), (interrupted, RunStatus.INTERRUPTED)):
        assert (await store.stop(gone.run_id, status, STOPPED)).promoted is None
    assert (await store.pause(paused.run_id)).run.status is RunStatus.PAUSED
    assert (await owner.finish()).promoted == last.run_id


async def test_an_input_joins_the_thread_when_its_run_starts_not_when_it_is_created(store: RunStore) -> None:
    first, second = await queued(store, "one", "two")
    assert await texts_of(store, first.thread_key) == []
    owner = await claim_only(store, first)
    await owner.start()
    await owner.finish(text="answer")
    await store.stop(second.run_id, RunStatus.CANCELLED, STOPPED)
    assert await texts_of(store, first.thread_key) == ["one", "answer"]


async def test_a_run_paused_in_line_comes_back_to_its_own_place(store: RunStore) -> None:
    owner = await create_started(store, a_run("talk"))
    early, late = await queued(store, "early", "late")
    await store.pause(early.run_id)
    resumed = await store.resume(early.run_id, None)
    assert (resumed.run.status, resumed.changed) == (RunStatus.QUEUED, True)
    assert await store.claim(OTHER_OWNER, 10) == []
    assert (await owner.finish()).promoted == early.run_id
    await (await claim_only(store, early)).finish()
    await claim_only(store, late)


async def test_a_run_paused_in_line_takes_the_slot_when_it_is_resumed_on_a_free_thread(
    store: RunStore,
) -> None:
    owner = await create_started(store, a_run("talk"))
    (waiting,) = await queued(store, "second")
    await store.pause(waiting.run_id)
    assert (await owner.finish()).promoted is None
    await store.resume(waiting.run_id, None)
    started = await claim_only(store, waiting)
    assert (await store.load(waiting.run_id)).resume_reason is None
    assert await started.start()


async def test_the_line_is_kept_while_the_paused_holder_is_resumed(store: RunStore) -> None:
    holder = await run_in(store, RunStatus.PAUSED, a_run("talk"))
    (waiting,) = await queued(store, "second")
    await store.resume(holder.run_id, None)
    owner = await claim_only(store, holder)
    assert (await owner.finish()).promoted == waiting.run_id


# --- on_busy_thread -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", OnBusyThread)
async def test_a_free_thread_is_taken_whatever_would_be_done_on_a_busy_one(
    store: RunStore, answer: OnBusyThread
) -> None:
    await run_in(store, RunStatus.COMPLETED, a_run("talk", "before"))
    created = await store.create(a_run("talk", on_busy_thread=answer), owner=OWNER)
    assert created.claim is not None
    assert created.stopped == ()


@pytest.mark.parametrize("held", HOLDING)
async def test_reject_refuses_a_busy_thread_and_leaves_nothing(store: RunStore, held: RunStatus) -> None:
    await run_in(store, held, a_run("talk"))
    refused = a_run("talk", on_busy_thread=OnBusyThread.REJECT)
    with pytest.raises(ThreadBusy):
        await store.create(refused, owner=OWNER)
    with pytest.raises(RunNotFound):
        await store.get(refused.run_id)


@pytest.mark.parametrize("held", HOLDING)
async def test_interrupt_ends_the_holder_and_goes_before_the_line(store: RunStore, held: RunStatus) -> None:
    holder = await run_in(store, held, a_run("talk", "old"))
    (waiting,) = await queued(store, "patient")
    new = a_run("talk", "urgent", on_busy_thread=OnBusyThread.INTERRUPT)
    created = await store.create(new, owner=OTHER_OWNER)
    assert created.claim is not None
    (stopped,) = created.stopped
    assert (stopped.run.run_id, stopped.changed, stopped.promoted) == (holder.run_id, True, None)
    assert (await store.get(holder.run_id)).status is RunStatus.INTERRUPTED
    assert [event.type for event in stopped.events] == ["run_interrupted"]
    assert (await types_of(store, holder.run_id))[-1] == "run_interrupted"
    if held is not RunStatus.QUEUED:
        assert (await texts_of(store, holder.thread_key))[0] == "old"
    assert await store.claim(OWNER, 10) == []
    assert (await store.stop(new.run_id, RunStatus.CANCELLED, STOPPED)).promoted == waiting.run_id


@pytest.mark.parametrize("held", HOLDING)
async def test_rollback_cancels_the_holder_and_takes_its_messages_out_of_the_thread(
    store: RunStore, held: RunStatus
) -> None:
    before = await run_in(store, RunStatus.COMPLETED, a_run("talk", "before"))
    kept = await texts_of(store, before.thread_key)
    holder = await run_in(store, held, a_run("talk", "old"))
    (waiting,) = await queued(store, "patient")
    new = a_run("talk", "instead", on_busy_thread=OnBusyThread.ROLLBACK)
    created = await store.create(new, owner=None)
    assert [stopped.run.status for stopped in created.stopped] == [RunStatus.CANCELLED]
    assert (await store.get(holder.run_id)).status is RunStatus.CANCELLED
    assert await texts_of(store, before.thread_key) == kept
    owner = await claim_only(store, new)
    await owner.start()
    assert [entry.message.text() for entry in (await store.load(new.run_id)).messages] == [*kept, "instead"]
    assert (await owner.finish()).promoted == waiting.run_id


async def test_an_owner_whose_run_was_taken_over_writes_nothing_more(store: RunStore) -> None:
    owner = await create_started(store, a_run("talk", "old"))
    await create_owned(store, a_run("talk", "new", on_busy_thread=OnBusyThread.INTERRUPT), OTHER_OWNER)
    assert await owner.write(answered(1)) is None


# --- start_after --------------------------------------------------------------------------------------------


async def test_a_run_that_starts_later_is_not_claimed_and_holds_nothing(subject: Subject) -> None:
    store = subject.store
    created = await store.create(a_run("talk", start_after=FUTURE), owner=OWNER)
    assert (created.claim, created.run.status) == (None, RunStatus.QUEUED)
    assert await subject.promote_due() == []
    assert await store.claim(OWNER, 10) == []
    assert (await store.create(a_run("talk"), owner=OWNER)).claim is not None


async def test_a_run_that_starts_later_leaves_a_busy_thread_alone(subject: Subject) -> None:
    owner = await create_started(subject.store, a_run("talk"))
    for answer in OnBusyThread:
        new = a_run("talk", start_after=FUTURE, on_busy_thread=answer)
        assert (await subject.store.create(new, owner=None)).stopped == ()
    assert (await owner.finish()).promoted is None


async def test_a_run_that_is_due_joins_the_line_then_and_not_before(subject: Subject) -> None:
    store = subject.store
    owner = await create_started(store, a_run("talk"))
    due = a_run("talk", "due", start_after=PAST)
    await store.create(due, owner=None)
    (before,) = await queued(store, "before")
    await subject.promote_due()
    (after,) = await queued(store, "after")
    for waiting in (before, due, after):
        assert (await owner.finish()).promoted == waiting.run_id
        owner = await claim_only(store, waiting)


async def test_a_run_that_is_due_on_a_free_thread_is_ready(subject: Subject) -> None:
    store = subject.store
    due = a_run(start_after=PAST)
    await store.create(due, owner=None)
    assert due.run_id in await subject.promote_due()
    assert await subject.promote_due() == []
    await claim_only(store, due)


async def test_a_run_that_starts_later_can_be_paused_resumed_and_cancelled(subject: Subject) -> None:
    store = subject.store
    new = await run_in(store, RunStatus.QUEUED, a_run(start_after=FUTURE))
    assert (await store.pause(new.run_id)).run.status is RunStatus.PAUSED
    assert (await store.resume(new.run_id, None)).run.status is RunStatus.QUEUED
    assert await subject.promote_due() == []
    assert await store.claim(OWNER, 10) == []
    assert (await store.stop(new.run_id, RunStatus.CANCELLED, STOPPED)).run.status is RunStatus.CANCELLED
    assert await subject.promote_due() == []


async def test_a_paused_run_does_not_become_due(subject: Subject) -> None:
    store = subject.store
    new = await run_in(store, RunStatus.QUEUED, a_run(start_after=PAST))
    await store.pause(new.run_id)
    assert await subject.promote_due() == []
    await store.resume(new.run_id, None)
    await subject.promote_due()
    await claim_only(store, new)
    assert (await store.load(new.run_id)).resume_reason in (None, ResumeReason.PAUSE)
