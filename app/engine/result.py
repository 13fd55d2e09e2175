"""The AgentResult of a run that is over, put together from its record."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import orjson

from app.engine.records import RunRecord, ToolExecution


def timestamp(moment: datetime) -> str:
    """A moment as callers read it: UTC, always with microseconds, `2026-01-31T08:00:00.000000Z`.

    Args:
        moment: with its time zone.
    """
    if moment.tzinfo is not UTC:
        moment = moment.astimezone(UTC)
    return f"{moment.isoformat(timespec='microseconds')[:-6]}Z"


def agent_result(run: RunRecord) -> dict[str, Any] | None:
    """A run's AgentResult, ready for `orjson.dumps`: tools' outputs stand in it as the JSON text that was stored.

    Args:
        run: with its tool executions.

    Returns:
        None while the run is not over.
    """
    if not run.status.terminal:
        return None
    scalars = run.result or {}
    executions = run.tool_executions or ()
    return {
        "final_text": scalars.get("final_text") or "",
        "state": run.status,
        "run_id": run.run_id,
        "thread_id": run.thread_id,
        "tool_executions": [_tool_execution(execution, run) for execution in executions],
        "subagent_executions": [],
        "usage_aggregate": run.usage.as_dict(),
        "total_cost_usd": None if run.cost_usd is None else float(run.cost_usd),
        "final_structured": scalars.get("final_structured"),
        "requested_model": run.requested_model,
        "model": scalars.get("model"),
        "provider": scalars.get("provider"),
        "state_snapshot": {
            "step": run.step,
            "llm_calls": run.usage.llm_calls,
            "tool_calls": sum(execution.started_at is not None for execution in executions),
            "attempts": run.attempt,
            "started_at": None if run.started_at is None else timestamp(run.started_at),
            "elapsed_s": run.elapsed_s,
            "replayed_effects": sum(execution.replayed for execution in executions),
        },
        "error": None if run.error is None else run.error.as_dict(),
    }


def _tool_execution(execution: ToolExecution, run: RunRecord) -> dict[str, Any]:
    error = execution.error
    if execution.success is None:
        begun = execution.started_at is not None
        error = "the run ended before the call did" if begun else "the run ended before the call was begun"
    return {
        "tool_name": execution.tool_name,
        "tool_call_id": execution.tool_call_id,
        "success": execution.success or False,
        "output": None if execution.output is None else orjson.Fragment(execution.output),
        "error": error,
        "latency_ms": execution.latency_ms,
        "agent_name": run.identity.agent_name,
        "agent_depth": run.identity.agent_depth,
        "agent_path": run.identity.agent_path,
    }
