"""The desk's own tools: read the rules, and pay."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from app import ToolContext, tool
from examples.refund_desk.orders import read_orders
from examples.refund_desk.payments import pay_back

_POLICY = Path(__file__).with_name("refund_policy.md")


@tool(effect="read_only")
def read_refund_policy() -> str:
    """Read the shop's rules for refunds."""
    return _POLICY.read_text(encoding="utf-8")


@tool(effect="idempotent")
def pay_refund(
    order_id: str, amount_cents: Annotated[int, Field(gt=0)], reason: str, call: ToolContext
) -> dict[str, str | int]:
    """Pay money back for an order of the customer. An order is refunded once.

    Args:
        amount_cents: in cents; at most what was paid for the order.
        reason: the rule that gives it, for the books and for whoever approves.
    """
    # Who the customer is comes from the caller of the API. A model can be talked into another name.
    customer = call.context.get("customer", {}).get("email")
    order = read_orders().get(order_id)
    if order is None or order.email != customer:
        raise ValueError(f"this customer has no order {order_id!r}")
    if amount_cents > order.paid_cents:
        raise ValueError(f"only {order.paid_cents} cents were paid for order {order_id}")
    # The key is the same when this very call is run again after a crash, and no other call has it.
    pay_back(order_id, amount_cents, call.idempotency_key)
    return {"order_id": order_id, "refunded_cents": amount_cents, "reason": reason}
