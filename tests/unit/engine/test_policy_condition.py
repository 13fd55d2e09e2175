"""Conditions: which deeds a rule is about, and which rules are refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from app.engine.policy import Deed, PolicyAction, PolicySubject, Rule, Verdict
from tests.unit.engine.deeds import ONE, TOOL_CALL, argument_test, judged, matches, problems, rule, tool_call

# --- conditions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("glob", "name", "holds"),
    [
        ("refund", "refund", True),
        ("refund", "Refund", False),
        ("refund", "refunds", False),
        ("send_*", "send_mail", True),
        ("send_*", "resend_mail", False),
        ("send_?", "send_a", True),
        ("send_[ab]", "send_b", True),
        ("send_[!ab]", "send_b", False),
        ("delegate_to_*", "delegate_to_writer", True),
        ("*", "anything", True),
        ("[", "[", True),
    ],
)
def test_names_are_matched_as_globs_that_mind_case(glob: str, name: str, holds: bool) -> None:
    assert matches({"tool_name": glob}, tool_call(tool=name)) is holds
    assert matches({"agent_name": glob}, tool_call(agent=name)) is holds


def test_a_model_call_has_no_tool_name_and_no_arguments() -> None:
    subjects = ["tool_call", "model_call"]
    deed = Deed(PolicySubject.MODEL_CALL, "clerk", {})
    for condition, held in (
        ({"tool_name": "*"}, False),
        (argument_test("$", "eq", None), False),
        (argument_test("$.to", "eq", "x"), False),
        (argument_test("$.to", "ne", "x"), True),
        ({"agent_name": "clerk"}, True),
    ):
        verdict = judged([rule(subjects=subjects, condition=condition)], deed)
        assert bool(verdict.matched_rules) is held, condition


def test_all_of_a_condition_must_hold() -> None:
    condition = {
        "tool_name": "refund",
        "agent_name": "clerk",
        "arguments": [
            {"path": "$.amount", "op": "gt", "value": 10},
            {"path": "$.amount", "op": "lt", "value": 20},
        ],
        "context": {"tier": "free"},
    }
    assert matches(condition, tool_call({"amount": 15}, tier="free"))
    assert not matches(condition, tool_call({"amount": 15}, tier="free", tool="other"))
    assert not matches(condition, tool_call({"amount": 15}, tier="free", agent="other"))
    assert not matches(condition, tool_call({"amount": 5}, tier="free"))
    assert not matches(condition, tool_call({"amount": 25}, tier="free"))
    assert not matches(condition, tool_call({"amount": 15}, tier="paid"))


@pytest.mark.parametrize(
    ("stated", "context", "holds"),
    [
        ({"tier": "free"}, {"tier": "free"}, True),
        ({"tier": "free"}, {"tier": "paid"}, False),
        ({"tier": "free"}, {}, False),
        ({"tier": None}, {}, False),
        ({"tier": None}, {"tier": None}, True),
        ({"user.tier": "free"}, {"user": {"tier": "free"}}, True),
        ({"user.tier": "free"}, {"user.tier": "free"}, True),
        ({"user.tier": "free"}, {"user.tier": "paid", "user": {"tier": "free"}}, False),
        ({"user.tier": "free"}, {"user": "free"}, False),
        ({"user.tier": "free"}, {"user": [{"tier": "free"}]}, False),
        ({"a.b.c": 1}, {"a": {"b": {"c": 1.0}}}, True),
        ({"flag": True}, {"flag": 1}, False),
        ({"flag": 0}, {"flag": False}, False),
        ({"list": [1, {"x": True}]}, {"list": [1.0, {"x": True}]}, True),
        ({"list": [1, {"x": True}]}, {"list": [1, {"x": 1}]}, False),
        ({"a": 1, "b": 2}, {"a": 1, "b": 3}, False),
    ],
)
def test_the_context_is_compared_by_key_or_by_dotted_path(
    stated: dict[str, Any], context: dict[str, Any], holds: bool
) -> None:
    assert matches({"context": stated}, tool_call(**context)) is holds


def test_a_large_context_value_is_not_read_to_be_compared_with_a_plain_one() -> None:
    assert not matches({"context": {"rows": 1}}, tool_call(rows=[0] * 1_000_000))


@pytest.mark.parametrize(
    ("path", "op", "value", "holds"),
    [
        ("$.n", "eq", 5, True),
        ("$.n", "eq", 5.0, True),
        ("$.n", "eq", "5", False),
        ("$.t", "eq", True, True),
        ("$.t", "eq", 1, False),
        ("$.z", "eq", None, True),
        ("$.z", "eq", False, False),
        ("$.o", "eq", {"k": [1.0, 2]}, True),
        ("$.o", "eq", {"k": [2, 1]}, False),
        ("$.o.k[0]", "eq", True, False),
        ("$.missing", "eq", None, False),
        ("$.l[*]", "eq", "y@out.org", True),
        ("$.n", "ne", 5, False),
        ("$.n", "ne", 6, True),
        ("$.t", "ne", 1, True),
        ("$.missing", "ne", 5, True),
        ("$.l[*]", "ne", "x@in.org", False),
        ("$.l[*]", "ne", "z@in.org", True),
        ("$.n", "lt", 6, True),
        ("$.n", "lt", 5, False),
        ("$.n", "lt", 5.5, True),
        ("$.f", "lt", 2, True),
        ("$.s", "lt", "c", True),
        ("$.s", "lt", 6, False),
        ("$.n", "lt", "6", False),
        ("$.t", "lt", 6, False),
        ("$.z", "lt", 6, False),
        ("$.o", "lt", 6, False),
        ("$.missing", "lt", 6, False),
        ("$.o.k[*]", "lt", 2, True),
        ("$.n", "gt", 4, True),
        ("$.n", "gt", 5, False),
        ("$.s", "gt", "a", True),
        ("$.s", "gt", "b", False),
        ("$.t", "gt", 0, False),
        ("$.missing", "gt", 0, False),
        ("$.o.k[*]", "gt", 1, True),
        ("$.n", "in", [4, 5.0], True),
        ("$.n", "in", [4, 6], False),
        ("$.n", "in", [], False),
        ("$.t", "in", [1], False),
        ("$.o", "in", [1, {"k": [1, 2]}], True),
        ("$.missing", "in", [None], False),
        ("$.l[*]", "in", ["y@out.org"], True),
        ("$.s", "glob", "b", True),
        ("$.s", "glob", "B", False),
        ("$.l[*]", "glob", "*@out.org", True),
        ("$.l[*]", "glob", "*@else.org", False),
        ("$.n", "glob", "*", False),
        ("$.missing", "glob", "*", False),
    ],
)
def test_an_argument_test_holds_as_its_operator_says(path: str, op: str, value: Any, holds: bool) -> None:
    assert matches(argument_test(path, op, value), tool_call(ONE)) is holds


@pytest.mark.parametrize(
    ("path", "selects"),
    [
        ("$", True),
        ("$..k[1]", True),
        ("$['o']['k'][-1]", True),
        ("$.o.k[5]", False),
        ("$.o.k[0:1]", True),
        ("$.n.x", False),
        ("$.l[?@ == 'x@in.org']", True),
        ("$[?@.k[0] == 1].k", True),
        ("$[?length(@.k) == 3]", False),
        ("$[?count(@.*) > 0]", True),
        ("$..*..*", True),
    ],
)
def test_paths_are_those_of_rfc_9535(path: str, selects: bool) -> None:
    assert matches(argument_test(path, "ne", "none of them"), tool_call(ONE))
    found = any(
        matches(argument_test(path, op, value), tool_call(ONE))
        for op, value in (("gt", -1), ("gt", ""), ("eq", ONE), ("eq", [1, 2]), ("eq", {"k": [1, 2]}))
    )
    assert found is selects


# --- what cannot be judged --------------------------------------------------------------------------------------------


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("path", "op", "value", "arguments"),
    [
        ("$..*..*..*", "eq", 1, {"rows": [[1, 2, 3]] * 2000}),
        ("$" + "[*,*]" * 99, "eq", 1, {"a": nested(90)}),
        ("$.a" + "[0,0]" * 80, "eq", 2, {"a": nested(90)}),
        ("$..[?count($..*) > 0]", "eq", 1, {"rows": list(range(2000))}),
        ("$..[?@ == $]", "eq", 1, {"rows": [[[1, 2, 3]]] * 500}),
        ("$.rows[*]", "eq", 1, {"rows": [1] * 1_000_000}),
        ("$..*", "eq", 1, {"a": nested(200)}),
        ("$.a", "eq", nested(200), {"a": nested(200)}),
        ("$.a", "eq", [1] * 200_000, {"a": [1] * 200_000}),
        ("$.a", "glob", "*" + "a" * 150 + "b*", {"a": "a" * 5_000_000}),
    ],
)
@pytest.mark.parametrize("action", ["allow", "deny"])
def test_a_deed_that_is_too_large_for_a_rule_is_denied(
    path: str, op: str, value: Any, arguments: dict[str, Any], action: str
) -> None:
    verdict = judged([rule("large", action, condition=argument_test(path, op, value))], tool_call(arguments))
    assert verdict == Verdict(
        PolicyAction.DENY,
        "the rule 'large' could not be judged: the call or the rules are too large",
        "large",
        ("large",),
    )


def test_large_arguments_are_no_matter_for_rules_that_name_one_value() -> None:
    deed = tool_call({"amount": 5, "rows": [{"a": 1}] * 200_000, "text": "a" * 1_000_000})
    assert matches(argument_test("$.amount", "gt", 4), deed)
    assert matches(argument_test("$.rows[199999].a", "eq", 1), deed)
    assert matches(argument_test("$.rows", "ne", "all"), deed)
    assert matches(argument_test("$.text", "glob", "a*"), deed)


def test_ten_thousand_values_can_be_looked_at() -> None:
    deed = tool_call({"rows": [{"a": each} for each in range(5000)]})
    assert matches(argument_test("$.rows[*].a", "gt", 4998), deed)
    assert matches(argument_test("$..a", "eq", 4999), deed)
    assert matches(argument_test("$.rows[?@.a > 4998].a", "in", [4999]), deed)


# --- rules that are refused -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "where", "told"),
    [
        ({"action": "block"}, "action", "'allow', 'deny', 'request_approval' or 'request_user_input'"),
        ({"subjects": ["tool"]}, "subjects.0", "'model_call', 'tool_call' or 'subagent_call'"),
        ({"subjects": []}, "subjects", "at least 1"),
        ({"rule_id": ""}, "rule_id", "at least 1"),
        ({"priority": "1"}, "priority", "integer"),
        ({"priority": True}, "priority", "integer"),
        ({"priority": 1.0}, "priority", "integer"),
        ({"priority": 1_000_001}, "priority", "1000000"),
        ({"arguments": {"x": 1}}, "arguments", "denied needs no arguments"),
        ({"conditions": {}}, "conditions", "not permitted"),
        ({"condition": {"tool": "x"}}, "condition.tool", "not permitted"),
        ({"condition": {"tool_name": ""}}, "condition.tool_name", "at least 1"),
        ({"condition": {"context": {"": 1}}}, "condition.context..[key]", "at least 1"),
        ({"subjects": ["model_call"], "condition": {"tool_name": "*"}}, "condition", "neither a tool_name nor"),
        (
            {"subjects": ["model_call"], "action": "allow", "arguments": {"x": 1}},
            "arguments",
            "model calls have no arguments",
        ),
    ],
)
def test_a_rule_that_cannot_be_meant_is_refused_at_its_field(fields: dict[str, Any], where: str, told: str) -> None:
    ((loc, message),) = problems({**TOOL_CALL, **fields})
    assert loc == where
    assert told in message


@pytest.mark.parametrize(
    ("test", "where", "told"),
    [
        (("$.a", "equals", 1), "op", "'eq', 'ne', 'lt', 'gt', 'in' or 'glob'"),
        (("$.a", "lt", True), "value", "a number or a string"),
        (("$.a", "gt", None), "value", "a number or a string"),
        (("$.a", "gt", [1]), "value", "a number or a string"),
        (("$.a", "in", "abc"), "value", "should be a list"),
        (("$.a", "in", [0] * 1001), "value", "at most 1000"),
        (("$.a", "glob", 1), "value", "should be a string"),
        (("$.a", "glob", "a" * 201), "value", "at most 200"),
        (("", "eq", 1), "path", "is no JSONPath (RFC 9535)"),
        (("amount", "eq", 1), "path", "expected '$'"),
        (("$.", "eq", 1), "path", "is no JSONPath"),
        (("$[", "eq", 1), "path", "is no JSONPath"),
        (("$.a b", "eq", 1), "path", "column 4"),
        (("$[99999999999999999999]", "eq", 1), "path", "out of range"),
        (("$[?match(@.a, '(a+)+$')]", "eq", 1), "path", "'match' is not defined"),
        (("$[?search(@.a, '(a+)+$')]", "eq", 1), "path", "'search' is not defined"),
        (("$." + "a" * 499, "eq", 1), "path", "at most 500"),
    ],
)
def test_an_argument_test_that_cannot_be_meant_is_refused_at_its_field(
    test: tuple[str, str, Any], where: str, told: str
) -> None:
    ((loc, message),) = problems({**TOOL_CALL, "condition": argument_test(*test)})
    assert loc == f"condition.arguments.0.{where}"
    assert told in message


def test_a_rule_needs_an_id_an_action_and_subjects() -> None:
    assert [loc for loc, _ in problems({})] == ["rule_id", "action", "subjects"]
    assert [loc for loc, _ in problems({**TOOL_CALL, "condition": {"arguments": [{}]}})] == [
        "condition.arguments.0.path",
        "condition.arguments.0.op",
        "condition.arguments.0.value",
    ]


def test_a_rule_is_the_same_after_a_trip_through_json() -> None:
    written = rule(
        condition={**argument_test("$.a", "in", [1, "x"]), "context": {"user.tier": "free"}},
        action="allow",
        arguments={"x": 1},
    )
    assert Rule.model_validate_json(written.model_dump_json()) == written


# --- properties -------------------------------------------------------------------------------------------------------

SCALARS = st.none() | st.booleans() | st.integers(-3, 3) | st.floats(-2, 2) | st.text("ab.*", max_size=3)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from("abk"), inner, max_size=3),
    max_leaves=12,
)
OBJECTS = st.dictionaries(st.sampled_from("abk"), VALUES, max_size=3)
PATHS = st.lists(
    st.sampled_from(
        (".a", "..b", "[*]", "..*", "[0,0]", "['a','k']", "[::-1]", "[?@.a]", "[?@ == $.a]", "[?count(@..*) > 1]")
    ),
    max_size=5,
).map(lambda segments: "$" + "".join(segments))


@given(VALUES, VALUES)
def test_values_are_equal_when_their_json_is(one: Any, other: Any) -> None:
    def canonical(value: Any) -> Any:
        if isinstance(value, bool) or not isinstance(value, int | float | list | dict):
            return json.dumps(value)
        if isinstance(value, list):
            return [canonical(each) for each in value]
        if isinstance(value, dict):
            return {name: canonical(each) for name, each in value.items()}
        return float(value)

    equal = canonical(one) == canonical(other)
    assert matches(argument_test("$.x", "eq", other), tool_call({"x": one})) is equal
    assert matches(argument_test("$.x", "ne", other), tool_call({"x": one})) is not equal
    assert matches(argument_test("$.x", "in", [other]), tool_call({"x": one})) is equal
    assert matches({"context": {"x": other}}, tool_call(x=one)) is equal
    assert matches(argument_test("$.x", "eq", json.loads(json.dumps(one))), tool_call({"x": one}))


@given(PATHS, OBJECTS, VALUES)
def test_ne_holds_exactly_where_eq_does_not(path: str, arguments: dict[str, Any], value: Any) -> None:
    deed = tool_call(arguments)
    equal, unequal = (
        judged([rule(condition=argument_test(path, op, value), reason="matched")], deed) for op in ("eq", "ne")
    )
    if {equal.reason, unequal.reason} <= {None, "matched"}:
        assert bool(equal.matched_rules) is not bool(unequal.matched_rules)
    else:
        assert equal.action is unequal.action is PolicyAction.DENY


@given(st.text("$@.[]()*?'\"ab01:,!=<>&| -\\u{}", max_size=40).map(lambda text: "$" + text) | st.text(max_size=20))
def test_whatever_is_written_as_a_path_is_taken_or_refused_at_its_field(path: str) -> None:
    condition = argument_test(path, "eq", 1)
    try:
        verdict = judged([rule(condition=condition)], tool_call(ONE))
    except ValidationError:
        assert [where for where, _ in problems({**TOOL_CALL, "condition": condition})] == ["condition.arguments.0.path"]
    else:
        assert verdict.reason is None
