"""Policy: which of the rules that match a deed decides, and rules that are written in Python."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from structlog.testing import capture_logs

from app import PolicyEngine as PublicEngine
from app import PolicyRule as PublicRule
from app.engine.policy import Deed, PolicyAction, PolicyEngine, PolicyRule, PolicySubject, Rule, Verdict
from tests.unit.engine.deeds import judged, rule, tool_call

# --- the verdict ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("action", list(PolicyAction))
def test_the_rule_that_matches_gives_its_action_its_reason_and_its_id(action: PolicyAction) -> None:
    verdict = judged([rule("big", action, reason="too much")], tool_call())
    assert verdict == Verdict(action, "too much", "big", ("big",))


@pytest.mark.parametrize("subject", list(PolicySubject))
def test_nothing_is_said_where_no_rule_is_about_such_a_deed(subject: PolicySubject) -> None:
    others = [each for each in PolicySubject if each is not subject]
    about_others = rule(subjects=others)
    about_it = rule(subjects=[subject])
    deed = Deed(subject, "clerk", {})
    for engine, agent_rules in (
        (PolicyEngine(), []),
        (PolicyEngine([about_others]), []),
        (PolicyEngine(), [about_others]),
    ):
        assert engine.judge(deed, agent_rules) is None
        assert not engine.concerns(subject, agent_rules)
    for engine, agent_rules in ((PolicyEngine([about_it]), []), (PolicyEngine(), [about_it])):
        assert engine.judge(deed, agent_rules) == Verdict(PolicyAction.DENY, None, "r", ("r",))
        assert engine.concerns(subject, agent_rules)


def test_a_deed_that_meets_no_condition_is_allowed() -> None:
    verdict = judged([rule(condition={"tool_name": "other"})], tool_call())
    assert verdict == Verdict(PolicyAction.ALLOW, reason=None, rule_id=None, matched_rules=())


@pytest.mark.parametrize(
    ("ranks", "order"),
    [
        ({"a": 0, "b": 1}, ("b", "a")),
        ({"a": 1, "b": 0}, ("a", "b")),
        ({"b": 5, "a": 5}, ("a", "b")),
        ({"b": 0, "a": 0, "c": -1, "d": 3}, ("d", "a", "b", "c")),
        ({"low": -1_000_000, "high": 1_000_000, "middle": 0}, ("high", "middle", "low")),
        ({"a10": 0, "a9": 0, "B": 0}, ("B", "a10", "a9")),
    ],
)
@pytest.mark.parametrize("owner", ["operator", "agent", "both"])
def test_the_highest_priority_decides_and_among_equals_the_first_id(
    ranks: dict[str, int], order: tuple[str, ...], owner: str
) -> None:
    rules = [rule(rule_id, reason=rule_id, priority=priority) for rule_id, priority in ranks.items()]
    split = {"operator": len(rules), "agent": 0, "both": 1}[owner]
    verdict = judged([*rules[:split]], tool_call(), rules[split:])
    assert verdict.matched_rules == order
    assert (verdict.rule_id, verdict.reason) == (order[0], order[0])


def test_of_two_rules_with_one_id_and_one_priority_the_operators_decides() -> None:
    assert judged([rule(action="deny")], tool_call(), [rule(action="allow")]).action is PolicyAction.DENY


def test_rules_that_do_not_match_are_not_named() -> None:
    rules = [rule("a"), rule("b", priority=9, condition={"tool_name": "other"})]
    assert judged([*rules], tool_call()).matched_rules == ("a",)


@pytest.mark.parametrize("action", ["allow", "request_approval", "request_user_input"])
def test_a_rules_arguments_take_the_place_of_the_calls(action: str) -> None:
    changing = rule(action=action, arguments={"dry_run": True, "to": {"name": "x"}})
    deed = tool_call({"amount": 5, "to": {"name": "y", "city": "z"}})
    verdict = judged([changing], deed)
    assert verdict.arguments == {"amount": 5, "dry_run": True, "to": {"name": "x"}}
    assert deed.arguments == {"amount": 5, "to": {"name": "y", "city": "z"}}


def test_only_the_deciding_rule_changes_arguments() -> None:
    rules = [rule("a", "allow", arguments={"x": 1}), rule("b", "allow", priority=1)]
    assert judged([*rules], tool_call()).arguments is None


def test_a_model_call_has_no_arguments_to_change() -> None:
    changing = rule(action="allow", subjects=["tool_call", "model_call"], arguments={"x": 1})
    assert judged([changing], Deed(PolicySubject.MODEL_CALL, "clerk", {})).arguments is None


def test_the_event_of_a_decision_has_every_field() -> None:
    rules = [rule("a", reason="no"), rule("b", priority=-1)]
    deed = tool_call()
    assert judged([*rules], deed).event_data(deed.subject, deed.tool_name, "call_1") == {
        "subject": "tool_call",
        "action": "deny",
        "reason": "no",
        "rule_id": "a",
        "matched_rules": ["a", "b"],
        "tool_name": "refund",
        "tool_call_id": "call_1",
    }
    model_call = Deed(PolicySubject.MODEL_CALL, "clerk", {})
    assert Verdict(PolicyAction.ALLOW).event_data(model_call.subject) == {
        "subject": "model_call",
        "action": "allow",
        "reason": None,
        "rule_id": None,
        "matched_rules": [],
        "tool_name": None,
        "tool_call_id": None,
    }


# --- predicates -------------------------------------------------------------------------------------------------------


def test_a_predicate_must_hold_beside_the_rest_and_is_asked_only_then() -> None:
    asked: list[Any] = []

    def over_100(deed: Deed) -> bool:
        asked.append(deed.tool_name)
        return deed.arguments["amount"] > 100

    refunds = PolicyRule(
        rule_id="no-big-refunds",
        action="deny",
        subjects=["tool_call"],
        tool_name="refund",
        predicate=over_100,
        reason="too much",
    )
    assert judged([refunds], tool_call({"amount": 101})) == Verdict(
        PolicyAction.DENY, "too much", "no-big-refunds", ("no-big-refunds",)
    )
    assert judged([refunds], tool_call({"amount": 100})) == Verdict(PolicyAction.ALLOW)
    assert judged([refunds], tool_call(tool="other")) == Verdict(PolicyAction.ALLOW)
    assert asked == ["refund", "refund"]


@pytest.mark.parametrize(
    ("predicate", "told"),
    [
        (lambda deed: deed.arguments["secret"], "KeyError"),
        (lambda deed: None, "TypeError"),
        (lambda deed: 1, "TypeError"),
    ],
)
@pytest.mark.parametrize("action", list(PolicyAction))
def test_a_predicate_that_breaks_denies_whatever_other_rules_say(
    predicate: Any, told: str, action: PolicyAction
) -> None:
    broken = PolicyRule(rule_id="broken", action=action, subjects=["tool_call"], predicate=predicate)
    allowing = [rule("a-allows", "allow", priority=9), rule("z-allows", "allow")]
    verdict = judged([broken], tool_call(), allowing)
    assert verdict == Verdict(
        PolicyAction.DENY,
        f"the rule 'broken' could not be judged: {told}",
        "broken",
        ("broken", "a-allows", "z-allows"),
    )


def test_of_several_rules_that_break_the_highest_decides() -> None:
    def breaks(_: Deed) -> bool:
        raise ValueError

    rules = [
        PolicyRule(rule_id=each, action="allow", subjects=["tool_call"], predicate=breaks, priority=priority)
        for each, priority in (("a", 0), ("b", 2), ("c", 1))
    ]
    assert judged([*rules], tool_call(), [rule("d", priority=5)]).matched_rules == ("b", "d", "c", "a")


def test_a_rule_that_breaks_is_told_once_with_its_place_and_without_its_message() -> None:
    def breaks(deed: Deed) -> bool:
        raise ValueError(deed.arguments["card"])

    rules = [
        PolicyRule(rule_id=each, action="deny", subjects=["tool_call"], predicate=breaks) for each in ("a", "b", "c")
    ]
    with capture_logs() as logs:
        judged([*rules], tool_call({"card": "4111"}))
    (entry,) = logs
    assert (entry["event"], entry["rule_id"], entry["error"]) == ("policy_rule_broke", "a", "ValueError")
    assert "in breaks" in entry["frames"]
    assert "4111" not in str(entry)


# --- rules in Python --------------------------------------------------------------------------------------------------


def test_a_rule_in_python_says_all_that_data_can() -> None:
    written = PublicRule(
        rule_id="r",
        action="allow",
        subjects=["tool_call", PolicySubject.SUBAGENT_CALL],
        tool_name="refund",
        agent_name="clerk",
        argument_tests=[{"path": "$.amount", "op": "lt", "value": 5}],
        context={"user.tier": "free"},
        priority=3,
        reason="small",
        arguments={"dry_run": True},
    )
    assert written.rule == Rule.model_validate(
        {
            "rule_id": "r",
            "action": "allow",
            "subjects": ["tool_call", "subagent_call"],
            "condition": {
                "tool_name": "refund",
                "agent_name": "clerk",
                "arguments": [{"path": "$.amount", "op": "lt", "value": 5}],
                "context": {"user.tier": "free"},
            },
            "priority": 3,
            "reason": "small",
            "arguments": {"dry_run": True},
        }
    )
    assert repr(written) == "PolicyRule('r', allow)"
    assert PublicEngine([written]).rules == (written,)


def test_a_rule_in_python_is_checked_like_data() -> None:
    with pytest.raises(ValidationError, match="'allow', 'deny'"):
        PolicyRule(rule_id="r", action="refuse", subjects=["tool_call"])


def test_an_async_predicate_is_refused() -> None:
    async def asks_a_service(_: Deed) -> bool:
        return True

    with pytest.raises(TypeError, match="rule 'r': the predicate should be a plain function"):
        PolicyRule(rule_id="r", action="deny", subjects=["tool_call"], predicate=asks_a_service)  # pyright: ignore[reportArgumentType]


def test_two_rules_of_an_engine_cannot_have_one_id() -> None:
    with pytest.raises(ValueError, match="two rules have the rule_id 'r'"):
        PolicyEngine([rule(), PolicyRule(rule_id="r", action="deny", subjects=["model_call"])])


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(-1, 1), st.booleans()), unique_by=lambda each: each[0]))
def test_the_order_in_which_rules_are_given_does_not_matter(drawn: list[tuple[str, int, bool]]) -> None:
    rules = [
        rule(rule_id, priority=priority, condition={"tool_name": "refund" if held else "other"})
        for rule_id, priority, held in drawn
    ]
    expected = sorted((each for each in drawn if each[2]), key=lambda each: (-each[1], each[0]))
    for split in range(len(rules) + 1):
        verdict = PolicyEngine([*reversed(rules[:split])]).judge(tool_call(), rules[split:])
        if not rules:
            assert verdict is None
        else:
            assert verdict is not None
            assert verdict.matched_rules == tuple(each[0] for each in expected)
