"""Rows as the engine's records, and back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import asyncpg
import orjson

from app.engine.agent import AgentDefinition, AgentOverrides, AgentVersion
from app.engine.effects import ToolEffect
from app.engine.errors import RunError
from app.engine.events import StoredEvent
from app.engine.messages import Message, ToolCall
from app.engine.records import ForkedFrom, OnDisconnect, RunRecord, SubagentExecution, ToolExecution
from app.engine.state import Hold, OpenCall
from app.engine.status import RunStatus
from app.engine.store_errors import RunNotFound
from app.engine.tools import ToolResult
from app.engine.transition import ToolRecord
from app.engine.usage import Usage

NO_OVERRIDES = AgentOverrides()

RUN_COLUMNS = """
    run_id, tenant_id, thread_id, thread_key, agent_name, agent_version, agent_version_id, status, control, step,
    attempt, last_seq, input, context, metadata, overrides, requested_model, user_id, parent_run_id, on_disconnect,
    llm_calls, input_tokens, output_tokens, cached_input_tokens, reasoning_tokens, cost_usd, elapsed_s, wall_from_s,
    created_at, started_at, finished_at, result, error, owner, epoch, write_no, crashes, resume_reason, ordinal,
    holds_thread, wakes, waiting_for, agent_depth, agent_path, root_run_id, forked_from_run_id, forked_from_checkpoint,
    trace_context
"""

TOOL_EXECUTIONS = """
    SELECT step, call_index, tool_call_id, tool_name, arguments, final_arguments, effect, judged, hold, child_run_id,
           started_at, finished_at, outcome
    FROM tool_executions WHERE run_id = $1 ORDER BY step, call_index
"""

# The columns of `tool_record_arrays`, each with its type.
TOOL_RECORD_COLUMNS = (
    ("call_steps", "int[]"),
    ("call_indexes", "int[]"),
    ("call_ids", "text[]"),
    ("call_names", "text[]"),
    ("call_arguments", "text[]"),
    ("call_effects", "text[]"),
    ("call_started", "bool[]"),
    ("call_outcomes", "text[]"),
    ("call_judged", "bool[]"),
    ("call_final", "text[]"),
    ("call_holds", "text[]"),
    ("call_children", "uuid[]"),
    ("call_expiries", "timestamptz[]"),
)

# The child runs of a run, in the order of the calls that made them.
SUBAGENT_EXECUTIONS = """
    SELECT c.agent_name, c.run_id, c.status, c.result, c.error, c.created_at, c.finished_at, c.llm_calls,
           c.input_tokens, c.output_tokens, c.cached_input_tokens, c.reasoning_tokens
    FROM tool_executions t JOIN runs c ON c.run_id = t.child_run_id
    WHERE t.run_id = $1 ORDER BY t.step, t.call_index
