"""Where a conversation is parted for a summary, and how a run goes through its own compaction."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.engine.actions import CallModel, Compact
from app.engine.compact_step import Compacted, NotCompacted, wanted
from app.engine.compaction import CompactionReason, NewCompaction, cut, summary_message, told, with_summary
from app.engine.errors import ModelError, ModelErrorCode
from app.engine.events import EventType
from app.engine.limits import RunLimits
from app.engine.messages import Message, Role, ThreadMessage, ToolCall
from app.engine.outcomes import CompactionEnded, ModelFailed
from app.engine.state import RunState
from app.engine.status import RunStatus
from app.engine.usage import Usage
from tests.unit.engine.builders import a_scope, an_agent
from tests.unit.engine.driven_run import DrivenRun
from tests.unit.engine.simulation import simulate

SUMMARY = NewCompaction(4, "They spoke of Bern.")
DONE = Compacted(SUMMARY, 4, 500, 100, "m", Usage(1, 50, 5), Decimal("0.01"))
TOO_LONG = ModelFailed(ModelError(ModelErrorCode.CONTEXT_OVERFLOW, "too long by 7 tokens"))


def user(text: str = "x") -> Message:
    return Message(Role.USER, text)


def asks(*ids: str) -> Message:
    return Message(Role.ASSISTANT, "", tuple(ToolCall(i, "read", "{}") for i in ids))


def result(call_id: str) -> Message:
    return Message(Role.TOOL, "found", tool_call_id=call_id)


def thread(*messages: Message) -> list[ThreadMessage]:
    return [ThreadMessage(2 * number, message, "run") for number, message in enumerate(messages, 1)]


# --- where ----------------------------------------------------------------------------------------------------


def test_the_last_messages_are_kept() -> None:
    parted = cut(thread(*[user()] * 30), 20)
    assert parted is not None
    assert (len(parted.old), len(parted.kept), parted.upto_seq) == (10, 20, 20)


@pytest.mark.parametrize("count", [0, 1, 19, 20])
def test_a_short_thread_is_left_as_it_is(count: int) -> None:
    assert cut(thread(*[user()] * count), 20) is None


def test_a_summary_alone_is_not_summarised_again() -> None:
    assert cut([summary_message(SUMMARY), *thread(*[user()] * 20)[2:]], 18) is None


@pytest.mark.parametrize("keep_last", [1, 2, 3])
def test_a_call_is_not_parted_from_its_results(keep_last: int) -> None:
    messages = thread(user(), asks("a", "b"), result("a"), user("in between"), result("b"))
    parted = cut(messages, keep_last)
    assert parted is not None
    assert [entry.seq for entry in parted.old] == [2]


def test_a_call_that_never_got_a_result_holds_nothing_together() -> None:
    parted = cut(thread(user(), asks("lost"), *[user()] * 8), 3)
    assert parted is not None
    assert len(parted.kept) == 3


def test_ids_that_come_again_belong_to_the_nearest_call() -> None:
    messages = thread(asks("1"), result("1"), user(), asks("1"), result("1"), user())
    parted = cut(messages, 3)
    assert parted is not None
    assert len(parted.kept) == 3


def test_where_tokens_are_bounded_fewer_are_kept_but_never_nothing() -> None:
    messages = thread(*[user()] * 30)
    parted = cut(messages, 20, most_tokens=50, tokens_of=lambda _: 10)
    assert parted is not None
    assert len(parted.kept) == 5
    parted = cut(messages, 20, most_tokens=5, tokens_of=lambda _: 10)
    assert parted is not None
    assert len(parted.kept) == 1


_KINDS = st.lists(st.sampled_from(["user", "ask", "answer", "lose"]), max_size=40)


@given(_KINDS, st.integers(1, 30), st.integers(1, 400))
def test_nothing_is_lost_and_no_pair_is_parted_wherever_it_is_cut(kinds: list[str], keep: int, most: int) -> None:
    messages: list[Message] = []
    waiting: list[str] = []
    for number, kind in enumerate(kinds):
        if kind == "ask":
            waiting += [f"{number}a", f"{number}b"]
            messages.append(asks(*waiting[-2:]))
        elif kind == "answer" and waiting:
            messages.append(result(waiting.pop(0)))
        elif kind == "lose" and waiting:
            waiting.pop()
        else:
            messages.append(user())
    entries = thread(*messages)
    parted = cut(entries, keep, most_tokens=most, tokens_of=lambda _: 10)
    if parted is None:
        return
    assert [*parted.old, *parted.kept] == entries
    assert parted.kept
    called = {call.id for entry in parted.old for call in entry.message.tool_calls}
    assert not called & {entry.message.tool_call_id for entry in parted.kept}


def test_the_summary_stands_before_what_came_after_it() -> None:
    messages = thread(user("1"), user("2"), user("3"))
    first, last = with_summary(messages, SUMMARY)
    assert (first.seq, last) == (4, messages[2])
    assert "They spoke of Bern." in first.message.text()


def test_what_is_summarised_names_calls_results_and_images_and_is_bounded() -> None:
    assert told(Message(Role.ASSISTANT, "Let me see.", (ToolCall("a", "read", '{"q":1}'),))) == (
        'assistant: Let me see.\n[calls read({"q":1}) as a]'
    )
    assert told(result("a")) == "result of a: found"
    assert told(Message(Role.USER, [{"type": "image_url", "image_url": {"url": "https://x/y.png"}}])) == (
        "user: [an image]"
    )
    assert len(told(user("x" * 10**6))) < 10_000


# --- in a run -------------------------------------------------------------------------------------------------


def test_a_conversation_that_is_too_long_for_the_model_is_compacted_and_the_call_made_once_more() -> None:
    run = DrivenRun()
    assert run.write(TOO_LONG) == Compact(1)
    assert run.write(CompactionEnded(DONE)) == CallModel(1)
    assert run.data(EventType.THREAD_COMPACTED) == [
        {
            "reason": "context_overflow",
            "upto_seq": 4,
            "messages_compacted": 4,
            "tokens_before": 500,
            "tokens_after": 100,
            "model": "m",
            "usage": Usage(1, 50, 5).as_dict(),
            "cost_usd": 0.01,
        }
    ]
    assert (run.state.usage, run.state.cost_usd) == (Usage(1, 50, 5), Decimal("0.01"))
    assert run.event_types().count("step_started") == 0, "the step had begun"
    run.write(TOO_LONG)
    assert run.outcome.status is RunStatus.FAILED
    assert run.outcome.error is not None
    assert run.outcome.error.code == "context_overflow"
    assert run.outcome.error.message == "too long by 7 tokens; the thread was compacted before the call"


@pytest.mark.parametrize("at_bound", [DONE, NotCompacted("the model was away")])
def test_a_call_that_is_too_long_after_a_compaction_at_the_bound_compacts_once_more(
    at_bound: Compacted | NotCompacted,
) -> None:
    run = DrivenRun(state=wanted(RunState(), CompactionReason.TOKEN_LIMIT, opened=False))
    assert run.write(CompactionEnded(at_bound)) == CallModel(1)
    assert run.write(TOO_LONG) == Compact(1)
    assert run.crash() == Compact(1)
    assert run.write(CompactionEnded(DONE)) == CallModel(1)
    run.write(TOO_LONG)
    assert run.outcome.error is not None
    assert run.outcome.error.message == "too long by 7 tokens; the thread was compacted before the call"


def test_a_run_that_is_resumed_after_its_thread_could_not_be_compacted_tries_again() -> None:
    run = DrivenRun()
    run.write(TOO_LONG)
    run.write(CompactionEnded(NotCompacted("the model was away")))
    assert run.outcome.status is RunStatus.FAILED
    assert run.crash() == CallModel(1)
    assert run.write(TOO_LONG) == Compact(1)


def test_a_later_step_may_compact_again() -> None:
    run = DrivenRun()
    run.write(TOO_LONG)
    run.write(CompactionEnded(DONE))
    run.state = RunState(step=2, compacting=run.state.compacting)
    assert run.write(TOO_LONG) == Compact(2)


def test_a_thread_that_cannot_be_compacted_fails_a_run_that_is_too_long_and_says_both() -> None:
    run = DrivenRun()
    run.write(TOO_LONG)
    run.write(CompactionEnded(NotCompacted("there is nothing before what has to stay")))
    assert [event.message for event in run.events if event.type is EventType.WARNING] == [
        "the conversation is too long for the model; the call is made once more only if it can be compacted",
        "the thread could not be compacted",
    ]
    assert run.outcome.error is not None
    assert run.outcome.error.message == (
        "too long by 7 tokens; the thread could not be compacted: there is nothing before what has to stay"
    )


def test_a_run_that_only_wanted_to_be_shorter_goes_on_without() -> None:
    run = DrivenRun(state=wanted(RunState(), CompactionReason.TOKEN_LIMIT, opened=False))
    assert run.write(CompactionEnded(NotCompacted("the model was away"))) == CallModel(1)
    assert run.data(EventType.WARNING) == [{"code": "compaction_failed", "problem": "the model was away"}]


def test_a_summary_counts_against_the_limits() -> None:
    run = DrivenRun(a_scope(an_agent(RunLimits(max_llm_calls=1))))
    run.write(TOO_LONG)
    run.write(CompactionEnded(DONE))
    assert run.outcome.error is not None
    assert run.outcome.error.code == "max_llm_calls"


def test_an_attempt_that_takes_over_compacts_what_its_predecessor_had_not() -> None:
    run = DrivenRun()
    run.write(TOO_LONG)
    assert run.crash() == Compact(1)
    run.write(CompactionEnded(DONE))
    assert run.crash() == CallModel(1)


def test_a_run_that_has_no_more_to_spend_after_a_compaction_ends_in_the_step_that_it_compacted_in() -> None:
    events = simulate(9549).events
    assert [event.type for event in events[-2:]] == [EventType.THREAD_COMPACTED, EventType.RUN_FAILED]
    assert [event.step for event in events[-2:]] == [2, 2]
