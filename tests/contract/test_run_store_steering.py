"""What any store of runs promises about steering: pause, resume, cancel, interrupt, in every status."""

from __future__ import annotations

import orjson
import pytest

from app.engine.errors import RunError
from app.engine.events import Event, EventType, ResumeReason, WarningCode
from app.engine.limits import Limits
from app.engine.ports import RunStore
from app.engine.records import OnBusyThread, RunRecord, Stopped
from app.engine.state import Phase
from app.engine.status import RunStatus as S
from app.engine.store_errors import LimitReached, RunConflict
from tests.contract.stores import (
    OTHER_OWNER,
    OWNER,
    RESUMED,
    STOPPED,
    a_run,
    answered,
    claim_only,
    create_owned,
    create_started,
    events_of,
    run_in,
    types_of,
)

REQUESTS = ("pause", "resume", "cancel", "interrupt")
CONFLICT = "conflict"

# What a request makes of a run in a status: its status afterwards, or a conflict.
TABLE: dict[str, dict[S, S | str]] = {
    "pause": {
        S.QUEUED: S.PAUSED,
        S.RUNNING: S.RUNNING,
        S.PAUSED: S.PAUSED,
        S.WAITING: S.PAUSED,
        **dict.fromkeys((S.COMPLETED, S.DEGRADED, S.FAILED, S.INTERRUPTED, S.CANCELLED), CONFLICT),
    },
    "resume": {
        S.QUEUED: S.QUEUED,
        S.RUNNING: S.RUNNING,
        S.PAUSED: S.QUEUED,
        S.WAITING: S.WAITING,
        S.COMPLETED: S.COMPLETED,
        S.DEGRADED: S.DEGRADED,
        S.FAILED: S.QUEUED,
        S.INTERRUPTED: S.QUEUED,
        S.CANCELLED: CONFLICT,
    },
    "cancel": {status: status if status.terminal else S.CANCELLED for status in S},
    "interrupt": {status: status if status.terminal else S.INTERRUPTED for status in S},
}
CELLS = [(request, status, TABLE[request][status]) for request in REQUESTS for status in S]


async def ask(store: RunStore, request: str, run_id: str) -> Stopped:
    match request:
        case "pause":
            return await store.pause(run_id)
        case "resume":
            return await store.resume(run_id, None)
        case _:
            return await store.stop(run_id, S.CANCELLED if request == "cancel" else S.INTERRUPTED, STOPPED)


@pytest.mark.parametrize(("request_", "status", "outcome"), CELLS)
async def test_each_request_does_in_each_status_what_the_table_says(
    store: RunStore, request_: str, status: S, outcome: S | str
) -> None:
    new = await run_in(store, status)
    before, events = await store.get(new.run_id), await events_of(store, new.run_id)
    if not isinstance(outcome, S):
        with pytest.raises(RunConflict) as conflict:
            await ask(store, request_, new.run_id)
        assert conflict.value.current_status is status
        assert (await store.get(new.run_id), await events_of(store, new.run_id)) == (before, events)
        return
    answer = await ask(store, request_, new.run_id)
    assert answer.run == await store.get(new.run_id)
    assert answer.run.status is outcome
    requested = request_ == "pause" and status is S.RUNNING
    assert answer.run.pause_requested is requested
    assert answer.changed is (outcome is not status or requested)
    assert await events_of(store, new.run_id) == [*events, *answer.events]
    if not answer.changed:
        assert (answer.run, answer.events) == (before, ())


@pytest.mark.parametrize(("request_", "status", "outcome"), [cell for cell in CELLS if cell[2] is not CONFLICT])
async def test_a_request_that_is_sent_again_changes_nothing_more(
    store: RunStore, request_: str, status: S, outcome: S
) -> None:
    new = await run_in(store, status)
    first = await ask(store, request_, new.run_id)
    again = await ask(store, request_, new.run_id)
    assert (again.changed, again.run, again.events) == (False, first.run, ())


