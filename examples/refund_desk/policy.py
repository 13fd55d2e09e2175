"""The operator's rules. They hold for every agent that this service runs, whoever wrote it."""

from __future__ import annotations

from app import PolicyRule

APPROVAL_ABOVE_CENTS = 100_00

large_refunds = PolicyRule(
    rule_id="large-refunds",
    action="request_approval",
    subjects=["tool_call"],
    tool_name="pay_refund",
    # The arguments are those that the tool will get, validated; a predicate that breaks denies the call.
    predicate=lambda deed: deed.arguments["amount_cents"] > APPROVAL_ABOVE_CENTS,
    reason="a refund of more than EUR 100 needs a person",
)
