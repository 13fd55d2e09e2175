"""Rules of the operator of a service under test (POLICY_MODULES)."""

from __future__ import annotations

from app.engine.deed import Deed
from app.engine.policy import PolicyRule


def _breaks_at_odd(deed: Deed) -> bool:
    if deed.arguments["word"] == "odd":
        raise LookupError("this rule is not ready for it")
    return False


no_secrets = PolicyRule(
    rule_id="no-secrets",
    action="deny",
    subjects=["tool_call"],
    tool_name="lookup",
    predicate=lambda deed: deed.arguments["word"] == "secret",
    priority=9,
)
broken = PolicyRule(
    rule_id="broken", action="allow", subjects=["tool_call"], tool_name="lookup", predicate=_breaks_at_odd
)
