"""Records as services give them."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from app.engine.agent import AgentOverrides
from app.engine.messages import Message, Role
from app.engine.records import OnDisconnect, RunRecord, ToolExecution
from app.engine.status import RunStatus
from app.engine.usage import Usage

RUN_ID = "019aa3f0-5b6e-7c31-9d0c-2f4b8a6e1d57"
MORNING = datetime(2026, 1, 31, 8, 0, tzinfo=UTC)

_RUN = RunRecord(
    run_id=RUN_ID,
    tenant_id="",
    thread_id="customer-42",
    thread_key="019aa3f0-5b6e-7c31-9d0c-2f4b8a6e1d58",
    agent_name="helper",
    agent_version=3,
    status=RunStatus.RUNNING,
    pause_requested=False,
    step=1,
    attempt=1,
    last_event_seq=3,
    input=(Message(Role.USER, "hello"),),
    context={},
    metadata={"team": "a"},
    overrides=AgentOverrides(),
    requested_model="demo/echo",
    user_id=None,
    parent_run_id=None,
    on_disconnect=OnDisconnect.CONTINUE,
    usage=Usage(1, 24, 8),
    cost_usd=Decimal("0.00021"),
    elapsed_s=0.5,
    created_at=MORNING,
    started_at=MORNING,
    finished_at=None,
    result=None,
    error=None,
)

CALL = ToolExecution(
    step=1,
    call_index=0,
    tool_call_id="call_1",
    tool_name="add",
    arguments='{"a": 1}',
    started_at=MORNING,
    finished_at=MORNING,
    success=True,
    output='{"sum": 3.0}',
    error=None,
    latency_ms=1.5,
)


def a_run(**changes: Any) -> RunRecord:
    """A running run, with these changes."""
    return replace(_RUN, **changes)


def a_finished_run(**changes: Any) -> RunRecord:
    """A completed run, with these changes."""
    finished: dict[str, Any] = {
        "status": RunStatus.COMPLETED,
        "finished_at": MORNING,
        "result": {"final_text": "hi", "final_structured": None, "model": "echo", "provider": "demo"},
        "tool_executions": (),
    }
    return replace(_RUN, **{**finished, **changes})
