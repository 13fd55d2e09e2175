"""The tools of the services under test (TOOL_MODULES). Those with a gate last until the test opens it."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

from app.tools import Deferral, ToolContext, tool
from tests.acceptance.gates import is_open, note

GATES = Path(os.environ["GATES_DIR"])
_LOOK_EVERY_S = 0.01


@tool(effect="read_only")
def lookup(word: str) -> dict[str, Any]:
    """Look a word up.

    Args:
        word: any word.
    """
    return {"word": word, "letters": len(word)}


@tool(effect="read_only")
def fail(reason: str) -> None:
    """Fail."""
    raise ValueError(reason)


@tool(effect="read_only", timeout_s=120)
def read(gate: str, call: ToolContext) -> str:
    """Read something that takes its time."""
    return _through(gate, call)


@tool(effect="idempotent", timeout_s=120)
def put(gate: str, call: ToolContext) -> str:
    """Write something that may be written twice."""
    return _through(gate, call)


@tool(timeout_s=120)
def send(gate: str, call: ToolContext) -> str:
    """Send something that must not be sent twice."""
    return _through(gate, call)


@tool
def order(item: str, call: ToolContext, ttl_s: float = 3600.0) -> Deferral:
    """Order something that comes later; who ordered is on record at the gate of that name."""
    note(GATES, item, "calls", _entry(call))
    return Deferral(f"ticket-{item}", f"ordered {item}", "the parcel comes", ttl_s)


@tool
def order_and_wait(gate: str, call: ToolContext) -> Deferral:
    """Order something, which takes a while itself."""
    return Deferral("ticket", _through(gate, call))


@tool(effect="read_only")
def linger(gate: str, call: ToolContext) -> str:
    """Leave a thread at the gate that Python waits for at its exit."""
    threading.Thread(target=_through, args=(gate, call), daemon=False).start()
    return "left"


@tool(effect="read_only", raise_on_error=True)
def insist(reason: str) -> None:
    """Fail, whatever the agent says of failures."""
    raise ValueError(reason)


def _in_cents(_: ToolContext, arguments: dict[str, Any]) -> dict[str, Any]:
    if arguments["amount"] <= 0:
        raise ValueError("nobody pays nothing")
    return {"amount": 100 * arguments["amount"], "currency": arguments["currency"].upper()}


@tool(effect="idempotent", prehooks=[_in_cents])
def pay(amount: int, currency: str = "eur") -> str:
    """Pay; a hook makes cents of the amount, so that it shows if it runs twice."""
    return f"paid {amount} {currency}"


def _entry(call: ToolContext) -> dict[str, Any]:
    return {"run_id": call.run_id, "tool_call_id": call.tool_call_id, "idempotency_key": call.idempotency_key}


def _through(gate: str, call: ToolContext) -> str:
    entry = _entry(call)
    note(GATES, gate, "calls", entry)
    while not is_open(GATES, gate):
        time.sleep(_LOOK_EVERY_S)
    note(GATES, gate, "ended", entry)
    return f"{gate} is done"
