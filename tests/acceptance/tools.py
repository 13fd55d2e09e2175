"""The tools of the services under test (TOOL_MODULES). Those with a gate last until the test opens it."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from app.tools import ToolContext, tool
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


def _through(gate: str, call: ToolContext) -> str:
    entry = {"run_id": call.run_id, "tool_call_id": call.tool_call_id, "idempotency_key": call.idempotency_key}
    note(GATES, gate, "calls", entry)
    while not is_open(GATES, gate):
        time.sleep(_LOOK_EVERY_S)
    note(GATES, gate, "ended", entry)
    return f"{gate} is done"