# --- cancel and interrupt -----------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [S.CANCELLED, S.INTERRUPTED])
async def test_a_stop_is_terminal_at_once_with_its_event_and_a_new_epoch(store: RunStore, status: S) -> None:
    owner = await create_started(store)
    before = await store.get(owner.run_id)
    stopped = await store.stop(owner.run_id, status, STOPPED)
    run = stopped.run
    assert (run.status, run.owner, run.epoch > before.epoch) == (status, None, True)
    assert run.finished_at is not None
    assert run.error == (STOPPED if status is S.INTERRUPTED else None)
    (event,) = stopped.events
    body = orjson.loads(event.body)
    assert (event.type, body["state"], event.seq) == (f"run_{status}", status, run.last_event_seq)
    assert body["data"] == {"code": STOPPED.code, "message": STOPPED.message}


def final_text(run: RunRecord) -> str:
    assert run.result is not None
    return run.result["final_text"]


@pytest.mark.parametrize("status", [S.CANCELLED, S.INTERRUPTED])
async def test_a_stop_keeps_the_committed_text_of_the_open_step(store: RunStore, status: S) -> None:
    owner = await create_started(store)
    await owner.say("void", "!")
    await owner.ask("look")
    await owner.close_step()
    await owner.say("Half ", "an")
    await owner.say(" answer")
    stopped = await store.stop(owner.run_id, status, STOPPED)
    assert final_text(stopped.run) == "Half an answer"


async def test_a_stop_before_any_text_has_an_empty_one(store: RunStore) -> None:
    for status in (S.QUEUED, S.RUNNING, S.PAUSED, S.WAITING):
        new = await run_in(store, status)
        assert final_text((await store.stop(new.run_id, S.CANCELLED, STOPPED)).run) == ""


async def test_text_of_an_attempt_that_was_taken_over_is_not_the_run_s(store: RunStore) -> None:
    owner = await create_started(store)
    await owner.say("lost")
    await store.release(owner.fence, 1.0)
    again = await claim_only(store, owner.new, OTHER_OWNER)
    await again.write(RESUMED)
    await again.say("kept")
    assert final_text((await store.stop(owner.run_id, S.CANCELLED, STOPPED)).run) == "kept"


async def test_text_from_before_a_restart_of_the_step_is_not_the_run_s(store: RunStore) -> None:
    owner = await create_started(store)
    await owner.say("lost")
    await owner.write(Event(EventType.WARNING, 1, {"code": WarningCode.STEP_RESTARTED, "from_seq": 1}))
    await owner.say("kept")
    await owner.write(Event(EventType.WARNING, 1, {"code": WarningCode.PRICE_UNKNOWN}))
    await owner.say(" whole")
    assert final_text((await store.stop(owner.run_id, S.CANCELLED, STOPPED)).run) == "kept whole"


async def test_a_run_failed_from_outside_says_why(store: RunStore) -> None:
    owner = await create_started(store)
    await owner.say("half")
    reason = RunError("poisoned", "it crashed three times")
    stopped = await store.stop(owner.run_id, S.FAILED, reason)
    assert (stopped.run.status, stopped.run.error, final_text(stopped.run)) == (
        S.FAILED,
        reason,
        reason.message,
    )


# --- pause --------------------------------------------------------------------------------------------------


async def test_a_running_run_pauses_at_its_next_step_boundary_and_not_before(store: RunStore) -> None:
    owner = await create_started(store)
    await store.pause(owner.run_id)
    asked = await owner.ask("look")
    assert (asked.status, asked.events[-1].type) == (S.RUNNING, "tool_batch_started")
    await owner.end_call(0)
    await owner.say("text")
    closed = await owner.close_step()
    assert closed.status is S.PAUSED
    assert [event.type for event in closed.events] == ["tool_completed", "run_paused"]
    run = await store.get(owner.run_id)
    assert (run.status, run.owner, run.pause_requested, run.step) == (S.PAUSED, None, False, 2)
    assert await owner.write(answered(2)) is None
    assert await store.claim(OWNER, 10) == []


async def test_a_write_that_pauses_commits_all_but_what_comes_next(store: RunStore) -> None:
    owner = await create_started(store)
    await owner.ask("look")
    await store.pause(owner.run_id)
    closed = await owner.close_step(elapsed_s=7.0)
    assert (closed.first_message_seq, closed.message_seq) == (3, 3)
    loaded = await store.load(owner.run_id)
    assert loaded.checkpoint == owner.checkpoint(Phase.CALL_MODEL)
    assert loaded.checkpoint_seq == closed.events[0].seq
    assert [entry.message.role for entry in loaded.messages] == ["user", "assistant", "tool"]
    assert (loaded.run.usage, loaded.elapsed_s) == (owner.usage, 7.0)
    assert "step_started" not in [event.type for event in closed.events]