"""


def run_uuid(run_id: str) -> UUID:
    """The id as the database holds it.

    Raises:
        RunNotFound: it is no UUID, so there is no run of that id.
    """
    try:
        return UUID(run_id)
    except ValueError:
        raise RunNotFound(run_id) from None


def json_text(value: Any) -> str:
    return orjson.dumps(value).decode()


def messages_as_json(messages: Iterable[Message]) -> str:
    return json_text([{"role": message.role, **message.body()} for message in messages])


def messages_from_json(text: str) -> tuple[Message, ...]:
    return tuple(Message.from_body(entry["role"], entry) for entry in orjson.loads(text))


def overrides_as_json(overrides: AgentOverrides) -> str:
    return "{}" if overrides is NO_OVERRIDES else overrides.model_dump_json(exclude_none=True)


def overrides_from_json(text: str) -> AgentOverrides:
    return NO_OVERRIDES if text == "{}" else AgentOverrides.model_validate_json(text)


def definition_from_json(version_id: UUID, version: int | None, text: str) -> AgentVersion:
    return AgentVersion(str(version_id), AgentDefinition.model_validate_json(text), version)


def run_from_row(
    row: asyncpg.Record,
    tools: Iterable[asyncpg.Record] | None = None,
    subagents: Iterable[asyncpg.Record] = (),
) -> RunRecord:
    """A run from a row of `RUN_COLUMNS`, with its tool and subagent executions if they were read."""
    parent = row["parent_run_id"]
    owner = row["owner"]
    status = RunStatus(row["status"])
    waits = status is RunStatus.WAITING and row["waiting_for"] is not None
    return RunRecord(
        run_id=str(row["run_id"]),
        tenant_id=row["tenant_id"],
        thread_id=row["thread_id"],
        thread_key=str(row["thread_key"]),
        agent_name=row["agent_name"],
        agent_version=row["agent_version"],
        status=status,
        pause_requested=row["control"] == "pause",
        step=row["step"],
        attempt=row["attempt"],
        last_event_seq=row["last_seq"],
        input=messages_from_json(row["input"]),
        context=_loads(row["context"]),
        metadata=_loads(row["metadata"]),
        overrides=overrides_from_json(row["overrides"]),
        requested_model=row["requested_model"],
        user_id=row["user_id"],
        parent_run_id=None if parent is None else str(parent),
        on_disconnect=OnDisconnect(row["on_disconnect"]),
        usage=usage_from_row(row),
        cost_usd=_cost(row["cost_usd"]),
        elapsed_s=row["elapsed_s"],
        created_at=row["created_at"],
        started_at=row["started_at"],
        finished_at=row["finished_at"],
        result=None if row["result"] is None else orjson.loads(row["result"]),
        error=None if row["error"] is None else RunError.from_dict(orjson.loads(row["error"])),
        owner=None if owner is None else str(owner),
        epoch=row["epoch"],
        wakes=row["wakes"],
        waiting_for=tuple(orjson.loads(row["waiting_for"])) if waits else (),
        agent_depth=row["agent_depth"],
        agent_path=row["agent_path"],
        root_run_id=str(row["root_run_id"]),
        forked_from=forked_from(row["forked_from_run_id"], row["forked_from_checkpoint"]),
        trace_context=row["trace_context"],
        tool_executions=None if tools is None else tuple(tool_execution_from_row(tool) for tool in tools),
        subagent_executions=None if tools is None else tuple(_subagent_from_row(child) for child in subagents),
    )


def forked_from(run_id: UUID | None, checkpoint: int | None) -> ForkedFrom | None:
    """Where a run was forked, from its two columns; None of a run that is no fork."""
    if run_id is None:
        return None
    return ForkedFrom(str(run_id), None if checkpoint is None else str(checkpoint))


def usage_from_row(row: asyncpg.Record) -> Usage:
    return Usage(
        row["llm_calls"],
        row["input_tokens"],
        row["output_tokens"],
        row["cached_input_tokens"],
        row["reasoning_tokens"],
    )


def event_from_row(row: asyncpg.Record) -> StoredEvent:
    return StoredEvent(row["seq"], row["type"], row["created_at"], row["body"])


def outcome_as_json(result: ToolResult | None) -> str | None:
    """The result of a call; its output stands inside as the JSON that it is."""
    if result is None:
        return None
    return json_text(
        {
            "success": result.success,
            "output": None if result.output is None else orjson.Fragment(result.output),
            "error": result.error,
            "content": result.content,
            "latency_ms": result.latency_ms,
            "replayed": result.replayed,
            "denied": result.denied,
        }
    )


def tool_execution_from_row(row: asyncpg.Record) -> ToolExecution:
    outcome: dict[str, Any] = {} if row["outcome"] is None else orjson.loads(row["outcome"])
    output = outcome.get("output")
    return ToolExecution(
        step=row["step"],
        call_index=row["call_index"],
        tool_call_id=row["tool_call_id"],
        tool_name=row["tool_name"],
        arguments=orjson.loads(row["arguments"]),
        started_at=row["started_at"],
        finished_at=row["finished_at"],
        success=outcome.get("success"),
        output=None if output is None else json_text(output),
        error=outcome.get("error"),
        latency_ms=outcome.get("latency_ms"),
        replayed=outcome.get("replayed", False),
        child_run_id=None if row["child_run_id"] is None else str(row["child_run_id"]),
    )


def latency_ms(created_at: datetime, finished_at: datetime | None) -> float | None:
    """Milliseconds from a child run's creation to its end."""
    return None if finished_at is None else (finished_at - created_at).total_seconds() * 1000


def _subagent_from_row(row: asyncpg.Record) -> SubagentExecution:
    status = RunStatus(row["status"])
    result = None if row["result"] is None else orjson.loads(row["result"])
    error = None if row["error"] is None else orjson.loads(row["error"])
    return SubagentExecution(
        subagent_name=row["agent_name"],
        run_id=str(row["run_id"]),
        status=status,
        output_text=None if result is None else result.get("final_text"),
        error=None if error is None else error["message"],
        latency_ms=latency_ms(row["created_at"], row["finished_at"]),
        usage=usage_from_row(row),
    )


def open_call_from_row(row: asyncpg.Record) -> OpenCall:
    outcome: dict[str, Any] | None = None if row["outcome"] is None else orjson.loads(row["outcome"])
    result = None
    if outcome is not None:
        output = outcome["output"]
        result = ToolResult(
            success=outcome["success"],
            output=None if output is None else json_text(output),
            error=outcome["error"],
            content=outcome["content"],
            latency_ms=outcome["latency_ms"],
            replayed=outcome["replayed"],
            denied=outcome.get("denied", False),
        )
    started = row["started_at"] is not None
    return OpenCall(
        index=row["call_index"],
        call=ToolCall(row["tool_call_id"], row["tool_name"], orjson.loads(row["arguments"])),
        effect=ToolEffect(row["effect"]),
        started=started,
        result=result,
        judged=row["judged"] or started,
        arguments=None if row["final_arguments"] is None else orjson.loads(row["final_arguments"]),
        hold=None if row["hold"] is None else Hold.from_dict(orjson.loads(row["hold"])),
    )


def tool_record_arrays(records: Iterable[ToolRecord]) -> list[list[Any]]:
    """Records as the columns of one `unnest`; of two records of one call the later one counts."""
    latest = {(record.step, record.call.index): record for record in records}
    columns: list[list[Any]] = [[] for _ in TOOL_RECORD_COLUMNS]
    for (step, index), record in latest.items():
        call = record.call
        hold = call.hold
        values = (
            step,
            index,
            call.call.id,
            call.call.name,
            json_text(call.call.arguments),
            call.effect.value,
            call.started,
            outcome_as_json(call.result),
            call.judged,
            None if call.arguments is None else json_text(call.arguments),
            None if hold is None else json_text(hold.as_dict()),
            call.child_run_id,
            None if hold is None else hold.expires_at,
        )
        for column, value in zip(columns, values, strict=True):
            column.append(value)
    return columns


def _loads(text: str) -> Mapping[str, Any]:
    return {} if text == "{}" else orjson.loads(text)


def _cost(value: Decimal | None) -> Decimal | None:
    return None if value is None else value.normalize()
