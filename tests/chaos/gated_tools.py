"""Tools that last until the test opens their gate, beside the event loop or in its way (TOOL_MODULES)."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

from app.tools import ToolContext, tool
from tests.acceptance.gates import Gate, is_open, note

GATES = Path(os.environ["GATES_DIR"])


def _came(gate: str, call: ToolContext) -> None:
    entry = {"run_id": call.run_id, "tool_call_id": call.tool_call_id, "idempotency_key": call.idempotency_key}
    note(GATES, gate, "calls", entry)


@tool(effect="read_only", timeout_s=120)
async def stay(gate: str, call: ToolContext) -> str:
    """Wait at a gate; no thread is taken."""
    _came(gate, call)
    while not is_open(GATES, gate):
        await asyncio.sleep(0.01)
    return "stayed"


@tool(effect="idempotent", timeout_s=120)
async def freeze(gate: str, call: ToolContext) -> str:
    """Hold up the whole event loop until the gate is open, the first time; later calls go through."""
    first = not Gate(GATES, gate).calls()
    _came(gate, call)
    while first and not is_open(GATES, gate):
        time.sleep(0.01)
    return "thawed"
