"""What any store of runs promises about questions: asked with a write, decided once, and then the run goes on."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from app.engine.events import ResumeReason
from app.engine.interactions import Answer, Decision, InteractionKind, InteractionStatus, NewInteraction
from app.engine.moves import InteractionEnd
from app.engine.ownership import Committed
from app.engine.ports import RunStore
from app.engine.records import Resolved, Stimulated
from app.engine.state import Gate, Hold, HoldKind, RunState, checkpoint_of
from app.engine.status import RunStatus as S
from app.engine.store_errors import InteractionDecided, InteractionNotFound, RunNotFound
from tests.contract.stores import (
    STOPPED,
    Owner,
    answered,
    claim_only,
    create_started,
    events_of,
    new_id,
    types_of,
)
from tests.contract.waiting import (
    APPROVED,
    DENIED,
    a_question,
    asking,
    asking_run,
    data_of,
    hold,
    in_status,
    only_question,
    state_of,
)

ANSWERABLE = {S.WAITING: S.QUEUED, S.QUEUED: S.QUEUED, S.RUNNING: S.RUNNING, S.PAUSED: S.PAUSED}


def end_of(question: NewInteraction, status: InteractionStatus, answer: Answer | None) -> InteractionEnd:
    return InteractionEnd(question.interaction_id, question.call_index, status, answer)


async def resolved_events(store: RunStore, owner: Owner) -> int:
    return (await types_of(store, owner.run_id)).count("interaction_resolved")


# --- asking -------------------------------------------------------------------------------------------------


async def test_a_question_is_asked_with_a_write_and_reads_back_as_it_was_asked(store: RunStore) -> None:
    question = a_question()
    owner = await asking_run(store, question)
    record = await only_question(store, owner)
    assert (record.run_id, record.interaction_id) == (owner.run_id, question.interaction_id)
    assert (record.step, record.call_index, record.kind) == (1, 0, InteractionKind.APPROVAL)
    assert (record.tool_name, record.tool_call_id, record.arguments) == ("send", "call-0", '{"q": 1}')
    assert (record.prompt, record.reason, record.expires_at) == (
        question.prompt,
        question.reason,
        question.expires_at,
    )
    assert (record.status, record.answer, record.resolved_at) == (InteractionStatus.PENDING, None, None)
    assert record.created_at.utcoffset() is not None


async def test_questions_are_read_in_the_order_in_which_they_were_asked(store: RunStore) -> None:
    questions = [a_question(i) for i in range(4)]
    owner = await asking_run(store, *questions)
    ids = [record.interaction_id for record in await store.interactions(owner.run_id)]
    assert ids == [question.interaction_id for question in questions]


async def test_a_run_that_asked_nothing_has_no_questions_and_an_unknown_one_is_not_found(store: RunStore) -> None:
    owner = await create_started(store)
    assert await store.interactions(owner.run_id) == []
    for run_id in (new_id(), "no-uuid"):
        with pytest.raises(RunNotFound):
            await store.interactions(run_id)


async def test_what_a_run_waits_for_is_told_while_it_waits_and_not_after(store: RunStore) -> None:
    first, second = a_question(0), a_question(1)
    owner = await asking_run(store, first, second)
    waits = [{"kind": "interaction", "id": question.interaction_id} for question in (first, second)]
    assert list((await store.get(owner.run_id)).waiting_for) == waits
    assert list((await store.load(owner.run_id)).run.waiting_for) == waits
    await store.answer(owner.run_id, first.interaction_id, APPROVED)
    assert (await store.get(owner.run_id)).waiting_for == ()


@pytest.mark.parametrize("status", [S.PAUSED, S.QUEUED, S.RUNNING, S.CANCELLED])
async def test_a_run_that_does_not_wait_any_more_waits_for_nothing(store: RunStore, status: S) -> None:
    owner = await asking_run(store, a_question())
    if status is S.CANCELLED:
        await store.stop(owner.run_id, status, STOPPED)
    else:
        await in_status(owner, status)
    assert (await store.get(owner.run_id)).waiting_for == ()


# --- answering ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("before", "after"), ANSWERABLE.items())
async def test_an_answer_is_stored_told_and_wakes_the_run_whatever_it_is_doing(
    store: RunStore, before: S, after: S
) -> None:
    question = a_question()
    owner = await asking_run(store, question)
    await in_status(owner, before)
    resolved = await store.answer(owner.run_id, question.interaction_id, APPROVED)
    assert (resolved.run.run_id, resolved.run.status, resolved.run.changed) == (owner.run_id, after, True)
    record = resolved.interaction
    assert (record.status, record.answer) == (InteractionStatus.RESOLVED, APPROVED)
    assert record.resolved_at is not None
    assert await only_question(store, owner) == record
    run = await store.get(owner.run_id)
    assert (run.status, run.wakes) == (after, 1)
    (event,) = resolved.run.events
    assert (await events_of(store, owner.run_id))[-1] == event
    assert (event.type, event.seq, state_of(event)) == ("interaction_resolved", run.last_event_seq, after)
    assert data_of(event) == record.resolved_event_data()


async def test_a_run_that_was_woken_is_claimed_and_finds_the_answer(store: RunStore) -> None:
    question = a_question()
    owner = await asking_run(store, question)
    assert await store.claim(new_id(), 10) == []
    await store.answer(owner.run_id, question.interaction_id, DENIED)
    again = await claim_only(store, owner.new)
    assert again.wakes == 1
    loaded = await store.load(owner.run_id)
    assert loaded.resume_reason is ResumeReason.WAKE
    assert loaded.stimuli == await again.look()
    assert loaded.stimuli.wakes == 1
    assert loaded.stimuli.interactions == (end_of(question, InteractionStatus.RESOLVED, DENIED),)
    assert [one.hold for one in loaded.calls] == [asking(question).hold]
    assert isinstance(await again.try_write(answered(1)), Committed)


async def test_questions_without_an_answer_are_not_among_what_was_stored(store: RunStore) -> None:
    first, second = a_question(0), a_question(1)
    owner = await asking_run(store, first, second)
    assert (await owner.look()).interactions == ()
    await store.answer(owner.run_id, second.interaction_id, APPROVED)
    assert [end.interaction_id for end in (await owner.look()).interactions] == [second.interaction_id]


async def test_an_answer_comes_back_whole(store: RunStore) -> None:
    question = a_question(kind=InteractionKind.INPUT)
    owner = await asking_run(store, question)
    given = Answer(Decision.APPROVE, '{"city":"Zürich"}', '{"q":2}', "as asked", "ann")
    resolved = await store.answer(owner.run_id, question.interaction_id, given)
    assert resolved.interaction.answer == given
    (end,) = (await owner.look()).interactions
    assert end.answer == given
    assert "Zürich" not in resolved.run.events[0].body, "what was supplied is not for the log"


async def test_a_second_answer_finds_the_run_queued_already(store: RunStore) -> None:
    first, second = a_question(0), a_question(1)
    owner = await asking_run(store, first, second)
    await store.answer(owner.run_id, first.interaction_id, APPROVED)
    resolved = await store.answer(owner.run_id, second.interaction_id, DENIED)
    assert resolved.run.status is S.QUEUED
    again = await claim_only(store, owner.new)
    stimuli = await again.look()
    assert (stimuli.wakes, len(stimuli.interactions)) == (2, 2)


async def test_a_paused_run_finds_the_answer_when_it_is_resumed(store: RunStore) -> None:
    question = a_question()
    owner = await asking_run(store, question)
    await store.pause(owner.run_id)
    await store.answer(owner.run_id, question.interaction_id, APPROVED)
    assert await store.claim(new_id(), 10) == []
    await store.resume(owner.run_id, None)
    again = await claim_only(store, owner.new)
    assert again.wakes == 1
    assert (await again.look()).interactions == (end_of(question, InteractionStatus.RESOLVED, APPROVED),)


async def test_a_question_about_a_model_call_is_one_of_the_step(store: RunStore) -> None:
    question = a_question(None)
    owner = await create_started(store)
    gate = Gate(1, Hold(HoldKind.INTERACTION, question.interaction_id, question=question.kind))
    checkpoint = checkpoint_of(RunState(gate=gate), waits=True)
    await owner.write(answered(1), status=S.WAITING, interactions=(question,), checkpoint=checkpoint)
    await store.answer(owner.run_id, question.interaction_id, APPROVED)
    assert (await owner.look()).interactions == (end_of(question, InteractionStatus.RESOLVED, APPROVED),)


async def test_questions_of_earlier_steps_are_not_among_what_was_stored(store: RunStore) -> None:
    question = a_question()
    owner = await asking_run(store, question)
    await store.answer(owner.run_id, question.interaction_id, APPROVED)
    again = await claim_only(store, owner.new)
    await again.close_step()
    assert (await again.look()).interactions == ()
    later = a_question(step=2)
    await hold(again, asking(later), interactions=(later,))
    await store.answer(owner.run_id, later.interaction_id, DENIED)
    assert [end.interaction_id for end in (await again.look()).interactions] == [later.interaction_id]


# --- deciding once ------------------------------------------------------------------------------------------


async def test_the_same_decision_again_changes_nothing(store: RunStore) -> None:
    question = a_question()
    owner = await asking_run(store, question)
    first = await store.answer(owner.run_id, question.interaction_id, APPROVED)
    before = await store.get(owner.run_id)
    again = await store.answer(owner.run_id, question.interaction_id, APPROVED)
    assert again == Resolved(first.interaction, Stimulated(owner.run_id, S.QUEUED, changed=False))
    assert await store.get(owner.run_id) == before


OTHERS = {
    "another decision": DENIED,
    "another value": replace(APPROVED, value='"b"'),
    "other arguments": replace(APPROVED, arguments='{"q":2}'),
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS.keys())
async def test_another_decision_is_refused_and_the_first_one_stands(store: RunStore, other: Answer) -> None:
    question = a_question()
    owner = await asking_run(store, question)
    await store.answer(owner.run_id, question.interaction_id, APPROVED)
    before = await store.get(owner.run_id)
    with pytest.raises(InteractionDecided):
        await store.answer(owner.run_id, question.interaction_id, other)
    assert (await only_question(store, owner)).answer == APPROVED
    assert await store.get(owner.run_id) == before


async def test_of_two_decisions_at_once_exactly_one_counts(store: RunStore) -> None:
    for _ in range(10):
        question = a_question()
        owner = await asking_run(store, question)
        outcomes = await asyncio.gather(
            *(store.answer(owner.run_id, question.interaction_id, answer) for answer in (APPROVED, DENIED)),
            return_exceptions=True,
        )
        (won,) = [outcome for outcome in outcomes if isinstance(outcome, Resolved)]
        (lost,) = [outcome for outcome in outcomes if not isinstance(outcome, Resolved)]
        assert isinstance(lost, InteractionDecided)
        assert await only_question(store, owner) == won.interaction
        assert (await store.get(owner.run_id)).wakes == 1
        assert await resolved_events(store, owner) == 1


async def test_of_the_same_decision_twice_at_once_one_changes_something(store: RunStore) -> None:
    question = a_question()
    owner = await asking_run(store, question)
    outcomes = await asyncio.gather(*(store.answer(owner.run_id, question.interaction_id, APPROVED) for _ in range(2)))
    assert sorted(outcome.run.changed for outcome in outcomes) == [False, True]
    assert await resolved_events(store, owner) == 1


async def test_a_question_that_a_run_does_not_have_is_not_found(store: RunStore) -> None:
    question = a_question()
    await asking_run(store, question)
    other = await create_started(store)
    for interaction_id in (question.interaction_id, new_id(), "no-uuid"):
        with pytest.raises(InteractionNotFound):
            await store.answer(other.run_id, interaction_id, APPROVED)
    with pytest.raises((RunNotFound, InteractionNotFound)):
        await store.answer(new_id(), question.interaction_id, APPROVED)


# --- questions that need no answer --------------------------------------------------------------------------


@pytest.mark.parametrize("status", [S.CANCELLED, S.INTERRUPTED, S.FAILED])
@pytest.mark.parametrize("before", ANSWERABLE)
async def test_stopping_a_run_closes_its_questions_and_takes_no_answer_any_more(
    store: RunStore, before: S, status: S
) -> None:
    kept, closed = a_question(0), a_question(1)
    owner = await asking_run(store, kept, closed)
    await store.answer(owner.run_id, kept.interaction_id, APPROVED)
    if before is S.RUNNING:
        await claim_only(store, owner.new)
    elif before is S.PAUSED:
        await store.pause(owner.run_id)
    await store.stop(owner.run_id, status, STOPPED)
    told, gone = await store.interactions(owner.run_id)
    assert (told.status, told.answer) == (InteractionStatus.RESOLVED, APPROVED)
    assert (gone.status, gone.answer) == (InteractionStatus.CLOSED, None)
    assert gone.resolved_at is not None
    before_answer = await store.get(owner.run_id), await events_of(store, owner.run_id)
    with pytest.raises(InteractionDecided):
        await store.answer(owner.run_id, closed.interaction_id, APPROVED)
    assert (await store.get(owner.run_id), await events_of(store, owner.run_id)) == before_answer
    assert await resolved_events(store, owner) == 1


async def test_an_answer_against_a_cancel_counts_or_is_refused(store: RunStore) -> None:
    for _ in range(10):
        question = a_question()
        owner = await asking_run(store, question)
        outcome, _ = await asyncio.gather(
            store.answer(owner.run_id, question.interaction_id, APPROVED),
            store.stop(owner.run_id, S.CANCELLED, STOPPED),
            return_exceptions=True,
        )
        assert (await store.get(owner.run_id)).status is S.CANCELLED
        record = await only_question(store, owner)
        if isinstance(outcome, Resolved):
            assert (record.status, record.answer) == (InteractionStatus.RESOLVED, APPROVED)
        else:
            assert isinstance(outcome, InteractionDecided)
            assert record.status is InteractionStatus.CLOSED


async def test_a_write_closes_questions_that_need_no_answer_and_leaves_those_that_have_one(store: RunStore) -> None:
    kept, closed, pending = a_question(0), a_question(1), a_question(2)
    owner = await asking_run(store, kept, closed, pending, status=S.RUNNING)
    await store.answer(owner.run_id, kept.interaction_id, APPROVED)
    await owner.look()
    await owner.surely(answered(1), closes=(kept.interaction_id, closed.interaction_id))
    assert [record.status for record in await store.interactions(owner.run_id)] == [
        InteractionStatus.RESOLVED,
        InteractionStatus.CLOSED,
        InteractionStatus.PENDING,
    ]
    with pytest.raises(InteractionDecided):
        await store.answer(owner.run_id, closed.interaction_id, APPROVED)


async def test_a_run_that_ended_takes_no_answer(store: RunStore) -> None:
    question = a_question()
    owner = await asking_run(store, question, status=S.RUNNING)
    await owner.finish(S.FAILED, closes=(question.interaction_id,))
    with pytest.raises(InteractionDecided):
        await store.answer(owner.run_id, question.interaction_id, APPROVED)


async def test_a_resumed_run_finds_that_its_question_was_closed(store: RunStore) -> None:
    question = a_question()
    owner = await asking_run(store, question)
    await store.stop(owner.run_id, S.INTERRUPTED, STOPPED)
    await store.resume(owner.run_id, None)
    await claim_only(store, owner.new)
    loaded = await store.load(owner.run_id)
    assert loaded.stimuli.interactions == (end_of(question, InteractionStatus.CLOSED, None),)
    assert [one.hold for one in loaded.calls] == [asking(question).hold]


async def test_a_run_that_its_owner_ended_finds_that_its_question_was_closed(store: RunStore) -> None:
    question = a_question()
    owner = await asking_run(store, question, status=S.RUNNING)
    await owner.finish(S.INTERRUPTED, messages=(), closes=(question.interaction_id,))
    await store.resume(owner.run_id, None)
    assert (await owner.look()).interactions == (end_of(question, InteractionStatus.CLOSED, None),)


async def test_a_pause_leaves_questions_open(store: RunStore) -> None:
    owner = await asking_run(store, a_question())
    await store.pause(owner.run_id)
    assert (await only_question(store, owner)).status is InteractionStatus.PENDING
