"""Stands for a payment provider: like theirs, it drops a request whose idempotency key it has seen."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path


def pay_back(order_id: str, amount_cents: int, idempotency_key: str) -> None:
    """Pay, once for each order, whatever happens to the caller meanwhile.

    Raises:
        ValueError: the order was refunded by another request.
    """
    path = Path(os.environ.get("REFUNDS_DB") or ".data/refunds.sqlite3")
    path.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(path)) as database, database:
        database.execute(
            "CREATE TABLE IF NOT EXISTS refunds (order_id TEXT PRIMARY KEY, amount_cents INTEGER, key TEXT)"
        )
        refund = (order_id, amount_cents, idempotency_key)
        database.execute("INSERT INTO refunds VALUES (?, ?, ?) ON CONFLICT DO NOTHING", refund)
        (key,) = database.execute("SELECT key FROM refunds WHERE order_id = ?", (order_id,)).fetchone()
    if key != idempotency_key:
        raise ValueError(f"order {order_id} was refunded before")
