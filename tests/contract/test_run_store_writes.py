"""What any store of runs promises an owner: fenced writes, numbered events, and a place to go on from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal

import orjson
import pytest

from app.engine.events import ResumeReason
from app.engine.messages import Role
from app.engine.ownership import Committed, DeltaOutcome, DeltaWrite, Fence
from app.engine.ports import RunStore
from app.engine.state import Phase
from app.engine.status import RunStatus
from app.engine.store_errors import RunNotFound
from app.engine.tools import ToolResult
from app.engine.transition import ToolRecord
from app.engine.usage import Usage
from tests.contract.stores import (
    AGENT,
    OTHER_OWNER,
    STOPPED,
    Owner,
    a_run,
    answered,
    begins,
    call,
    claim_only,
    create_owned,
    create_started,
    delta,
    events_of,
    new_id,
    result,
    texts_of,
    types_of,
    user,
)

# --- writing ------------------------------------------------------------------------------------------------


async def test_events_are_numbered_from_one_without_gaps_whoever_writes_them(store: RunStore) -> None:
    owner = await create_started(store)
    await owner.say("a", "b")
    await owner.ask("look")
    await owner.end_call(0)
    await owner.close_step()
    await store.release(owner.fence, 1.0)
    await store.pause(owner.run_id)
    await store.resume(owner.run_id, None)
    again = await claim_only(store, owner.new)
    await again.say("c")
    await store.stop(owner.run_id, RunStatus.CANCELLED, STOPPED)
    events = await events_of(store, owner.run_id)
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert (await store.get(owner.run_id)).last_event_seq == len(events)
    assert [event.created_at for event in events] == sorted(event.created_at for event in events)


async def test_a_write_answers_with_the_events_that_a_reader_reads(store: RunStore) -> None:
    owner = await create_owned(store)
    started = await owner.start()
    said = await owner.say("Grüße\u2028")
    assert isinstance(said, Committed)
    events = await events_of(store, owner.run_id)
    assert [event.line() for event in events] == [event.line() for event in (*started.events, *said.events)]
    assert orjson.loads(events[-1].line())["data"] == {"delta": "Grüße\u2028"}
    assert {event.created_at.utcoffset() is not None for event in events} == {True}


async def test_a_reader_gets_the_suffix_behind_its_cursor(store: RunStore) -> None:
    owner = await create_started(store)
    await owner.say("a", "b", "c")
    everything = await events_of(store, owner.run_id)
    for after in range(len(everything) + 1):
        assert await store.read_events(owner.run_id, after, 100) == everything[after:]
        assert await store.read_events(owner.run_id, after, 2) == everything[after : after + 2]


async def test_a_first_write_brings_the_input_into_the_thread_before_its_own_messages(
    store: RunStore,
) -> None:
    owner = await create_owned(store, a_run(input=(user("one"), user("two"))))
    assert await texts_of(store, owner.thread_key) == []
    committed = await owner.start(messages=(user("three"),))
    assert (committed.first_message_seq, committed.message_seq) == (1, 3)
    messages = await store.messages_after(owner.thread_key, 0)
    assert [(entry.seq, entry.message.text(), entry.run_id) for entry in messages] == [
        (1, "one", owner.run_id),
        (2, "two", owner.run_id),
        (3, "three", owner.run_id),
    ]
    assert [entry.seq for entry in await store.messages_after(owner.thread_key, 2)] == [3]


async def test_a_write_without_messages_answers_with_no_place(store: RunStore) -> None:
    owner = await create_started(store)
    committed = await owner.write(answered(1))
    assert committed is not None
    assert (committed.first_message_seq, committed.message_seq) == (None, None)


async def test_messages_keep_their_calls_parts_and_ids(store: RunStore) -> None:
    picture = replace(
        user(""),
        content=[{"type": "text", "text": "see"}, {"type": "image_url", "image_url": {"url": "x:y"}}],
    )
    owner = await create_started(store, a_run(input=(picture,)))
    await owner.ask("look")
    await owner.close_step()
    shown, asked, answer = [entry.message for entry in await store.messages_after(owner.thread_key, 0)]
    assert shown == picture
    assert (asked.role, asked.tool_calls) == (Role.ASSISTANT, (call().call,))
    assert (answer.role, answer.tool_call_id) == (Role.TOOL, "call-0")


async def test_a_write_moves_step_usage_cost_and_time(store: RunStore) -> None:
    owner = await create_started(store)
    usage = Usage(2, 30, 20, 4, 3)
    await owner.write(answered(3), step=3, usage=usage, cost_usd=Decimal("0.0125"), elapsed_s=1.5)
    run = await store.get(owner.run_id)
    assert (run.step, run.usage, run.cost_usd, run.elapsed_s) == (3, usage, Decimal("0.0125"), 1.5)
    await owner.write(answered(3), step=3, usage=usage, cost_usd=None, elapsed_s=2.0)
    assert (await store.get(owner.run_id)).cost_usd is None


async def test_tool_executions_tell_asked_started_and_ended(store: RunStore) -> None:
    owner = await create_started(store)
    refused = ToolResult(False, None, "no such tool", "no such tool", 0.0)
    asked = ToolRecord(1, call(2, "gone"))
    await owner.ask("look", "find")
    await owner.write(answered(1), records=(asked,))
    await owner.end_call(1, result("b"))
    await owner.write(answered(1), records=(ToolRecord(1, replace(asked.call, result=refused)),))
    executions = (await store.get(owner.run_id)).tool_executions
    assert executions is not None
    assert [(one.step, one.call_index, one.tool_name, one.success) for one in executions] == [
        (1, 0, "look", None),
        (1, 1, "find", True),
        (1, 2, "gone", False),
    ]
    assert [(one.started_at is not None, one.finished_at is not None) for one in executions] == [
        (True, False),
        (True, True),
        (False, True),
    ]
    assert (executions[1].output, executions[1].error, executions[1].latency_ms) == ('"b"', None, 1.5)
    assert (executions[2].output, executions[2].error) == (None, "no such tool")
    assert executions[0].arguments == '{"q": 1}'
    assert (await store.get(owner.run_id, with_tools=False)).tool_executions in (None, ())


@pytest.mark.parametrize("status", [RunStatus.COMPLETED, RunStatus.DEGRADED, RunStatus.FAILED])
async def test_a_terminal_write_stores_status_event_result_and_error_together(
    store: RunStore, status: RunStatus
) -> None:
    owner = await create_started(store)
    committed = await owner.finish(status, "the end")
    run = await store.get(owner.run_id)
    assert committed.status is run.status is status
    assert (run.result, run.owner) == ({"final_text": "the end"}, None)
    assert run.error == (None if status is RunStatus.COMPLETED else STOPPED)
    assert run.finished_at is not None
    assert orjson.loads(committed.events[-1].body)["state"] == status


# --- the fence ----------------------------------------------------------------------------------------------

LOST: dict[str, Callable[[Fence], Fence]] = {
    "an older epoch": lambda fence: replace(fence, epoch=fence.epoch - 1),
    "a newer epoch": lambda fence: replace(fence, epoch=fence.epoch + 1),
    "an older write": lambda fence: replace(fence, write_no=fence.write_no - 1),
    "a newer write": lambda fence: replace(fence, write_no=fence.write_no + 1),
    "no such run": lambda fence: replace(fence, run_id=new_id()),
}


@pytest.mark.parametrize("change", LOST.values(), ids=LOST.keys())
async def test_a_write_under_a_lost_fence_writes_nothing(store: RunStore, change: Callable[[Fence], Fence]) -> None:
    owner = await create_started(store)
    held, owner.fence = owner.fence, change(owner.fence)
    await _writes_nothing(store, owner)
    owner.fence = held
    assert await owner.write(answered(1)) is not None


async def _writes_nothing(store: RunStore, owner: Owner) -> None:
    async def picture() -> object:
        run = await store.get(owner.run_id)
        return run, await events_of(store, owner.run_id), await texts_of(store, owner.thread_key)

    run_id = owner.new.run_id
    before, loaded = await picture(), await store.load(run_id)
    late = await owner.write(
        answered(1),
        opening=begins(2),
        messages=(user("late"),),
        records=(ToolRecord(1, call()),),
        checkpoint=owner.checkpoint(Phase.EXECUTE_TOOLS),
        status=RunStatus.COMPLETED,
        result={"final_text": "late"},
    )
    assert late is None
    assert await owner.say("late") is DeltaOutcome.LOST
    assert not await store.release(owner.fence, 99.0)
    assert await picture() == before
    again = await store.load(run_id)
    assert replace(again, now=loaded.now) == loaded


@pytest.mark.parametrize("status", [RunStatus.CANCELLED, RunStatus.INTERRUPTED])
async def test_a_late_write_after_a_stop_writes_nothing(store: RunStore, status: RunStatus) -> None:
    owner = await create_started(store)
    await store.stop(owner.run_id, status, STOPPED)
    await _writes_nothing(store, owner)


async def test_a_late_write_after_a_release_and_another_claim_writes_nothing(store: RunStore) -> None:
    owner = await create_started(store)
    await store.release(owner.fence, 1.0)
    await _writes_nothing(store, owner)
    await claim_only(store, owner.new, OTHER_OWNER)
    await _writes_nothing(store, owner)


async def test_a_write_that_was_committed_is_not_committed_again(store: RunStore) -> None:
    owner = await create_started(store)
    before = owner.fence
    assert await owner.write(answered(1)) is not None
    owner.fence = before
    await _writes_nothing(store, owner)


async def test_a_run_takes_no_write_from_its_owner_once_it_is_terminal(store: RunStore) -> None:
    owner = await create_started(store)
    await owner.finish()
    await _writes_nothing(store, owner)


# --- deltas -------------------------------------------------------------------------------------------------


async def test_deltas_of_several_runs_are_appended_each_under_its_own_fence(store: RunStore) -> None:
    first, lost, last = [await create_started(store) for _ in range(3)]
    await store.stop(lost.run_id, RunStatus.CANCELLED, STOPPED)
    batch = [
        DeltaWrite(one.fence, one.new.identity, (delta(f"{i}"), delta("!")))
        for i, one in enumerate((first, lost, last))
    ]
    answers = await store.append_deltas(batch)
    assert answers[1] is DeltaOutcome.LOST
    for owner, answer, text in ((first, answers[0], "0"), (last, answers[2], "2")):
        assert isinstance(answer, Committed)
        assert [event.seq for event in answer.events] == [4, 5]
        assert (await events_of(store, owner.run_id))[-2:] == list(answer.events)
        assert orjson.loads(answer.events[0].body)["data"] == {"delta": text}
        owner.fence = answer.fence
        assert await owner.write(answered(1)) is not None
    assert (await types_of(store, lost.run_id))[-1] == "run_cancelled"


async def test_an_empty_batch_of_deltas_is_nothing(store: RunStore) -> None:
    assert await store.append_deltas([]) == []


# --- taking over --------------------------------------------------------------------------------------------


async def test_an_attempt_that_takes_over_finds_the_last_checkpoint_and_all_that_was_committed(
    store: RunStore,
) -> None:
    owner = await create_started(store, a_run(context={"city": "Rome"}))
    await owner.ask("look")
    await owner.close_step(elapsed_s=2.0)
    asked = await owner.ask("look", "find")
    await owner.end_call(1, result("b"))
    await owner.say("void")
    assert await store.release(owner.fence, 4.5)
    await claim_only(store, owner.new, OTHER_OWNER)

    loaded = await store.load(owner.run_id)
    assert loaded.run == await store.get(owner.run_id)
    assert (loaded.agent, loaded.run.context) == (AGENT, {"city": "Rome"})
    assert loaded.checkpoint == owner.checkpoint(Phase.EXECUTE_TOOLS)
    assert loaded.checkpoint_seq == asked.events[0].seq
    assert [(one.index, one.call, one.started, one.result) for one in loaded.calls] == [
        (0, call(0, "look").call, True, None),
        (1, call(1, "find").call, True, result("b")),
    ]
    assert [entry.message.role for entry in loaded.messages] == ["user", "assistant", "tool", "assistant"]
    assert loaded.resume_reason is ResumeReason.DRAIN
    assert (loaded.elapsed_s, loaded.wall_from_s) == (4.5, 0.0)


async def test_what_an_action_begins_with_comes_after_the_checkpoint(store: RunStore) -> None:
    owner = await create_owned(store)
    started = await owner.start()
    loaded = await store.load(owner.run_id)
    assert [event.type for event in started.events] == ["run_started", "step_started", "llm_called"]
    assert loaded.checkpoint_seq == started.events[0].seq


async def test_an_attempt_before_which_nothing_was_written_is_a_first_one(store: RunStore) -> None:
    owner = await create_owned(store)
    await store.release(owner.fence, 0.0)
    again = await claim_only(store, owner.new, OTHER_OWNER)
    loaded = await store.load(owner.run_id)
    assert (loaded.checkpoint, loaded.checkpoint_seq, loaded.calls) == (None, 0, ())
    assert (loaded.messages, loaded.resume_reason) == ((), None)
    await again.start()
    assert await texts_of(store, owner.thread_key) == ["hello"]


async def test_a_later_run_finds_the_messages_of_the_earlier_ones(store: RunStore) -> None:
    await (await create_started(store, a_run("talk", "first"))).finish(text="answer")
    second = await create_started(store, a_run("talk", "second"))
    assert [entry.message.text() for entry in (await store.load(second.run_id)).messages] == [
        "first",
        "answer",
        "second",
    ]


async def test_a_released_run_is_queued_and_claimed_by_whoever_comes(store: RunStore) -> None:
    owner = await create_started(store)
    assert await store.release(owner.fence, 3.0)
    run = await store.get(owner.run_id)
    assert (run.status, run.owner, run.elapsed_s) == (RunStatus.QUEUED, None, 3.0)
    assert not await store.release(owner.fence, 3.0)
    await claim_only(store, owner.new, OTHER_OWNER)


async def test_a_run_that_is_released_for_later_is_not_claimed_before(store: RunStore) -> None:
    owner = await create_started(store)
    assert await store.release(owner.fence, 3.0, delay_s=3600.0)
    assert (await store.get(owner.run_id)).status is RunStatus.QUEUED
    assert await store.claim(OTHER_OWNER, 10) == []


async def test_a_load_tells_the_store_s_time(store: RunStore) -> None:
    owner = await create_owned(store)
    committed = await owner.start()
    loaded = await store.load(owner.run_id)
    assert timedelta() <= loaded.now - committed.events[-1].created_at < timedelta(minutes=1)


async def test_unknown_runs_and_threads_are_not_found(store: RunStore) -> None:
    for run_id in (new_id(), "no-uuid"):
        for ask in (store.get(run_id), store.load(run_id), store.pause(run_id), store.resume(run_id, None)):
            with pytest.raises(RunNotFound):
                await ask
        with pytest.raises(RunNotFound):
            await store.stop(run_id, RunStatus.CANCELLED, STOPPED)
    assert await store.messages_after(new_id(), 0) == []
    assert await store.read_events(new_id(), 0, 10) == []
