"""The shop's orders: what both the MCP server and the payment tool know of them."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, TypeAdapter

_FILE = Path(__file__).with_name("orders.json")


class Order(BaseModel):
    order_id: str
    email: str
    item: str
    paid_cents: int
    history: list[str]
    customer_note: str


_ORDERS = TypeAdapter(list[Order])


def read_orders() -> dict[str, Order]:
    """All orders by their ids, as they are in the file now."""
    return {order.order_id: order for order in _ORDERS.validate_json(_FILE.read_bytes())}
