"""The open step: failures and what follows from them, results from elsewhere, promises, and how it closes."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.engine.actions import Await, CallModel, ExecuteTools, Finish
from app.engine.agent import (
    ApprovalDenialPolicy,
    InteractionMode,
    LlmFailurePolicy,
    OnLimit,
    PolicySettings,
    ToolFailurePolicy,
)
from app.engine.deed import PolicySubject
from app.engine.errors import ModelError, ModelErrorCode, RunError
from app.engine.events import EventType
from app.engine.limits import RunLimits
from app.engine.messages import Role, ToolCall
from app.engine.moves import CallMove, ChildEnd, Deferred, Ended, PostedResult, Prepared
from app.engine.outcomes import AttemptBegan, ModelFailed
from app.engine.policy import PolicyAction
from app.engine.state import HoldKind, Phase
from app.engine.status import RunStatus
from app.engine.tools import Deferral
from app.engine.usage import Usage
from tests.unit.engine.builders import a_call, a_delegation, a_result, a_rule, a_scope, an_agent
from tests.unit.engine.driven_run import DrivenRun

DENIES = PolicySettings(rules=[a_rule(PolicyAction.DENY, "put")])


def a_run(limits: RunLimits | None = None, **settings: Any) -> DrivenRun:
    return DrivenRun(a_scope(an_agent(limits, **settings)))


# --- failures and what follows ----------------------------------------------------------------------------------------

FAILURES = {
    "tool_failure_policy": ("tool_failed", a_call("send"), Ended(0, a_result(False, "broke"))),
    "subagent_failure_policy": (
        "subagent_failed",
        a_delegation("scout"),
        ChildEnd(0, "id-1", RunStatus.FAILED, "", RunError("x", "broke"), Usage(), None, 1.0),
    ),
    "approval_denial_policy": ("approval_denied", a_call("put"), None),
}


@pytest.mark.parametrize("policy", ["continue", "degrade", "fail"])
@pytest.mark.parametrize("setting", FAILURES)
def test_a_failure_does_to_its_run_what_its_own_policy_says(setting: str, policy: str) -> None:
    code, call, end = FAILURES[setting]
    stated: dict[str, Any] = {**dict.fromkeys(FAILURES, "fail"), setting: policy}
    run = a_run(subagents=["scout"], policy=DENIES, **stated)
    action = run.ask(call, text="so far")
    if end is not None:
        action = run.move(end)
    assert run.messages[-1].role is Role.TOOL, "the model reads of it in any case"
    if policy == "fail":
        assert isinstance(action, Finish)
        assert action.outcome.status is RunStatus.FAILED
        assert action.outcome.error is not None
        assert (action.outcome.error.code, action.outcome.error.message) == (code, action.outcome.final_text)
        assert (run.checkpoint.step, run.checkpoint.phase) == (2, Phase.CALL_MODEL), "resumed behind the step"
        return
    assert action == CallModel(2)
    run.ask(text="done")
    assert run.outcome.final_text == "done"
    if policy == "continue":
        assert (run.outcome.status, run.outcome.error) == (RunStatus.COMPLETED, None)
    else:
        assert run.outcome.status is RunStatus.DEGRADED
        assert run.outcome.error is not None
        assert run.outcome.error.code == code


@pytest.mark.parametrize("policy", ToolFailurePolicy)
def test_a_tool_that_is_to_fail_its_run_fails_it_whatever_the_agent_says(policy: ToolFailurePolicy) -> None:
    run = a_run(tool_failure_policy=policy)
    run.ask(a_call("brittle"), a_call("read"))
    assert isinstance(run.move(Ended(0, a_result(False, "broke"))), ExecuteTools), "the step goes on to its end"
    assert isinstance(run.move(Ended(1, a_result())), Finish)
    assert run.outcome.error == RunError("tool_failed", "the tool brittle failed: broke")


def test_the_first_failure_that_was_let_pass_is_the_one_that_is_told() -> None:
    run = a_run(tool_failure_policy=ToolFailurePolicy.DEGRADE, approval_denial_policy=ApprovalDenialPolicy.DEGRADE)
    run.ask(a_call("read"), a_call("send"))
    run.move(Ended(1, a_result(False, "second")))
    run.move(Ended(0, a_result(False, "first")))
    run.ask(text="done")
    assert run.outcome.error is not None
    assert run.outcome.error.message == "the tool read failed: first"


def test_what_was_let_pass_still_degrades_a_run_that_failed_later_and_was_resumed() -> None:
    agent = {"tool_failure_policy": ToolFailurePolicy.DEGRADE, "approval_denial_policy": ApprovalDenialPolicy.FAIL}
    run = a_run(policy=DENIES, **agent)
    run.ask(a_call("send"))
    run.move(Ended(0, a_result(False, "early")))
    assert isinstance(run.ask(a_call("put")), Finish)
    run.crash()
    run.ask(text="done")
    assert run.outcome.status is RunStatus.DEGRADED
    assert run.outcome.error is not None
    assert run.outcome.error.message == "the tool send failed: early"


def test_what_was_let_pass_in_the_very_step_that_failed_degrades_the_resumed_run_too() -> None:
    agent = {"tool_failure_policy": ToolFailurePolicy.DEGRADE, "approval_denial_policy": ApprovalDenialPolicy.FAIL}
    run = a_run(policy=DENIES, **agent)
    run.ask(a_call("put"), a_call("send"))
    assert isinstance(run.move(Ended(1, a_result(False, "broke"))), Finish)
    run.crash()
    run.ask(text="done")
    assert run.outcome.status is RunStatus.DEGRADED


@pytest.mark.parametrize(
    ("policy", "status", "text"),
    [(LlmFailurePolicy.FAIL, RunStatus.FAILED, "no"), (LlmFailurePolicy.DEGRADE, RunStatus.DEGRADED, "so far")],
)
def test_a_failed_model_call_does_what_the_agent_says(policy: LlmFailurePolicy, status: RunStatus, text: str) -> None:
    run = a_run(llm_failure_policy=policy)
    run.ask(a_call("read"), text="so far")
    run.move(Ended(0, a_result()))
    run.write(ModelFailed(ModelError(ModelErrorCode.TIMEOUT, "no")))
    assert (run.outcome.status, run.outcome.final_text) == (status, text)


# --- limits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("on_limit", "status", "text"),
    [(OnLimit.FAIL, RunStatus.FAILED, None), (OnLimit.DEGRADE, RunStatus.DEGRADED, "so far")],
)
def test_of_a_batch_over_the_limit_nothing_is_judged_asked_prepared_or_begun(
    on_limit: OnLimit, status: RunStatus, text: str | None
) -> None:
    subjects = (PolicySubject.TOOL_CALL, PolicySubject.SUBAGENT_CALL)
    rules = [a_rule(PolicyAction.REQUEST_APPROVAL, subject=subject, rule_id=subject) for subject in subjects]
    run = a_run(
        RunLimits(max_tool_calls=5),
        policy=PolicySettings(rules=rules),
        interaction_mode=InteractionMode.EXTERNAL,
        on_limit=on_limit,
        subagents=["scout"],
    )
    names = ["send", "read", "hooked", "sign"] * 25
    calls = [a_delegation("scout", "d0"), *(a_call(name, f"c{i}") for i, name in enumerate(names[1:]))]
    action = run.ask(*calls, text="so far")
    assert isinstance(action, Finish)
    assert action.outcome.status is status
    assert action.outcome.error is not None
    assert action.outcome.error.code == "max_tool_calls"
    assert action.outcome.final_text == (text or action.outcome.error.message)
    assert not any(one.call.judged or one.call.started or one.call.hold for one in run.records)
    assert run.interactions == []
    assert run.event_types()[:-1] == ["llm_completed"]


def test_calls_count_up_to_the_limit_over_all_steps() -> None:
    run = a_run(RunLimits(max_tool_calls=3))
    run.ask(a_call("read", "a"), a_call("read", "b"))
    run.move(Ended(0, a_result()), Ended(1, a_result()))
    assert isinstance(run.ask(a_call("read", "c")), ExecuteTools)
    run.move(Ended(0, a_result()))
    assert isinstance(run.ask(a_call("read", "d")), Finish)


def test_a_batch_that_met_the_limit_goes_on_with_its_calls_once_the_limit_is_raised() -> None:
    run = a_run(RunLimits(max_tool_calls=1))
    assert isinstance(run.ask(a_call("read", "a"), a_call("read", "b")), Finish)
    run.scope = a_scope(an_agent(RunLimits(max_tool_calls=2)))
    action = run.crash()
    assert isinstance(action, ExecuteTools)
    assert [call.call.id for call in action.calls] == ["a", "b"]


# --- results from outside ---------------------------------------------------------------------------------------------


def waiting_at_the_caller() -> DrivenRun:
    run = a_run()
    run.ask(a_call("sign"))
    return run


def deferred() -> DrivenRun:
    run = a_run()
    run.ask(a_call("read"))
    run.move(Deferred(0, Deferral("ticket-1", "begun")))
    return run


def under_way() -> DrivenRun:
    run = a_run()
    run.ask(a_call("send"))
    return run


def asked_about() -> DrivenRun:
    asks = PolicySettings(rules=[a_rule(PolicyAction.REQUEST_APPROVAL, "send")])
    run = a_run(policy=asks, interaction_mode=InteractionMode.EXTERNAL)
    run.ask(a_call("send"))
    return run


def to_be_prepared() -> DrivenRun:
    run = a_run()
    run.ask(a_call("hooked"))
    return run


OPEN = [waiting_at_the_caller, deferred, under_way, asked_about, to_be_prepared]


@pytest.mark.parametrize("begin", OPEN)
@pytest.mark.parametrize(
    ("output", "error", "content"),
    [('{"a": 1}', None, '<data>{"a": 1}</data>'), (None, "it is gone", "Error: it is gone")],
)
def test_a_posted_result_ends_any_open_call(begin: Any, output: str | None, error: str | None, content: str) -> None:
    run = begin()
    assert run.move(PostedResult(0, output, error)) == CallModel(2)
    result = run.result()
    assert (result.success, result.output, result.error) == (error is None, output, error)
    assert run.messages[-1].content == content
    assert len(run.data(EventType.TOOL_COMPLETED)) == 1
    before = run.state
    run.move(Ended(0, a_result()), PostedResult(0, '"other"', None), Prepared(0, "{}"))
    assert run.state == before, "what came first counts"


def test_a_question_about_a_call_that_has_its_result_is_closed() -> None:
    run = asked_about()
    run.move(PostedResult(0, "1", None))
    assert run.closes == [run.interactions[0].interaction_id]


def test_what_the_model_reads_of_a_posted_result_is_bounded_and_fenced_as_the_agent_says() -> None:
    run = a_run(sanitize_tool_output=False, tool_output_max_chars=200)
    run.ask(a_call("sign"))
    run.move(PostedResult(0, f'"{"x" * 300}"', None))
    assert run.messages[-1].content == '"' + "x" * 199
    assert run.data(EventType.TOOL_COMPLETED)[0]["output"] == run.messages[-1].content


# --- promises of a later result ---------------------------------------------------------------------------------------


def test_a_deferred_call_is_told_and_waited_for() -> None:
    run = a_run()
    run.ask(a_call("send"))
    action = run.move(Deferred(0, Deferral("ticket-1", "the export runs", "a webhook", ttl_s=90.0)))
    assert isinstance(action, Await)
    assert run.data(EventType.TOOL_DEFERRED) == [
        {
            "tool_name": "send",
            "tool_call_id": "send",
            "ticket_id": "ticket-1",
            "summary": "the export runs",
            "resume_hint": "a webhook",
        }
    ]
    hold = run.call().hold
    assert hold is not None
    assert (hold.kind, hold.id, hold.ticket_id) == (HoldKind.TOOL_RESULT, "send", "ticket-1")
    assert hold.expires_at == run.scope.now + timedelta(seconds=90)
    assert run.data(EventType.RUN_WAITING) == [{"waiting_for": [{"kind": "tool_result", "id": "send"}]}]


def test_a_deferred_call_is_waited_for_by_another_attempt_too_and_is_not_lost() -> None:
    run = deferred()
    assert isinstance(run.crash(), Await)
    assert run.interactions == []
    assert EventType.WARNING not in run.event_types()


@pytest.mark.parametrize(
    ("output", "error", "kind", "data"),
    [
        ('{"a": 1}', None, EventType.TOOL_BACKGROUND_RESOLVED, {"output": {"a": 1}}),
        (None, "it broke", EventType.TOOL_BACKGROUND_FAILED, {"error": "it broke"}),
    ],
)
def test_the_end_of_a_deferred_call_is_told_before_the_call_is_completed(
    output: str | None, error: str | None, kind: EventType, data: dict[str, Any]
) -> None:
    run = deferred()
    run.move(PostedResult(0, output, error))
    assert run.data(kind) == [{"tool_name": "read", "tool_call_id": "read", "ticket_id": "ticket-1", **data}]
    ends = [event.type for event in run.events if event.type in (kind, EventType.TOOL_COMPLETED)]
    assert ends == [kind, EventType.TOOL_COMPLETED]


def test_a_result_of_a_call_that_was_never_deferred_tells_of_no_background() -> None:
    run = waiting_at_the_caller()
    run.move(PostedResult(0, "1", None))
    told = set(run.event_types())
    assert not told & {EventType.TOOL_BACKGROUND_RESOLVED, EventType.TOOL_BACKGROUND_FAILED}


# --- any order --------------------------------------------------------------------------------------------------------

KINDS = st.sampled_from(["read", "send", "hooked", "sign", "delegate_to_scout", "unknown"])


def _calls(kinds: list[str]) -> list[ToolCall]:
    return [
        a_delegation("scout", f"c{i}") if kind.startswith("delegate") else a_call(kind, f"c{i}")
        for i, kind in enumerate(kinds)
    ]


def _ways(run: DrivenRun, index: int) -> list[CallMove]:
    """What may become next of an open call."""
    call = run.state.calls[index]
    posted = PostedResult(index, "1", None)
    if call.hold is not None and call.hold.kind is HoldKind.CHILD_RUN:
        return [ChildEnd(index, call.hold.id, RunStatus.COMPLETED, "found", None, Usage(), None, 1.0), posted]
    if call.hold is not None:
        return [posted]
    if not call.judged:
        return [Prepared(index, '{"q": 2}'), Ended(index, a_result(False)), posted]
    return [Ended(index, a_result()), Ended(index, a_result(False)), Deferred(index, Deferral("t", "")), posted]


@settings(max_examples=200)
@given(st.lists(KINDS, min_size=1, max_size=6), st.data())
def test_in_any_order_of_moves_a_step_closes_once_with_one_end_for_every_call(
    kinds: list[str], data: st.DataObject
) -> None:
    run = a_run(RunLimits(max_subagent_fanout=2), subagents=["scout"])
    run.write(AttemptBegan())
    run.ask(*_calls(kinds))
    stored: list[CallMove] = []
    while run.state.step == 1:
        index = data.draw(st.sampled_from([call.index for call in run.state.open_calls()]))
        move = data.draw(st.sampled_from(_ways(run, index)))
        run.move(*stored, move)  # an owner may be told again of what others have stored
        if isinstance(move, PostedResult | ChildEnd):
            stored.append(move)
        if run.state.step == 1 and data.draw(st.booleans(), "dies"):
            run.crash(*stored)
    ids = [f"c{i}" for i in range(len(kinds))]
    assert [message.tool_call_id for message in run.messages[2:]] == ids
    assert sorted(event["tool_call_id"] for event in run.data(EventType.TOOL_COMPLETED)) == ids
    begun = [event["tool_call_id"] for event in run.data(EventType.TOOL_STARTED)]
    assert len(set(begun)) == len(begun) == run.state.tool_calls
    assert [event["step"] for event in run.data(EventType.STEP_STARTED)] == [1, 2]
