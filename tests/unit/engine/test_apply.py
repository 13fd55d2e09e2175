"""What an outcome changes, and the facts that it leaves."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import orjson
import pytest

from app.engine.actions import CallModel, ExecuteTools, Finish
from app.engine.agent import LlmFailurePolicy, ResolvedAgent, ToolFailurePolicy
from app.engine.apply import apply, begun, closing_event, opening
from app.engine.decide import decide
from app.engine.effects import ToolEffect
from app.engine.errors import ModelError, ModelErrorCode, RunError
from app.engine.events import Event, EventType, encode
from app.engine.messages import Message, Role, ToolCall
from app.engine.model import FinishReason, ModelResponse
from app.engine.moves import Ended
from app.engine.outcomes import ActionOutcome, CallsMoved, ModelFailed, ModelResponded
from app.engine.state import Phase, RunState, finished
from app.engine.status import RunStatus
from app.engine.tools import ToolResult
from app.engine.transition import Transition
from app.engine.usage import Usage
from tests.unit.engine.builders import RUN, a_response, a_result, a_scope, an_agent

READ, PUT, SEND = (ToolCall(name, name, '{"q": 1}') for name in ("read", "put", "send"))


def applied(state: RunState, outcome: ActionOutcome, agent: ResolvedAgent | None = None) -> Transition:
    return apply(state, outcome, a_scope(agent))


def respond(response: ModelResponse, state: RunState | None = None, **changes: object) -> Transition:
    return applied(state or RunState(), ModelResponded(replace(response, **changes), 12.3456))


def begun_batch(*calls: ToolCall, agent: ResolvedAgent | None = None) -> RunState:
    state = respond(a_response("", *calls)).state
    return begun(state, decide(state, agent or an_agent()))


def ended(state: RunState, *results: tuple[int, ToolResult], agent: ResolvedAgent | None = None) -> Transition:
    return applied(state, CallsMoved(tuple(Ended(index, result) for index, result in results)), agent)


def warnings(transition: Transition) -> list[str]:
    return [event.data["code"] for event in transition.events if event.type is EventType.WARNING]


# --- the model answered -------------------------------------------------------------------------------------


def test_a_whole_text_completes_the_run() -> None:
    done = respond(a_response("42"))
    assert done.state.outcome is not None
    assert (done.state.outcome.status, done.state.outcome.final_text) == (RunStatus.COMPLETED, "42")
    assert done.messages == (Message(Role.ASSISTANT, "42"),)
    assert [event.type for event in done.events] == [EventType.LLM_COMPLETED]


def test_an_answer_is_told_with_all_that_is_known_of_it() -> None:
    usage = Usage(1, 10, 5, 2, 3)
    done = respond(a_response("42"), usage=usage, cost_usd=Decimal("0.000125"), reasoning="six by seven")
    assert done.events[0].data == {
        "model": "answer",
        "provider": "scripted",
        "finish_reason": "stop",
        "text": "42",
        "reasoning": "six by seven",
        "tool_call_count": 0,
        "usage": usage.as_dict(),
        "latency_ms": 12.346,
        "cost_usd": 0.000125,
        "reused": False,
    }
    assert (done.state.usage, done.state.cost_usd) == (usage, Decimal("0.000125"))
    assert (done.state.model, done.state.provider) == ("answer", "scripted")


@pytest.mark.parametrize(
    ("reason", "code"),
    [(FinishReason.LENGTH, "truncated_response"), (FinishReason.CONTENT_FILTER, "content_filtered")],
)
def test_a_text_that_was_cut_off_degrades_the_run_and_says_so(reason: FinishReason, code: str) -> None:
    done = respond(a_response("half an ans"), finish_reason=reason)
    assert done.state.outcome is not None
    assert (done.state.outcome.status, done.state.outcome.final_text) == (RunStatus.DEGRADED, "half an ans")
    assert done.state.outcome.error is not None
    assert done.state.outcome.error.code == code
    assert warnings(done) == [code]


def test_an_empty_answer_is_no_answer() -> None:
    failed = respond(a_response(""))
    assert failed.state.outcome is not None
    assert (failed.state.outcome.status, warnings(failed)) == (RunStatus.FAILED, ["empty_response"])
    assert failed.messages == ()
    earlier = respond(a_response(""), RunState(best_text="before"))
    assert earlier.state.outcome is not None
    assert (earlier.state.outcome.status, earlier.state.outcome.final_text) == (RunStatus.DEGRADED, "before")


def test_an_unknown_price_and_an_estimated_usage_are_said_so() -> None:
    done = respond(a_response("42"), cost_usd=None, usage_estimated=True)
    assert warnings(done) == ["usage_estimated", "price_unknown"]
    assert done.state.cost_usd is None
    assert respond(a_response("42"), done.state).state.cost_usd is None, "unknown stays unknown"


def test_calls_are_opened_with_the_effects_of_their_tools() -> None:
    asked = respond(a_response("let me see", READ, PUT, SEND, ToolCall("x", "unknown", "{}")))
    assert asked.state.phase is Phase.EXECUTE_TOOLS
    assert [call.effect for call in asked.state.calls] == [
        ToolEffect.READ_ONLY,
        ToolEffect.IDEMPOTENT,
        ToolEffect.UNSAFE,
        ToolEffect.UNSAFE,
    ]
    latest = {record.call.index: record.call for record in asked.records}
    assert [latest[index] for index in sorted(latest)] == list(asked.state.calls)
    assert {record.step for record in asked.records} == {1}
    assert not any(call.started for call in asked.state.calls)
    assert asked.messages == (Message(Role.ASSISTANT, "let me see", tuple(call.call for call in asked.state.calls)),)
    assert asked.state.best_text == "let me see"


@pytest.mark.parametrize(
    ("ids", "used", "expected"),
    [
        (["a", "b"], set(), ["a", "b"]),
        (["a", "a"], set(), ["a", "a-1-1"]),
        (["", ""], set(), ["call-1-0", "call-1-1"]),
        (["a"], {"a"}, ["a-1-0"]),
        (["a"], {"a", "a-1-0"}, ["a-1-0-1-0"]),
        (["", "call-1-0"], set(), ["call-1-0", "call-1-0-1-1"]),
        (["a-1-1", "a-1-1", "a"], {"a"}, ["a-1-1", "a-1-1-1-1", "a-1-2"]),
    ],
)
def test_repeated_and_missing_call_ids_are_made_unique(ids: list[str], used: set[str], expected: list[str]) -> None:
    calls = tuple(ToolCall(identifier, "read", "{}") for identifier in ids)
    asked = apply(RunState(), ModelResponded(a_response("", *calls), 1.0), replace(a_scope(), used_ids=used))
    assert [call.call.id for call in asked.state.calls] == expected
    assert [call.id for call in asked.messages[0].tool_calls] == expected


# --- the model failed ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [code for code in ModelErrorCode if code is not ModelErrorCode.CONTEXT_OVERFLOW])
def test_a_failed_model_call_fails_the_run_with_its_reason(code: ModelErrorCode) -> None:
    error = ModelError(code, "it broke")
    outcome = applied(RunState(best_text="so far"), ModelFailed(error)).state.outcome
    assert outcome is not None
    assert (outcome.status, outcome.final_text) == (RunStatus.FAILED, "it broke")
    assert outcome.error == RunError(code.value, "it broke", error.retryable)


def test_a_failed_model_call_degrades_the_run_where_the_agent_says_so() -> None:
    agent = an_agent(llm_failure_policy=LlmFailurePolicy.DEGRADE)
    error = ModelError(ModelErrorCode.TIMEOUT, "too slow")
    outcome = applied(RunState(best_text="so far"), ModelFailed(error), agent).state.outcome
    assert outcome is not None
    assert (outcome.status, outcome.final_text) == (RunStatus.DEGRADED, "so far")


# --- tools ended --------------------------------------------------------------------------------------------


def test_a_step_closes_when_its_last_call_has_ended_with_results_in_the_order_of_the_calls() -> None:
    state = begun_batch(READ, PUT)
    first = ended(state, (1, a_result(text="second")))
    assert (first.messages, first.state.phase, first.state.step) == ((), Phase.EXECUTE_TOOLS, 1)
    assert [record.call.index for record in first.records] == [1]
    last = ended(first.state, (0, a_result(text="first")))
    assert [(message.tool_call_id, message.content) for message in last.messages] == [
        ("read", "first"),
        ("put", "second"),
    ]
    assert (last.state.step, last.state.phase, last.state.calls) == (2, Phase.CALL_MODEL, ())
    assert [event.data["tool_call_id"] for event in last.events] == ["read"]


def test_a_result_that_comes_twice_counts_once() -> None:
    state = begun_batch(READ, PUT)
    once = ended(state, (0, a_result(text="first")))
    twice = ended(once.state, (0, a_result(text="other")))
    assert twice == Transition(once.state)


@pytest.mark.parametrize(
    ("policy", "status"),
    [
        (ToolFailurePolicy.CONTINUE, RunStatus.COMPLETED),
        (ToolFailurePolicy.DEGRADE, RunStatus.DEGRADED),
        (ToolFailurePolicy.FAIL, RunStatus.FAILED),
    ],
)
def test_a_failed_tool_does_what_the_policy_says(policy: ToolFailurePolicy, status: RunStatus) -> None:
    agent = an_agent(tool_failure_policy=policy)
    results = ((0, a_result(False, "no such city")), (1, a_result()))
    closed = ended(begun_batch(READ, PUT), *results, agent=agent)
    assert [message.content for message in closed.messages] == ["no such city", "found"]
    end = closed if policy is ToolFailurePolicy.FAIL else respond(a_response("42"), closed.state)
    assert end.state.outcome is not None
    assert end.state.outcome.status is status
    if status is not RunStatus.COMPLETED:
        assert end.state.outcome.error is not None
        assert "no such city" in end.state.outcome.error.message


def test_a_failing_batch_is_awaited_to_its_end_before_it_fails_the_run() -> None:
    agent = an_agent(tool_failure_policy=ToolFailurePolicy.FAIL)
    half = ended(begun_batch(READ, PUT), (0, a_result(False, "no")), agent=agent)
    assert half.state.outcome is None
    whole = ended(half.state, (1, a_result()), agent=agent)
    assert whole.state.outcome is not None
    assert whole.state.outcome.status is RunStatus.FAILED


def completed_output(result: ToolResult, max_chars: int = 200) -> object:
    done = ended(begun_batch(READ), (0, result), agent=an_agent(tool_output_max_chars=max_chars))
    return orjson.loads(encode(done.events[0], RUN))["data"]["output"]


def test_an_event_carries_the_output_as_json_while_it_is_small_and_else_what_the_model_read() -> None:
    assert completed_output(ToolResult(True, '{"a":\n [1, 2]}', None, "text", 1.0)) == {"a": [1, 2]}
    assert completed_output(ToolResult(True, f'"{"x" * 500}"', None, "xxx … cut", 1.0)) == "xxx … cut"
    assert completed_output(ToolResult(False, None, "failed", "failed", 1.0)) is None


# --- what an action begins with -----------------------------------------------------------------------------


def test_a_model_call_begins_with_its_step() -> None:
    events, records = opening(RunState(step=3), CallModel(3), an_agent(), 7)
    assert events == (
        Event(EventType.STEP_STARTED, 3, {"step": 3}),
        Event(EventType.LLM_CALLED, 3, {"model": "scripted/answer", "provider": "scripted", "message_count": 7}),
    )
    assert records == ()


def test_a_batch_begins_with_the_intent_to_run_each_of_its_calls() -> None:
    state = respond(a_response("", READ, ToolCall("bad", "put", "not json"))).state
    action = decide(state, an_agent())
    events, records = opening(state, action, an_agent(), 2)
    assert [event.type for event in events] == ["tool_batch_started", "tool_started", "tool_started"]
    assert events[0].data == {
        "tool_call_count": 2,
        "tool_names": ["read", "put"],
        "tool_call_ids": ["read", "bad"],
    }
    shown = [orjson.loads(encode(event, RUN))["data"]["arguments"] for event in events[1:]]
    assert shown == [{"q": 1}, "not json"]
    assert all(record.call.started for record in records)
    after = begun(state, action)
    assert (after.calls, after.tool_calls) == (tuple(record.call for record in records), 2)


def test_calls_that_were_started_before_are_begun_again_in_silence() -> None:
    state = begun_batch(READ)
    action = decide(state, an_agent())
    assert isinstance(action, ExecuteTools)
    assert opening(state, action, an_agent(), 2) == ((), ())
    assert begun(state, action) == state


@pytest.mark.parametrize("status", [status for status in RunStatus if status.terminal])
def test_a_terminal_event_agrees_with_its_status(status: RunStatus) -> None:
    error = None if status is RunStatus.COMPLETED else RunError("code", "why")
    state = RunState(step=2, usage=Usage(llm_calls=1))
    event = closing_event(state, status, "text", error)
    assert (event.state, event.step) == (status, 2)
    if status in (RunStatus.COMPLETED, RunStatus.DEGRADED):
        assert event.type is EventType.RUN_COMPLETED
        assert event.data == {"state": status, "final_text": "text", "usage": state.usage.as_dict()}
    else:
        assert event.type == f"run_{status}"
        assert event.data == {"code": "code", "message": "why"}


def test_a_finish_begins_with_the_terminal_event_and_is_then_finished() -> None:
    done = finished(RunState(), RunStatus.COMPLETED, "42")
    assert done.outcome is not None
    events, _ = opening(RunState(), Finish(done.outcome), an_agent(), 2)
    assert [event.type for event in events] == ["run_completed"]
    assert begun(RunState(), Finish(done.outcome)) == done
