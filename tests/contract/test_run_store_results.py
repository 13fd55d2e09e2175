"""What any store of runs promises about tool calls: results that come from outside, and what is kept of a call."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from app.engine.effects import ToolEffect
from app.engine.events import ResumeReason
from app.engine.messages import ToolCall
from app.engine.moves import PostedResult
from app.engine.ownership import Committed, Woken
from app.engine.ports import RunStore
from app.engine.records import Stimulated
from app.engine.state import OpenCall, Phase
from app.engine.status import RunStatus as S
from app.engine.store_errors import ResultConflict, RunNotFound, ToolCallNotFound
from app.engine.tools import ToolResult
from app.engine.transition import ToolRecord
from tests.contract.stores import (
    STOPPED,
    Owner,
    answered,
    claim_only,
    create_started,
    events_of,
    new_id,
    result,
)
from tests.contract.waiting import a_child, a_question, asking, deferred, delegated, in_status, waiting_run

FOUND, LOST = '"found"', '"lost"'


async def post(store: RunStore, owner: Owner, output: str | None = FOUND, error: str | None = None) -> Stimulated:
    return await store.post_result(owner.run_id, "call-0", output, error)


async def take_in(owner: Owner, output: str | None = FOUND, error: str | None = None) -> None:
    """The owner sees what was posted and ends the call with it."""
    await owner.look()
    content = output or error or ""
    ended = replace(owner.calls[0], hold=None, result=ToolResult(error is None, output, error, content, 0.0))
    await owner.surely(answered(owner.step), records=(ToolRecord(owner.step, ended),))


# --- posting --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after"), [(S.WAITING, S.QUEUED), (S.QUEUED, S.QUEUED), (S.RUNNING, S.RUNNING), (S.PAUSED, S.PAUSED)]
)
async def test_a_posted_result_is_stored_and_wakes_the_run_whatever_it_is_doing(
    store: RunStore, before: S, after: S
) -> None:
    owner = await waiting_run(store, deferred())
    await in_status(owner, before)
    log = await events_of(store, owner.run_id)
    assert await post(store, owner) == Stimulated(owner.run_id, after)
    run = await store.get(owner.run_id)
    assert (run.status, run.wakes) == (after, 1)
    assert await events_of(store, owner.run_id) == log, "the run says so itself when it takes the result in"
    assert (await owner.look()).posted == (PostedResult(0, FOUND, None),)


async def test_a_run_that_was_woken_by_a_result_finds_it(store: RunStore) -> None:
    owner = await waiting_run(store, deferred())
    await post(store, owner)
    again = await claim_only(store, owner.new)
    loaded = await store.load(owner.run_id)
    assert (again.wakes, loaded.resume_reason) == (1, ResumeReason.WAKE)
    assert loaded.stimuli.posted == (PostedResult(0, FOUND, None),)
    assert loaded.calls == (deferred(),)


async def test_an_owner_sees_a_result_before_it_writes_again(store: RunStore) -> None:
    owner = await waiting_run(store, deferred(), status=S.RUNNING)
    await post(store, owner)
    assert await owner.try_write(answered(1)) == Woken()
    await owner.look()
    assert isinstance(await owner.try_write(answered(1)), Committed)


async def test_an_error_is_a_result(store: RunStore) -> None:
    owner = await waiting_run(store, deferred())
    await post(store, owner, None, "it broke")
    assert (await owner.look()).posted == (PostedResult(0, None, "it broke"),)


async def test_a_paused_run_finds_the_result_when_it_is_resumed(store: RunStore) -> None:
    owner = await waiting_run(store, deferred())
    await store.pause(owner.run_id)
    await post(store, owner)
    await store.resume(owner.run_id, None)
    await claim_only(store, owner.new)
    assert (await store.load(owner.run_id)).stimuli.posted == (PostedResult(0, FOUND, None),)


async def test_an_interrupted_run_finds_the_result_when_it_is_resumed(store: RunStore) -> None:
    owner = await waiting_run(store, deferred())
    await post(store, owner)
    await store.stop(owner.run_id, S.INTERRUPTED, STOPPED)
    await store.resume(owner.run_id, None)
    assert (await store.load(owner.run_id)).stimuli.posted == (PostedResult(0, FOUND, None),)


async def test_a_call_that_runs_here_takes_a_result_from_outside(store: RunStore) -> None:
    owner = await create_started(store)
    await owner.ask("look", "find")
    assert (await store.post_result(owner.run_id, "call-1", FOUND, None)).changed
    assert (await owner.look()).posted == (PostedResult(1, FOUND, None),)


async def test_a_call_that_waits_for_a_person_takes_a_result_from_outside(store: RunStore) -> None:
    question = a_question()
    owner = await waiting_run(store, asking(question), interactions=(question,))
    assert (await post(store, owner)).status is S.QUEUED
    assert (await owner.look()).posted == (PostedResult(0, FOUND, None),)


async def test_a_result_that_was_taken_in_is_not_among_what_was_stored(store: RunStore) -> None:
    owner = await waiting_run(store, deferred(0), deferred(1), status=S.RUNNING)
    await post(store, owner)
    await take_in(owner)
    assert (await owner.look()).posted == ()
    executions = (await store.get(owner.run_id)).tool_executions
    assert executions is not None
    assert [(one.success, one.output) for one in executions] == [(True, FOUND), (None, None)]


async def test_calls_and_runs_that_are_not_there_are_not_found(store: RunStore) -> None:
    owner = await waiting_run(store, deferred())
    other = await create_started(store)
    for run_id in (owner.run_id, other.run_id):
        with pytest.raises(ToolCallNotFound):
            await store.post_result(run_id, "call-9", FOUND, None)
    for run_id in (new_id(), "no-uuid"):
        with pytest.raises(RunNotFound):
            await store.post_result(run_id, "call-0", FOUND, None)
    assert (await store.get(owner.run_id)).wakes == 0


# --- one result -----------------------------------------------------------------------------------------------

RESULTS = {"an output": (FOUND, None), "an error": (None, "it broke")}
OTHER_RESULTS = {"another output": (LOST, None), "another error": (None, "it is gone")}


@pytest.mark.parametrize("taken_in", [False, True], ids=["stored", "taken in"])
@pytest.mark.parametrize(("output", "error"), RESULTS.values(), ids=RESULTS.keys())
async def test_the_same_result_again_changes_nothing(
    store: RunStore, output: str | None, error: str | None, taken_in: bool
) -> None:
    owner = await waiting_run(store, deferred(), status=S.RUNNING)
    await post(store, owner, output, error)
    if taken_in:
        await take_in(owner, output, error)
    before = await store.get(owner.run_id)
    assert await post(store, owner, output, error) == Stimulated(owner.run_id, S.RUNNING, changed=False)
    assert await store.get(owner.run_id) == before


@pytest.mark.parametrize("taken_in", [False, True], ids=["stored", "taken in"])
@pytest.mark.parametrize(("output", "error"), OTHER_RESULTS.values(), ids=OTHER_RESULTS.keys())
async def test_another_result_is_refused_and_the_first_one_stands(
    store: RunStore, output: str | None, error: str | None, taken_in: bool
) -> None:
    owner = await waiting_run(store, deferred(), status=S.RUNNING)
    await post(store, owner)
    if taken_in:
        await take_in(owner)
    before, stored = await store.get(owner.run_id), await store.stimuli(owner.run_id)
    with pytest.raises(ResultConflict):
        await post(store, owner, output, error)
    assert (await store.get(owner.run_id), await store.stimuli(owner.run_id)) == (before, stored)


async def test_true_is_another_result_than_1(store: RunStore) -> None:
    owner = await waiting_run(store, deferred())
    await post(store, owner, "1")
    with pytest.raises(ResultConflict):
        await post(store, owner, "true")


async def test_a_call_that_ended_here_takes_no_other_result(store: RunStore) -> None:
    owner = await create_started(store)
    await owner.ask("look")
    await owner.end_call(0, result("found"))
    assert not (await post(store, owner)).changed
    with pytest.raises(ResultConflict):
        await post(store, owner, LOST)


async def test_a_call_of_an_earlier_step_takes_no_other_result(store: RunStore) -> None:
    owner = await create_started(store)
    await owner.ask("look")
    await owner.end_call(0, result("found"))
    await owner.close_step()
    with pytest.raises(ResultConflict):
        await post(store, owner, LOST)


async def test_of_two_results_at_once_exactly_one_counts(store: RunStore) -> None:
    for _ in range(10):
        owner = await waiting_run(store, deferred())
        outcomes = await asyncio.gather(post(store, owner, FOUND), post(store, owner, LOST), return_exceptions=True)
        won = FOUND if isinstance(outcomes[0], Stimulated) else LOST
        assert [type(outcome) for outcome in outcomes if not isinstance(outcome, Stimulated)] == [ResultConflict]
        stimuli = await owner.look()
        assert (stimuli.wakes, stimuli.posted) == (1, (PostedResult(0, won, None),))


async def test_a_result_against_the_write_that_ends_the_call_here_makes_one_of_them_see_the_other(
    store: RunStore,
) -> None:
    for _ in range(10):
        owner = await create_started(store)
        await owner.ask("look")
        ended = ToolRecord(1, replace(owner.calls[0], result=result("here")))
        write, posted = await asyncio.gather(
            owner.try_write(answered(1), records=(ended,)), post(store, owner, LOST), return_exceptions=True
        )
        if isinstance(posted, Stimulated):
            assert write == Woken()
        else:
            assert isinstance(write, Committed)
            assert isinstance(posted, ResultConflict)


@pytest.mark.parametrize("status", [S.CANCELLED, S.INTERRUPTED, S.FAILED])
async def test_a_run_that_is_over_takes_no_result_but_the_one_that_it_has(store: RunStore, status: S) -> None:
    owner = await waiting_run(store, deferred(0), deferred(1))
    await post(store, owner)
    await store.stop(owner.run_id, status, STOPPED)
    before = await store.get(owner.run_id)
    assert await post(store, owner) == Stimulated(owner.run_id, status, changed=False)
    for tool_call_id, output in (("call-0", LOST), ("call-1", FOUND)):
        with pytest.raises(ResultConflict):
            await store.post_result(owner.run_id, tool_call_id, output, None)
    assert await store.get(owner.run_id) == before


async def test_a_result_against_a_cancel_is_stored_or_refused(store: RunStore) -> None:
    for _ in range(10):
        owner = await waiting_run(store, deferred())
        posted, _ = await asyncio.gather(
            post(store, owner), store.stop(owner.run_id, S.CANCELLED, STOPPED), return_exceptions=True
        )
        assert (await store.get(owner.run_id)).status is S.CANCELLED
        assert isinstance(posted, Stimulated | ResultConflict)


# --- what is kept of calls --------------------------------------------------------------------------------------


async def test_an_attempt_that_takes_over_finds_each_call_as_it_was(store: RunStore) -> None:
    question, owner = a_question(1), await create_started(store)
    plain = OpenCall(0, ToolCall("call-0", "look", "{}"), ToolEffect.UNSAFE)
    judged = replace(plain, index=4, call=ToolCall("call-4", "look", "{}"), judged=True, arguments='{"q":2}')
    refusal = ToolResult(False, None, "policy denies this call", "policy denies this call", 0.0, denied=True)
    denied = replace(plain, index=5, call=ToolCall("call-5", "look", "not json"), judged=True, result=refusal)
    calls = (plain, asking(question), deferred(2), delegated(3, a_child(owner.new)), judged, denied)
    await owner.write(
        answered(1),
        records=tuple(ToolRecord(1, call) for call in calls),
        checkpoint=owner.checkpoint(Phase.EXECUTE_TOOLS),
    )
    assert (await store.load(owner.run_id)).calls == calls


async def test_a_call_that_is_to_begin_anew_has_no_record_of_intent_until_it_does(store: RunStore) -> None:
    owner = await create_started(store)
    await owner.ask("look")
    anew = replace(owner.calls[0], started=False, judged=True)
    await owner.write(answered(1), records=(ToolRecord(1, anew),))
    assert (await store.load(owner.run_id)).calls == (anew,)
    executions = (await store.get(owner.run_id)).tool_executions
    assert executions is not None
    assert executions[0].started_at is None
    await owner.write(answered(1), records=(ToolRecord(1, replace(anew, started=True)),))
    assert (await store.load(owner.run_id)).calls == (replace(anew, started=True),)


async def test_a_hold_that_has_ended_is_gone(store: RunStore) -> None:
    owner = await waiting_run(store, deferred(), status=S.RUNNING)
    freed = replace(deferred(), hold=None)
    await owner.write(answered(1), records=(ToolRecord(1, freed),))
    assert (await store.load(owner.run_id)).calls == (freed,)


async def test_a_step_that_is_asked_anew_has_other_calls_in_the_same_places(store: RunStore) -> None:
    owner = await waiting_run(store, deferred(), status=S.RUNNING)
    await post(store, owner)
    await owner.look()
    other = replace(deferred(), call=ToolCall("call-again", "send", "{}"), started=False, hold=None)
    await owner.write(answered(1), records=(ToolRecord(1, other),))
    assert (await store.load(owner.run_id)).calls == (other,)
    assert (await owner.look()).posted == ()
