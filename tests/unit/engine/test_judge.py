"""What policy and people say of a call before it begins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from app.engine.actions import Await, CallModel, ExecuteTools
from app.engine.agent import Fallback, InputFallback, InteractionMode, PolicySettings, ResolvedAgent
from app.engine.deed import PolicySubject
from app.engine.events import EventType
from app.engine.interactions import EXPIRY, HEADLESS, Answer, Decision, InteractionKind
from app.engine.messages import ToolCall
from app.engine.moves import Ended, Prepared
from app.engine.policy import PolicyAction, PolicyRule, Rule
from app.engine.state import HoldKind, OpenCall
from tests.unit.engine.builders import a_call, a_delegation, a_result, a_rule, a_scope, an_agent
from tests.unit.engine.driven_run import DrivenRun

ASKING = (PolicyAction.REQUEST_APPROVAL, PolicyAction.REQUEST_USER_INPUT)
MODES = tuple(InteractionMode)


def with_rules(*rules: Rule, mode: InteractionMode = InteractionMode.EXTERNAL, **settings: Any) -> ResolvedAgent:
    return an_agent(policy=PolicySettings(rules=list(rules)), interaction_mode=mode, **settings)


def asked_for(call: ToolCall, *rules: Rule, **settings: Any) -> DrivenRun:
    """A run whose model has just asked for this call."""
    run = DrivenRun(a_scope(with_rules(*rules, **settings)))
    run.ask(call)
    return run


def is_begun(call: OpenCall) -> bool:
    return call.started and call.result is None and call.hold is None


def is_denied(call: OpenCall) -> bool:
    return not call.started and call.hold is None and call.result is not None and call.result.denied


# --- policy alone -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_an_allowed_call_begins(mode: InteractionMode) -> None:
    run = asked_for(a_call("send"), a_rule(PolicyAction.ALLOW), mode=mode)
    assert is_begun(run.call())
    assert run.interactions == []


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("fallback", Fallback)
def test_a_denied_call_never_begins_and_the_model_reads_why(mode: InteractionMode, fallback: Fallback) -> None:
    rule = a_rule(PolicyAction.DENY, reason="not on Sundays")
    run = asked_for(a_call("send"), rule, mode=mode, approval_fallback=fallback)
    assert is_denied(run.call())
    assert run.messages[-1].content == "Error: policy denies this call: not on Sundays"
    assert run.interactions == []
    assert run.state.tool_calls == 0
    assert EventType.TOOL_STARTED not in run.event_types()


@pytest.mark.parametrize(
    ("action", "settings", "begins", "output"),
    [
        (PolicyAction.REQUEST_APPROVAL, {"approval_fallback": Fallback.APPROVE}, True, None),
        (PolicyAction.REQUEST_APPROVAL, {"approval_fallback": Fallback.DENY}, False, None),
        (PolicyAction.REQUEST_USER_INPUT, {"input_fallback": "deny"}, False, None),
        (PolicyAction.REQUEST_USER_INPUT, {"input_fallback": InputFallback(value={"a": 1})}, False, '{"a":1}'),
        # Each kind of question has its own fallback.
        (PolicyAction.REQUEST_USER_INPUT, {"approval_fallback": Fallback.APPROVE}, False, None),
        (PolicyAction.REQUEST_APPROVAL, {"input_fallback": InputFallback(value=1)}, False, None),
    ],
)
def test_a_headless_run_takes_the_fallback_at_once(
    action: PolicyAction, settings: dict[str, Any], begins: bool, output: str | None
) -> None:
    run = asked_for(a_call("send"), a_rule(action), mode=InteractionMode.HEADLESS, **settings)
    assert run.interactions == []
    assert is_begun(run.call()) is begins
    if output is not None:
        assert (run.result().success, run.result().output, run.call().started) == (True, output, False)
    elif not begins:
        assert is_denied(run.call())
        assert "the fallback denied this call: there is nobody to ask" in (run.result().error or "")


@pytest.mark.parametrize("action", ASKING)
@pytest.mark.parametrize("fallback", Fallback)
def test_a_run_that_has_somebody_to_ask_waits_whatever_its_fallback(action: PolicyAction, fallback: Fallback) -> None:
    run = DrivenRun(a_scope(with_rules(a_rule(action), approval_fallback=fallback)))
    assert isinstance(run.ask(a_call("send")), Await)
    (question,) = run.interactions
    hold = run.call().hold
    assert hold is not None
    assert (hold.kind, hold.id, hold.question) == (HoldKind.INTERACTION, question.interaction_id, question.kind)
    assert (run.call().judged, run.call().started) == (False, False)
    assert EventType.TOOL_STARTED not in run.event_types()


# --- what a person says -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Said:
    """An answer, and what it makes of a call of `send`."""

    answer: Answer
    begins_with: str | None = None
    output: str | None = None
    error: str | None = None
    denied: bool = False


CAUGHT = a_rule(
    PolicyAction.DENY,
    rule_id="no-big-ones",
    reason="too much",
    condition={"tool_name": "send", "arguments": [{"path": "$.q", "op": "gt", "value": 100}]},
)

SAID = {
    "approve": Said(Answer(Decision.APPROVE), begins_with='{"q": 1}'),
    "deny": Said(Answer(Decision.DENY), error="a person denied this call", denied=True),
    "deny, with a reason": Said(
        Answer(Decision.DENY, reason="ask me later", by="ann"),
        error="a person denied this call: ask me later",
        denied=True,
    ),
    "nobody in time": Said(
        Answer(Decision.DENY, reason="nobody answered in time", by=EXPIRY),
        error="the fallback denied this call: nobody answered in time",
        denied=True,
    ),
    "a value": Said(Answer(Decision.APPROVE, value='{"id": 7}'), output='{"id": 7}'),
    "edited": Said(Answer(Decision.APPROVE, arguments='{"q": 100}'), begins_with='{"q": 100}'),
    "edited to what a rule denies": Said(
        Answer(Decision.APPROVE, arguments='{"q": 101}'),
        error="policy denies this call with these arguments: too much",
        denied=True,
    ),
    "edited to what does not fit": Said(
        Answer(Decision.APPROVE, arguments='{"bad": 1}'), error="the arguments do not fit"
    ),
    "a value counts before arguments": Said(
        Answer(Decision.APPROVE, value="1", arguments='{"q": 101}'),
        output="1",
    ),
    "a denial counts before all else": Said(
        Answer(Decision.DENY, value="1", arguments='{"q": 2}'), error="a person denied this call", denied=True
    ),
}


@pytest.mark.parametrize("action", ASKING)
@pytest.mark.parametrize("fallback", Fallback)
@pytest.mark.parametrize("said", SAID.values(), ids=SAID.keys())
def test_an_answer_makes_of_a_call_what_it_says(action: PolicyAction, fallback: Fallback, said: Said) -> None:
    run = asked_for(a_call("send"), a_rule(action), CAUGHT, approval_fallback=fallback)
    went_on = run.answer(said.answer)
    call = run.call()
    assert len(run.interactions) == 1, "nobody is asked twice"
    if said.begins_with is not None:
        assert is_begun(call)
        assert call.final_arguments == said.begins_with
        assert isinstance(went_on, ExecuteTools)
        return
    assert (call.started, call.hold) == (False, None)
    assert (run.result().output, run.result().error, run.result().denied) == (said.output, said.error, said.denied)
    assert isinstance(went_on, CallModel)
    assert EventType.TOOL_STARTED not in run.event_types()


@pytest.mark.parametrize("action", ASKING)
def test_a_question_that_was_closed_without_an_answer_is_asked_anew(action: PolicyAction) -> None:
    run = asked_for(a_call("send"), a_rule(action, arguments={"dry_run": True}))
    assert isinstance(run.answer(None), Await)
    first, second = run.interactions
    assert first.interaction_id != second.interaction_id
    assert (first.kind, first.arguments, first.prompt) == (second.kind, second.arguments, second.prompt)
    run.answer(Answer(Decision.APPROVE))
    assert is_begun(run.call())


def test_an_answer_that_is_taken_in_twice_counts_once() -> None:
    run = asked_for(a_call("send"), a_rule(PolicyAction.REQUEST_APPROVAL))
    run.answer(Answer(Decision.APPROVE))
    before = run.state
    run.answer(Answer(Decision.DENY))
    assert run.state == before


@pytest.mark.parametrize("action", ASKING)
def test_who_is_approved_is_not_asked_about_again_by_another_rule(action: PolicyAction) -> None:
    other = a_rule(PolicyAction.REQUEST_APPROVAL, rule_id="other", condition=CAUGHT.condition.model_dump())
    run = asked_for(a_call("send"), a_rule(action), other)
    run.answer(Answer(Decision.APPROVE, arguments='{"q": 1000}'))
    assert is_begun(run.call())


# --- each kind of tool ------------------------------------------------------------------------------------------------

KINDS = {
    "run here": (a_call("send"), None, PolicySubject.TOOL_CALL),
    "run by the caller": (a_call("sign"), HoldKind.TOOL_RESULT, PolicySubject.TOOL_CALL),
    "a delegation": (a_delegation("scout"), HoldKind.CHILD_RUN, PolicySubject.SUBAGENT_CALL),
}


@pytest.mark.parametrize("action", [None, PolicyAction.ALLOW, *ASKING])
@pytest.mark.parametrize(("call", "held", "subject"), KINDS.values(), ids=KINDS.keys())
def test_a_call_that_may_begin_begins_where_its_tool_is(
    call: ToolCall, held: HoldKind | None, subject: PolicySubject, action: PolicyAction | None
) -> None:
    rules = () if action is None else (a_rule(action, subject=subject),)
    run = asked_for(call, *rules, subagents=["scout"])
    if action in ASKING:
        assert not run.call().started
        run.answer(Answer(Decision.APPROVE))
    begun = run.call()
    assert begun.started
    assert (None if begun.hold is None else begun.hold.kind) is held
    assert run.data(EventType.TOOL_STARTED)[0]["tool_call_id"] == call.id


@pytest.mark.parametrize(("call", "held", "subject"), KINDS.values(), ids=KINDS.keys())
def test_a_denied_call_of_any_kind_begins_nowhere(
    call: ToolCall, held: HoldKind | None, subject: PolicySubject
) -> None:
    run = asked_for(call, a_rule(PolicyAction.DENY, subject=subject), subagents=["scout"])
    assert is_denied(run.call())


def test_the_caller_s_call_is_waited_for_as_long_as_its_tool_says_with_checked_arguments() -> None:
    run = asked_for(a_call("sign", arguments='{ "q" : 1 }'))
    hold = run.call().hold
    assert hold is not None
    assert hold.expires_at is not None
    assert (hold.id, (hold.expires_at - run.scope.now).total_seconds()) == ("sign", 60.0)
    assert run.call().final_arguments == '{"q":1}'


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (a_call("sign", arguments="nonsense"), "no JSON"),
        (ToolCall("a", "delegate_to_scout", "nonsense"), "not valid JSON"),
        (ToolCall("a", "delegate_to_scout", '{"task": " "}'), '"task"'),
        (ToolCall("a", "delegate_to_scout", '{"task": "look", "more": 1}'), '"task"'),
    ],
)
def test_what_others_could_not_run_is_refused_before_it_reaches_them(call: ToolCall, error: str) -> None:
    run = asked_for(call, subagents=["scout"])
    assert not run.call().started
    assert (run.result().success, run.result().denied) == (False, False)
    assert error in (run.result().error or "")


# --- arguments --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("action", [PolicyAction.ALLOW, *ASKING])
def test_a_rule_s_arguments_are_what_people_are_shown_and_what_the_call_runs_with(action: PolicyAction) -> None:
    run = asked_for(a_call("send"), a_rule(action, arguments={"dry_run": True}))
    if action in ASKING:
        assert run.interactions[0].arguments == '{"q":1,"dry_run":true}'
        run.answer(Answer(Decision.APPROVE))
    assert run.call().final_arguments == '{"q":1,"dry_run":true}'
    assert run.data(EventType.TOOL_STARTED)[0]["arguments"] == {"q": 1, "dry_run": True}
    assert run.messages[1].tool_calls[0].arguments == '{"q": 1}', "the model is shown what it wrote"


def test_arguments_that_no_rule_can_read_end_the_call_with_an_error_for_the_model() -> None:
    run = asked_for(a_call("send", arguments="not json"), a_rule(PolicyAction.ALLOW))
    assert (run.call().started, run.result().denied) == (False, False)
    assert "no JSON" in (run.result().error or "")
    assert EventType.POLICY_DECISION not in run.event_types()


def test_without_a_rule_arguments_are_left_to_whoever_runs_the_call() -> None:
    assert is_begun(asked_for(a_call("send", arguments="not json")).call())


@pytest.mark.parametrize("name", ["unknown", "read"])
def test_a_tool_that_the_agent_was_not_given_is_refused_by_whoever_runs_it_and_asks_nobody(name: str) -> None:
    run = asked_for(a_call(name), a_rule(PolicyAction.REQUEST_APPROVAL), tools=["send"])
    assert is_begun(run.call())
    assert run.interactions == []


# --- pre-hooks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rules", [(), (a_rule(PolicyAction.ALLOW),)])
def test_a_tool_with_hooks_is_prepared_before_it_is_judged_and_before_it_begins(rules: tuple[Rule, ...]) -> None:
    run = DrivenRun(a_scope(with_rules(*rules)))
    action = run.ask(a_call("hooked"))
    assert isinstance(action, ExecuteTools)
    assert [(call.judged, call.started) for call in action.calls] == [(False, False)]
    assert not {EventType.POLICY_DECISION, EventType.TOOL_STARTED} & set(run.event_types())
    run.move(Prepared(0, '{"q": 2}'))
    assert is_begun(run.call())
    assert run.data(EventType.TOOL_STARTED)[0]["arguments"] == {"q": 2}


def test_policy_judges_the_arguments_that_the_hooks_have_left() -> None:
    deny = a_rule(PolicyAction.DENY, condition={"arguments": [{"path": "$.q", "op": "eq", "value": 2}]})
    run = asked_for(a_call("hooked"), deny)
    run.move(Prepared(0, '{"q": 2}'))
    assert is_denied(run.call())


def test_a_call_that_a_hook_refuses_has_its_result_and_never_begins() -> None:
    run = asked_for(a_call("hooked"), a_rule(PolicyAction.REQUEST_APPROVAL))
    run.move(Ended(0, a_result(False, "the hook refuses")))
    assert (run.call().started, run.result().error, run.interactions) == (False, "the hook refuses", [])


def test_a_call_is_prepared_once_however_often_its_question_is_closed() -> None:
    run = asked_for(a_call("hooked"), a_rule(PolicyAction.REQUEST_APPROVAL))
    run.move(Prepared(0, '{"q": 2}'))
    assert isinstance(run.answer(None), Await)
    assert run.interactions[1].arguments == '{"q": 2}'


# --- a batch ----------------------------------------------------------------------------------------------------------


def test_each_call_of_a_batch_has_its_own_judgement() -> None:
    rules = (a_rule(PolicyAction.DENY, "put"), a_rule(PolicyAction.REQUEST_APPROVAL, "send"))
    run = DrivenRun(a_scope(with_rules(*rules)))
    action = run.ask(a_call("read"), a_call("put"), a_call("send"))
    assert isinstance(action, ExecuteTools)
    assert [call.call.name for call in action.calls] == ["read"]
    assert is_begun(run.call(0))
    assert is_denied(run.call(1))
    assert run.call(2).hold is not None
    assert isinstance(run.move(Ended(0, a_result())), Await)
    run.answer(Answer(Decision.APPROVE))
    run.move(Ended(2, a_result()))
    assert [message.tool_call_id for message in run.messages[2:]] == ["read", "put", "send"]


def test_every_decision_is_told_with_the_rules_that_matched() -> None:
    operator = PolicyRule(rule_id="o", action="allow", subjects=["tool_call"], predicate=lambda _: True, priority=1)
    agent = with_rules(a_rule(PolicyAction.DENY, "send", rule_id="a", reason="no"), mode=InteractionMode.HEADLESS)
    run = DrivenRun(a_scope(agent, operator=[operator]))
    run.ask(a_call("send"))
    assert run.data(EventType.POLICY_DECISION) == [
        {
            "subject": "tool_call",
            "action": "allow",
            "reason": None,
            "rule_id": "o",
            "matched_rules": ["o", "a"],
            "tool_name": "send",
            "tool_call_id": "send",
        }
    ]


def test_a_rule_sees_the_agent_and_the_run_s_context() -> None:
    seen: list[tuple[Any, ...]] = []

    def sees(deed: Any) -> bool:
        seen.append((deed.subject, deed.agent_name, deed.context, deed.tool_name, deed.arguments))
        return False

    operator = PolicyRule(rule_id="o", action="deny", subjects=["tool_call", "subagent_call"], predicate=sees)
    run = DrivenRun(a_scope(with_rules(subagents=["scout"]), operator=[operator], context={"tier": "free"}))
    run.ask(a_call("send"), a_delegation("scout"))
    assert seen == [
        (PolicySubject.TOOL_CALL, "helper", {"tier": "free"}, "send", {"q": 1}),
        (PolicySubject.SUBAGENT_CALL, "helper", {"tier": "free"}, "delegate_to_scout", {"task": "look"}),
    ]


def test_where_no_rule_is_about_tool_calls_nothing_is_told() -> None:
    run = asked_for(a_call("send"), a_rule(PolicyAction.DENY, subject=PolicySubject.SUBAGENT_CALL))
    assert EventType.POLICY_DECISION not in run.event_types()


@pytest.mark.parametrize("by", [HEADLESS, EXPIRY, "ann", None])
def test_the_model_is_told_whether_a_person_or_the_fallback_denied(by: str | None) -> None:
    run = asked_for(a_call("send"), a_rule(PolicyAction.REQUEST_APPROVAL))
    run.answer(Answer(Decision.DENY, by=by))
    who = "the fallback" if by in (HEADLESS, EXPIRY) else "a person"
    assert run.result().error == f"{who} denied this call"


def test_a_question_about_a_call_is_an_approval_or_an_input_as_the_rule_says() -> None:
    kinds = [asked_for(a_call("send"), a_rule(action)).interactions[0].kind for action in ASKING]
    assert kinds == [InteractionKind.APPROVAL, InteractionKind.INPUT]
