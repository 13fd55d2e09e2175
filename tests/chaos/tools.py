"""Tools with effects that are on record (TOOL_MODULES), whatever becomes of the process that runs them."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from app.tools import ToolContext, tool
from tests.acceptance.gates import note

GATES = Path(os.environ["GATES_DIR"])


def _on_record(ledger: str, call: ToolContext) -> None:
    entry = {"run_id": call.run_id, "tool_call_id": call.tool_call_id, "idempotency_key": call.idempotency_key}
    note(GATES, ledger, "calls", entry)


@tool(effect="unsafe")
async def charge(ledger: str, call: ToolContext, seconds: float = 0.0) -> str:
    """Do something that must not be done twice."""
    _on_record(ledger, call)
    await asyncio.sleep(seconds)
    return "charged"


@tool(effect="idempotent")
async def store(ledger: str, call: ToolContext, seconds: float = 0.0) -> str:
    """Do something that the other side does once for each key."""
    _on_record(ledger, call)
    await asyncio.sleep(seconds)
    return "stored"


@tool(effect="read_only")
async def look(seconds: float = 0.0) -> str:
    """Look at something for a while."""
    await asyncio.sleep(seconds)
    return "seen"