async def test_a_run_that_ends_before_its_pause_is_ended(store: RunStore) -> None:
    owner = await create_started(store)
    await store.pause(owner.run_id)
    assert (await owner.finish()).status is S.COMPLETED
    assert not (await store.get(owner.run_id)).pause_requested


async def test_a_pause_that_is_taken_back_does_not_happen(store: RunStore) -> None:
    owner = await create_started(store)
    await store.pause(owner.run_id)
    resumed = await store.resume(owner.run_id, None)
    assert (resumed.changed, resumed.run.pause_requested, resumed.run.status) == (True, False, S.RUNNING)
    await owner.ask("look")
    assert (await owner.close_step()).status is S.RUNNING


async def test_a_pause_that_was_asked_for_outlives_its_owner(store: RunStore) -> None:
    owner = await create_started(store)
    await store.pause(owner.run_id)
    await store.release(owner.fence, 1.0)
    again = await claim_only(store, owner.new, OTHER_OWNER)
    await again.ask("look")
    assert (await again.close_step()).status is S.PAUSED


@pytest.mark.parametrize("status", [S.QUEUED, S.WAITING])
async def test_a_run_that_nobody_executes_pauses_at_once(store: RunStore, status: S) -> None:
    new = await run_in(store, status)
    paused = await store.pause(new.run_id)
    assert [event.type for event in paused.events] == ["run_paused"]
    assert orjson.loads(paused.events[0].body)["state"] == "paused"
    assert await store.claim(OWNER, 10) == []


async def test_a_resumed_pause_is_claimed_as_one(store: RunStore) -> None:
    new = await run_in(store, S.PAUSED)
    await store.resume(new.run_id, None)
    owner = await claim_only(store, new, OTHER_OWNER)
    loaded = await store.load(new.run_id)
    assert (loaded.resume_reason, loaded.run.attempt) == (ResumeReason.PAUSE, 2)
    assert loaded.wall_from_s == 0.0
    assert await owner.write(answered(2)) is not None


# --- resume after failure and interrupt ---------------------------------------------------------------------

REASONS = {S.FAILED: ResumeReason.FAILURE, S.INTERRUPTED: ResumeReason.INTERRUPT}


@pytest.mark.parametrize(("status", "reason"), REASONS.items())
async def test_an_ended_run_goes_on_from_its_last_checkpoint(store: RunStore, status: S, reason: ResumeReason) -> None:
    owner = await create_started(store)
    await owner.ask("look")
    await owner.close_step(elapsed_s=5.0)
    if status is S.INTERRUPTED:
        await store.stop(owner.run_id, status, STOPPED)
    else:
        await owner.finish(status, elapsed_s=5.0, messages=())
    resumed = (await store.resume(owner.run_id, None)).run
    assert (resumed.status, resumed.result, resumed.error, resumed.finished_at) == (
        S.QUEUED,
        None,
        None,
        None,
    )
    again = await claim_only(store, owner.new, OTHER_OWNER)
    loaded = await store.load(owner.run_id)
    assert (loaded.resume_reason, loaded.checkpoint) == (reason, owner.checkpoint(Phase.CALL_MODEL))
    assert (loaded.elapsed_s, loaded.wall_from_s) == (5.0, 5.0), "the wall time starts afresh"
    assert again.fence.epoch > owner.fence.epoch
    assert await owner.write(answered(2)) is None
    await again.finish()
    assert (await types_of(store, owner.run_id))[-1] == "run_completed"


async def test_a_resume_twice_makes_one_attempt(store: RunStore) -> None:
    new = await run_in(store, S.INTERRUPTED)
    await store.resume(new.run_id, None)
    await store.resume(new.run_id, None)
    await claim_only(store, new, OTHER_OWNER)
    assert (await store.get(new.run_id)).attempt == 2


