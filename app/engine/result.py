"""The AgentResult of a run that is over, put together from its record."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson

from app.engine.records import RunRecord, SubagentExecution, ToolExecution
from app.engine.status import RunStatus
from app.engine.timestamp import timestamp


def agent_result(run: RunRecord) -> dict[str, Any] | None:
    """A run's AgentResult, ready for `orjson.dumps`: tools' outputs stand in it as the JSON text that was stored.

    Args:
        run: with its tool executions and its child runs.

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
        "subagent_executions": [_subagent_execution(execution) for execution in run.subagent_executions or ()],
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
        "latency_ms": None if execution.latency_ms is None else round(execution.latency_ms, 3),
        "agent_name": run.identity.agent_name,
        "agent_depth": run.identity.agent_depth,
        "agent_path": run.identity.agent_path,
    }


def _subagent_execution(execution: SubagentExecution) -> dict[str, Any]:
    return {
        "subagent_name": execution.subagent_name,
        "run_id": execution.run_id,
        "success": execution.status in (RunStatus.COMPLETED, RunStatus.DEGRADED),
        "state": execution.status,
        "output_text": execution.output_text,
        "error": execution.error,
        "latency_ms": None if execution.latency_ms is None else round(execution.latency_ms, 3),
        "usage": execution.usage.as_dict(),
    }


@dataclass(frozen=True, slots=True)
class ToolExecutionRecord:
    """One tool call of a run. `output` is the tool's value as JSON, `latency_ms` in milliseconds."""

    tool_name: str
    tool_call_id: str
    success: bool
    output: Any
    error: str | None
    latency_ms: float | None
    agent_name: str
    agent_depth: int
    agent_path: str


@dataclass(frozen=True, slots=True)
class SubagentExecutionRecord:
    """One child run of a run.

    Args:
        success: whether it ended completed or degraded.
        output_text: its final text; None where it has none.
        latency_ms: from its creation to its end, in milliseconds.
        usage: of the child and of its own children; the keys are those of `AgentResult.usage_aggregate`.
    """

    subagent_name: str
    run_id: str
    success: bool
    state: RunStatus
    output_text: str | None
    error: str | None
    latency_ms: float | None
    usage: dict[str, int]


@dataclass(frozen=True, slots=True)
class AgentResult:
    """How a run ended, for Python callers; the fields are those of the HTTP API's `result`.

    Args:
        final_text: of a cancelled or interrupted run the text of its open step, of a failed one the error message.
        state: completed, degraded, failed, cancelled or interrupted.
        usage_aggregate: llm_calls, input_tokens, output_tokens, total_tokens, cached_input_tokens, reasoning_tokens.
        total_cost_usd: US dollars; None where a price is unknown.
        state_snapshot: step, llm_calls, tool_calls, attempts, started_at, elapsed_s, replayed_effects.
        error: code, message, retryable; None unless failed, degraded or interrupted.
    """

    final_text: str
    state: RunStatus
    run_id: str
    thread_id: str
    tool_executions: tuple[ToolExecutionRecord, ...]
    subagent_executions: tuple[SubagentExecutionRecord, ...]
    usage_aggregate: dict[str, int]
    total_cost_usd: float | None
    final_structured: Any
    requested_model: str
    model: str | None
    provider: str | None
    state_snapshot: dict[str, Any]
    error: dict[str, Any] | None


def result_of(run: RunRecord) -> AgentResult:
    """The AgentResult of a run that is over, with its tool executions and its child runs."""
    fields: dict[str, Any] = orjson.loads(orjson.dumps(agent_result(run)))
    fields["state"] = RunStatus(fields["state"])
    fields["tool_executions"] = tuple(ToolExecutionRecord(**each) for each in fields["tool_executions"])
    fields["subagent_executions"] = tuple(_subagent_record(each) for each in fields["subagent_executions"])
    return AgentResult(**fields)


def _subagent_record(fields: dict[str, Any]) -> SubagentExecutionRecord:
    fields["state"] = RunStatus(fields["state"])
    return SubagentExecutionRecord(**fields)
