"""Rules and deeds for tests of policy, and what is said of them."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from app.engine.policy import Deed, PolicyAction, PolicyEngine, PolicyRule, PolicySubject, Rule, Verdict

TOOL_CALL = {"rule_id": "r", "action": "deny", "subjects": ["tool_call"]}
ONE = {"n": 5, "s": "b", "t": True, "z": None, "o": {"k": [1, 2]}, "l": ["x@in.org", "y@out.org"], "f": 1.5}


def tool_call(arguments: Any = None, *, tool: str = "refund", agent: str = "clerk", **context: Any) -> Deed:
    return Deed(PolicySubject.TOOL_CALL, agent, context, tool, {} if arguments is None else arguments)


def rule(rule_id: str = "r", action: str = "deny", **fields: Any) -> Rule:
    return Rule.model_validate({"rule_id": rule_id, "action": action, "subjects": ["tool_call"], **fields})


def matches(condition: dict[str, Any], deed: Deed) -> bool:
    verdict = PolicyEngine().judge(deed, [rule(condition=condition)])
    assert verdict is not None
    assert verdict.action is (PolicyAction.DENY if verdict.matched_rules else PolicyAction.ALLOW)
    assert verdict.reason is None, "the rule could not be judged"
    return bool(verdict.matched_rules)


def argument_test(path: str, op: str, value: Any) -> dict[str, Any]:
    return {"arguments": [{"path": path, "op": op, "value": value}]}


def judged(rules: list[PolicyRule | Rule], deed: Deed, agent_rules: list[Rule] | None = None) -> Verdict:
    verdict = PolicyEngine(rules).judge(deed, agent_rules or [])
    assert verdict is not None
    return verdict


def problems(data: Any) -> list[tuple[str, str]]:
    with pytest.raises(ValidationError) as refused:
        Rule.model_validate(data)
    return [(".".join(map(str, each["loc"])), each["msg"]) for each in refused.value.errors()]