async def test_a_run_that_would_meet_a_limit_at_once_is_resumed_only_with_higher_ones(
    store: RunStore,
) -> None:
    owner = await create_started(store)
    for _ in range(5):
        await owner.ask("look")
        await owner.close_step()
    await owner.finish(S.FAILED, messages=())
    before = await store.get(owner.run_id)
    for limits in (None, Limits(max_steps=5), Limits(max_llm_calls=50)):
        with pytest.raises(LimitReached, match="max_steps"):
            await store.resume(owner.run_id, limits)
        assert await store.get(owner.run_id) == before
    resumed = await store.resume(owner.run_id, Limits(max_steps=6))
    assert resumed.run.status is S.QUEUED
    await claim_only(store, owner.new)
    overrides = (await store.load(owner.run_id)).run.overrides
    assert overrides.resume_limits == Limits(max_steps=6)


@pytest.mark.parametrize("status", [S.QUEUED, S.RUNNING])
async def test_limits_for_a_run_that_goes_on_as_it_is_are_refused_and_not_ignored(store: RunStore, status: S) -> None:
    """But for those that it was resumed with: a resume may be sent twice."""
    new = await run_in(store, status)
    before = await store.get(new.run_id)
    with pytest.raises(RunConflict, match="paused, failed or interrupted"):
        await store.resume(new.run_id, Limits(max_steps=7))
    assert await store.get(new.run_id) == before
    await store.stop(new.run_id, S.INTERRUPTED, STOPPED)
    for _ in range(2):
        assert (await store.resume(new.run_id, Limits(max_steps=7))).run.status is S.QUEUED


async def test_limits_of_an_earlier_resume_stand(store: RunStore) -> None:
    new = await run_in(store, S.INTERRUPTED)
    await store.resume(new.run_id, Limits(max_steps=7))
    await store.stop(new.run_id, S.INTERRUPTED, STOPPED)
    resumed = await store.resume(new.run_id, Limits(max_llm_calls=9))
    assert resumed.run.overrides.resume_limits == Limits(max_steps=7, max_llm_calls=9)


@pytest.mark.parametrize("status", REASONS)
async def test_a_run_is_not_resumed_once_another_has_written_to_its_thread(store: RunStore, status: S) -> None:
    new = await run_in(store, status, a_run("talk"))
    await run_in(store, S.COMPLETED, a_run("talk"))
    with pytest.raises(RunConflict) as conflict:
        await store.resume(new.run_id, None)
    assert conflict.value.current_status is status


async def test_a_run_is_not_resumed_while_another_holds_its_thread_to_write_to_it(store: RunStore) -> None:
    new = await run_in(store, S.INTERRUPTED, a_run("talk"))
    await create_owned(store, a_run("talk"), OTHER_OWNER)
    with pytest.raises(RunConflict):
        await store.resume(new.run_id, None)


async def test_earlier_and_voided_messages_of_others_do_not_stand_in_the_way(store: RunStore) -> None:
    await run_in(store, S.COMPLETED, a_run("talk", "earlier"))
    new = await run_in(store, S.INTERRUPTED, a_run("talk"))
    await create_started(store, a_run("talk", "rolled back"))
    last = await run_in(store, S.QUEUED, a_run("talk", on_busy_thread=OnBusyThread.ROLLBACK))
    await store.stop(last.run_id, S.CANCELLED, STOPPED)
    assert (await store.resume(new.run_id, None)).run.status is S.QUEUED


async def test_a_run_interrupted_before_it_started_is_resumed_as_if_it_were_new(store: RunStore) -> None:
    await run_in(store, S.COMPLETED, a_run("talk", "earlier"))
    new = await run_in(store, S.QUEUED, a_run("talk"))
    await store.stop(new.run_id, S.INTERRUPTED, STOPPED)
    await run_in(store, S.COMPLETED, a_run("talk", "later"))
    assert (await store.resume(new.run_id, None)).run.status is S.QUEUED
    owner = await claim_only(store, new)
    loaded = await store.load(new.run_id)
    assert (loaded.checkpoint, loaded.resume_reason) == (None, None)
    await owner.start()


async def test_a_resumed_run_holds_its_thread_again(store: RunStore) -> None:
    new = await run_in(store, S.FAILED, a_run("talk"))
    await store.resume(new.run_id, None)
    created = await store.create(a_run("talk"), owner=OTHER_OWNER)
    assert created.claim is None
    owner = await claim_only(store, new)
    assert (await owner.finish()).promoted == created.run.run_id
