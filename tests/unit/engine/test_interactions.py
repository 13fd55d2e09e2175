"""Questions to people: what they ask, what counts where nobody answers, and the question before a model call."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import orjson
import pytest

from app.engine.actions import Await, CallModel, Finish
from app.engine.agent import ApprovalDenialPolicy, Fallback, InputFallback, InteractionMode, PolicySettings
from app.engine.deed import PolicySubject
from app.engine.events import EventType
from app.engine.interactions import (
    EXPIRY,
    HEADLESS,
    Answer,
    Decision,
    InteractionKind,
    InteractionRecord,
    InteractionStatus,
    fallback,
    timeout_s,
)
from app.engine.limits import RunLimits
from app.engine.messages import Message, Role
from app.engine.moves import Ended, InteractionEnd
from app.engine.outcomes import AttemptBegan
from app.engine.policy import PolicyAction, Rule
from app.engine.state import Gate, Phase, RunState
from app.engine.status import RunStatus
from app.engine.timestamp import timestamp
from tests.unit.engine.builders import NOW, a_call, a_result, a_rule, a_scope, an_agent
from tests.unit.engine.driven_run import DrivenRun

EXTERNAL = InteractionMode.EXTERNAL


# --- what counts where nobody answers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("by", [EXPIRY, HEADLESS])
@pytest.mark.parametrize(
    ("kind", "settings", "decision", "value"),
    [
        (InteractionKind.APPROVAL, {}, Decision.DENY, None),
        (InteractionKind.APPROVAL, {"approval_fallback": Fallback.APPROVE}, Decision.APPROVE, None),
        (InteractionKind.APPROVAL, {"input_fallback": InputFallback(value=1)}, Decision.DENY, None),
        (InteractionKind.INPUT, {}, Decision.DENY, None),
        (InteractionKind.INPUT, {"approval_fallback": Fallback.APPROVE}, Decision.DENY, None),
        (InteractionKind.INPUT, {"input_fallback": InputFallback(value=None)}, Decision.APPROVE, "null"),
        (InteractionKind.INPUT, {"input_fallback": InputFallback(value={"a": [1]})}, Decision.APPROVE, '{"a":[1]}'),
        # What may have happened is never repeated because nobody said a word.
        (InteractionKind.TOOL_OUTCOME_UNKNOWN, {"approval_fallback": Fallback.APPROVE}, Decision.DENY, None),
        (InteractionKind.TOOL_OUTCOME_UNKNOWN, {"input_fallback": InputFallback(value=1)}, Decision.DENY, None),
    ],
)
def test_the_fallback_is_what_the_agent_says_for_that_kind_of_question(
    kind: InteractionKind, settings: dict[str, Any], decision: Decision, value: str | None, by: str
) -> None:
    answer = fallback(kind, an_agent(**settings), by)
    assert (answer.decision, answer.value, answer.by) == (decision, value, by)
    assert answer.reason


@pytest.mark.parametrize(
    ("kind", "seconds"),
    [
        (InteractionKind.APPROVAL, 30.0),
        (InteractionKind.INPUT, 60.0),
        (InteractionKind.TOOL_OUTCOME_UNKNOWN, 30.0),
    ],
)
def test_each_kind_of_question_waits_for_its_own_time(kind: InteractionKind, seconds: float) -> None:
    assert timeout_s(kind, an_agent(approval_timeout_s=30.0, input_timeout_s=60.0)) == seconds


@pytest.mark.parametrize(
    ("action", "seconds", "begins"),
    [
        (PolicyAction.REQUEST_APPROVAL, 30, "May helper"),
        (PolicyAction.REQUEST_USER_INPUT, 60, "helper calls"),
    ],
)
def test_a_question_says_all_that_is_needed_to_answer_it(action: PolicyAction, seconds: int, begins: str) -> None:
    rule = a_rule(action, reason="it costs money")
    policy = PolicySettings(rules=[rule])
    agent = an_agent(policy=policy, interaction_mode=EXTERNAL, approval_timeout_s=30.0, input_timeout_s=60.0)
    run = DrivenRun(a_scope(agent))
    run.ask(a_call("read"), a_call("send", "call-7", '{"to": "ann"}'))
    question = run.interactions[1]
    assert (question.step, question.call_index, question.tool_name) == (1, 1, "send")
    assert (question.tool_call_id, question.arguments, question.reason) == (
        "call-7",
        '{"to": "ann"}',
        "it costs money",
    )
    assert question.prompt.startswith(begins)
    assert question.expires_at == NOW + timedelta(seconds=seconds)
    assert question.fallback == fallback(question.kind, agent, EXPIRY)
    assert run.data(EventType.INTERACTION_REQUESTED)[1] == {
        "interaction_id": question.interaction_id,
        "kind": question.kind,
        "tool_name": "send",
        "tool_call_id": "call-7",
        "arguments": {"to": "ann"},
        "prompt": question.prompt,
        "reason": "it costs money",
        "expires_at": timestamp(question.expires_at),
    }


@pytest.mark.parametrize(("sanitize", "content"), [(True, "<data>7</data>"), (False, "7")])
def test_what_a_person_gives_as_a_result_is_read_like_any_other_result(sanitize: bool, content: str) -> None:
    policy = PolicySettings(rules=[a_rule(PolicyAction.REQUEST_USER_INPUT)])
    run = DrivenRun(a_scope(an_agent(policy=policy, interaction_mode=EXTERNAL, sanitize_tool_output=sanitize)))
    run.ask(a_call("send"))
    run.answer(Answer(Decision.APPROVE, value="7"))
    assert run.messages[-1].content == content


def test_a_resolved_interaction_tells_the_decision_and_not_what_was_supplied() -> None:
    record = InteractionRecord(
        interaction_id="i",
        run_id="r",
        step=1,
        call_index=0,
        kind=InteractionKind.INPUT,
        status=InteractionStatus.RESOLVED,
        tool_name="send",
        tool_call_id="c",
        arguments="{}",
        prompt="?",
        reason=None,
        answer=Answer(Decision.APPROVE, value='"secret"', reason="fine", by="ann"),
        expires_at=NOW,
        created_at=NOW,
        resolved_at=NOW,
    )
    data = orjson.loads(orjson.dumps(record.resolved_event_data()))
    assert data == {
        "interaction_id": "i",
        "kind": "input",
        "status": "resolved",
        "tool_name": "send",
        "tool_call_id": "c",
        "decision": "approve",
        "by": "ann",
        "reason": "fine",
    }


# --- before a model call ----------------------------------------------------------------------------------------------


def about_model(action: PolicyAction, **fields: Any) -> Rule:
    return a_rule(action, subject=PolicySubject.MODEL_CALL, **fields)


def gated(rule: Rule, limits: RunLimits | None = None, **settings: Any) -> DrivenRun:
    """A run that has begun, at an agent with a rule about model calls."""
    stated = {"interaction_mode": EXTERNAL, "policy": PolicySettings(rules=[rule]), **settings}
    run = DrivenRun(a_scope(an_agent(limits, **stated)))
    run.write(AttemptBegan())
    return run


def test_an_allowed_model_call_is_made_and_told_once() -> None:
    run = gated(about_model(PolicyAction.ALLOW))
    assert run.event_types() == ["policy_decision", "step_started", "llm_called"]
    assert run.data(EventType.POLICY_DECISION)[0] == {
        "subject": "model_call",
        "action": "allow",
        "reason": None,
        "rule_id": "allow-None",
        "matched_rules": ["allow-None"],
        "tool_name": None,
        "tool_call_id": None,
    }
    run.crash()
    assert len(run.data(EventType.POLICY_DECISION)) == 1


def test_the_model_call_of_every_step_is_judged() -> None:
    run = gated(about_model(PolicyAction.ALLOW))
    run.ask(a_call("read"))
    run.move(Ended(0, a_result()))
    assert [event.step for event in run.events if event.type is EventType.POLICY_DECISION] == [1, 2]
    assert run.state.gate == Gate(2)


ENDS = [
    (ApprovalDenialPolicy.CONTINUE, RunStatus.FAILED),  # there is no going on without a model
    (ApprovalDenialPolicy.DEGRADE, RunStatus.DEGRADED),
    (ApprovalDenialPolicy.FAIL, RunStatus.FAILED),
]


@pytest.mark.parametrize(("policy", "status"), ENDS)
@pytest.mark.parametrize("denied_by", ["a rule", "a person", "nobody there"])
def test_a_denied_model_call_ends_the_run_as_the_agent_says(
    policy: ApprovalDenialPolicy, status: RunStatus, denied_by: str
) -> None:
    rule = about_model(
        PolicyAction.DENY if denied_by == "a rule" else PolicyAction.REQUEST_APPROVAL,
        condition={"context": {"stop": True}},
        reason="no more",
    )
    mode = InteractionMode.HEADLESS if denied_by == "nobody there" else EXTERNAL
    agent = an_agent(policy=PolicySettings(rules=[rule]), approval_denial_policy=policy, interaction_mode=mode)
    run = DrivenRun(a_scope(agent))
    run.ask(a_call("read"), text="so far")
    run.scope = replace(run.scope, context={"stop": True})
    action = run.move(Ended(0, a_result()))
    if denied_by == "a person":
        assert isinstance(action, Await)
        action = run.answer(Answer(Decision.DENY, reason="no more"))
    assert isinstance(action, Finish)
    assert action.outcome.status is status
    assert action.outcome.error is not None
    assert action.outcome.error.code == "approval_denied"
    expected = "so far" if status is RunStatus.DEGRADED else action.outcome.error.message
    assert action.outcome.final_text == expected
    assert ("nobody to ask" if denied_by == "nobody there" else "no more") in action.outcome.error.message


def test_a_run_that_was_denied_its_model_call_is_judged_anew_when_it_is_resumed() -> None:
    run = gated(about_model(PolicyAction.REQUEST_APPROVAL))
    run.answer(Answer(Decision.DENY))
    run.crash()
    assert (run.state.step, run.state.phase) == (1, Phase.CALL_MODEL)
    assert len(run.interactions) == 2


@pytest.mark.parametrize("action", [PolicyAction.REQUEST_APPROVAL, PolicyAction.REQUEST_USER_INPUT])
def test_a_model_call_that_somebody_is_asked_about_waits_and_an_approval_lets_it_go_on(action: PolicyAction) -> None:
    run = gated(about_model(action, reason="it is late"))
    (question,) = run.interactions
    assert (question.call_index, question.tool_name, question.tool_call_id, question.arguments) == (None,) * 4
    assert question.reason == "it is late"
    assert run.event_types() == ["policy_decision", "interaction_requested", "run_waiting"]
    assert run.data(EventType.RUN_WAITING) == [
        {"waiting_for": [{"kind": "interaction", "id": question.interaction_id}]}
    ]
    assert isinstance(run.answer(Answer(Decision.APPROVE)), CallModel)
    assert len(run.messages) == 1
    assert run.state.gate == Gate(1)


@pytest.mark.parametrize(
    ("value", "text"),
    [('"in Rome"', "in Rome"), ('{"city": "Rome"}', '{"city": "Rome"}'), ("7", "7"), ("null", "null")],
)
def test_what_a_person_gives_before_a_model_call_is_a_message_to_the_model(value: str, text: str) -> None:
    run = gated(about_model(PolicyAction.REQUEST_USER_INPUT))
    assert isinstance(run.answer(Answer(Decision.APPROVE, value=value)), CallModel)
    assert run.messages[1:] == [Message(Role.USER, text)]
    before = run.state
    run.answer(Answer(Decision.APPROVE, value=value))
    assert (run.state, len(run.messages)) == (before, 2), "an answer that comes twice is said once"


def test_a_headless_run_gives_its_model_the_fallback_s_value() -> None:
    rule = about_model(PolicyAction.REQUEST_USER_INPUT)
    run = gated(rule, interaction_mode=InteractionMode.HEADLESS, input_fallback=InputFallback(value="as usual"))
    assert run.messages[1:] == [Message(Role.USER, "as usual")]
    assert run.event_types() == ["policy_decision", "step_started", "llm_called"]


def test_a_question_about_a_model_call_that_was_closed_is_asked_anew() -> None:
    run = gated(about_model(PolicyAction.REQUEST_APPROVAL))
    assert isinstance(run.answer(None), Await)
    assert len(run.interactions) == 2
    assert isinstance(run.answer(Answer(Decision.APPROVE)), CallModel)


def test_another_attempt_waits_for_the_same_answer_and_asks_nothing_twice() -> None:
    run = gated(about_model(PolicyAction.REQUEST_APPROVAL))
    assert run.checkpoint.phase is Phase.AWAIT
    assert isinstance(run.crash(), Await)
    assert len(run.interactions) == 1
    assert isinstance(run.answer(Answer(Decision.APPROVE)), CallModel)


def test_a_model_call_that_a_limit_forbids_is_not_judged() -> None:
    run = DrivenRun(
        a_scope(an_agent(RunLimits(max_steps=2), policy=PolicySettings(rules=[about_model(PolicyAction.DENY)]))),
        RunState(step=3),
    )
    action = run.write(AttemptBegan())
    assert isinstance(action, Finish)
    assert action.outcome.error is not None
    assert action.outcome.error.code == "max_steps"
    assert EventType.POLICY_DECISION not in run.event_types()


# --- a call of unknown outcome ----------------------------------------------------------------------------------------


def lost(mode: InteractionMode = EXTERNAL, **settings: Any) -> DrivenRun:
    """A run whose attempt ended while it ran an unsafe call, beside one that may be repeated."""
    run = DrivenRun(a_scope(an_agent(interaction_mode=mode, **settings)))
    run.ask(a_call("send"), a_call("read"))
    run.crash()
    return run


def test_a_lost_call_is_asked_about_and_the_others_are_run_again() -> None:
    run = lost(approval_fallback=Fallback.APPROVE)
    (question,) = run.interactions
    assert (question.kind, question.tool_call_id) == (InteractionKind.TOOL_OUTCOME_UNKNOWN, "send")
    assert question.fallback.decision is Decision.DENY
    assert [event["code"] for event in run.data(EventType.WARNING)] == ["tool_outcome_unknown"]
    assert [call.hold is None for call in run.state.calls] == [False, True]
    assert isinstance(run.move(Ended(1, a_result())), Await)


def test_in_a_headless_run_the_model_is_told_that_the_outcome_is_unknown() -> None:
    run = lost(InteractionMode.HEADLESS, approval_fallback=Fallback.APPROVE)
    assert run.interactions == []
    assert "unknown" in (run.result(0).error or "")
    assert run.data(EventType.WARNING) == [
        {"code": "tool_outcome_unknown", "tool_name": "send", "tool_call_id": "send"}
    ]
    assert run.call(1).result is None


LOST = [
    (Answer(Decision.DENY), None, "unknown"),
    (Answer(Decision.DENY, by=EXPIRY), None, "unknown"),
    (Answer(Decision.APPROVE, value='{"sent": true}'), '{"sent": true}', None),
    (Answer(Decision.APPROVE, arguments='{"bad": 1}'), None, "do not fit"),
]


@pytest.mark.parametrize(("answer", "output", "error"), LOST)
def test_an_answer_about_a_lost_call_is_its_result(answer: Answer, output: str | None, error: str | None) -> None:
    run = lost()
    run.answer(answer)
    result = run.result(0)
    assert (result.output, result.denied) == (output, False)
    assert (error or "") in (result.error or "")
    assert len(run.data(EventType.TOOL_STARTED)) == 2


def test_a_lost_call_that_a_person_lets_run_again_begins_anew_and_is_counted_once() -> None:
    run = lost()
    run.answer(Answer(Decision.APPROVE, arguments='{"q": 2}'))
    call = run.call(0)
    assert (call.started, call.hold, call.final_arguments) == (True, None, '{"q": 2}')
    assert [event["tool_call_id"] for event in run.data(EventType.TOOL_STARTED)] == ["send", "read", "send"]
    assert run.state.tool_calls == 2
    assert run.restored() == run.state


def test_a_call_that_is_lost_again_is_asked_about_again() -> None:
    run = lost()
    run.answer(Answer(Decision.APPROVE))
    run.crash()
    assert [question.tool_call_id for question in run.interactions] == ["send", "send"]
    assert len(run.data(EventType.WARNING)) == 2
    run.answer(Answer(Decision.DENY))
    assert "unknown" in (run.result(0).error or "")


def test_another_attempt_does_not_ask_about_a_lost_call_twice_but_does_if_its_question_was_closed() -> None:
    run = lost()
    run.crash()
    assert len(run.interactions) == 1
    run.crash(InteractionEnd(run.interactions[0].interaction_id, 0, InteractionStatus.CLOSED, None))
    assert len(run.interactions) == 2
    assert run.call(0).hold is not None
