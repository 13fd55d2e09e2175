"""Rows as the engine's records, and back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any
from uuid import UUID

import asyncpg
import orjson

from app.engine.agent import AgentDefinition, AgentOverrides, AgentVersion
from app.engine.apply import ToolRecord
from app.engine.errors import RunError
from app.engine.events import StoredEvent
from app.engine.messages import Message, ToolCall
from app.engine.records import OnDisconnect, RunRecord, ToolExecution
from app.engine.state import OpenCall
from app.engine.status import RunStatus
from app.engine.store_errors import RunNotFound
from app.engine.tools import ToolEffect, ToolResult
from app.engine.usage import Usage

NO_OVERRIDES = AgentOverrides()

RUN_COLUMNS = """
    run_id, tenant_id, thread_id, thread_key, agent_name, agent_version, agent_version_id, status, control, step,
    attempt, last_seq, input, context, metadata, overrides, requested_model, user_id, parent_run_id, on_disconnect,
    llm_calls, input_tokens, output_tokens, cached_input_tokens, reasoning_tokens, cost_usd, elapsed_s, wall_from_s,
    created_at, started_at, finished_at, result, error, owner, epoch, write_no, crashes, resume_reason, ordinal,
    holds_thread
"""

TOOL_EXECUTIONS = """
    SELECT step, call_index, tool_call_id, tool_name, arguments, effect, started_at, finished_at, outcome
    FROM tool_executions WHERE run_id = $1 ORDER BY step, call_index
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


def run_from_row(row: asyncpg.Record, tools: Iterable[asyncpg.Record] | None = None) -> RunRecord:
    """A run from a row of `RUN_COLUMNS`, with its tool executions if they were read."""
    parent = row["parent_run_id"]
    owner = row["owner"]
    return RunRecord(
        run_id=str(row["run_id"]),
        tenant_id=row["tenant_id"],
        thread_id=row["thread_id"],
        thread_key=str(row["thread_key"]),
        agent_name=row["agent_name"],
        agent_version=row["agent_version"],
        status=RunStatus(row["status"]),
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
        tool_executions=None if tools is None else tuple(tool_execution_from_row(tool) for tool in tools),
    )


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
        )
    call = ToolCall(row["tool_call_id"], row["tool_name"], orjson.loads(row["arguments"]))
    return OpenCall(row["call_index"], call, ToolEffect(row["effect"]), row["started_at"] is not None, result)


def tool_record_arrays(records: Iterable[ToolRecord]) -> list[list[Any]]:
    """Records as the columns of one `unnest`; of two records of one call the later one counts."""
    latest = {(record.step, record.call.index): record for record in records}
    columns: list[list[Any]] = [[], [], [], [], [], [], [], []]
    for (step, index), record in latest.items():
        call = record.call
        values = (
            step,
            index,
            call.call.id,
            call.call.name,
            json_text(call.call.arguments),
            call.effect.value,
            call.started,
            outcome_as_json(call.result),
        )
        for column, value in zip(columns, values, strict=True):
            column.append(value)
    return columns


def _loads(text: str) -> Mapping[str, Any]:
    return {} if text == "{}" else orjson.loads(text)


def _cost(value: Decimal | None) -> Decimal | None:
    return None if value is None else value.normalize()
