"""Tools with effects that are on record (TOOL_MODULES), whatever becomes of the process that runs them."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

from app.tools import ToolContext, tool
from tests.acceptance.gates import Gate, note

GATES = Path(os.environ["GATES_DIR"])


def _on_record(ledger: str, call: ToolContext, kind: str = "calls", **more: bool) -> None:
    entry = {"run_id": call.run_id, "tool_call_id": call.tool_call_id, "idempotency_key": call.idempotency_key}
    note(GATES, ledger, kind, {**entry, **more})


@tool(effect="unsafe")
async def charge(ledger: str, call: ToolContext, seconds: float = 0.0) -> str:
    """Do something that must not be done twice."""
    _on_record(ledger, call)
    await asyncio.sleep(seconds)
    _on_record(ledger, call, "ended")
    return "charged"


@tool(effect="idempotent")
async def store(ledger: str, call: ToolContext, seconds: float = 0.0) -> str:
    """Do something that the other side does once for each key."""
    _on_record(ledger, call)
    await asyncio.sleep(seconds)
    _on_record(ledger, call, "ended")
    return "stored"


@tool(effect="read_only")
async def look(seconds: float = 0.0) -> str:
    """Look at something for a while."""
    await asyncio.sleep(seconds)
    return "seen"


@tool(effect="read_only", timeout_s=120)
async def persist(ledger: str, call: ToolContext) -> str:
    """Go on until cancelled, which is on record as well; who comes again with the same key goes through."""
    known = [entry["idempotency_key"] for entry in Gate(GATES, ledger).calls()]
    _on_record(ledger, call)
    try:
        while call.idempotency_key not in known:
            await asyncio.sleep(60.0)
    except asyncio.CancelledError:
        _on_record(ledger, call, cancelled=True)
        raise
    return "persisted"


@tool(effect="read_only")
async def die(seconds: float = 0.0) -> None:
    """Take the process down, as a defect in native code would."""
    await asyncio.sleep(seconds)
    os.kill(os.getpid(), signal.SIGKILL)
