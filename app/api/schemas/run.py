"""The Run and its AgentResult."""

from __future__ import annotations

from typing import Any

import orjson
from pydantic import Field

from app.api.schemas.content import InputMessage
from app.api.schemas.fields import EXAMPLE_RUN_ID, EXAMPLE_TIME, JsonObject, Metadata, Resource, Timestamp, example
from app.engine.messages import Message, Role
from app.engine.records import RunRecord
from app.engine.result import agent_result
from app.engine.state import HoldKind
from app.engine.status import RunStatus
from app.engine.timestamp import timestamp

USAGE_EXAMPLE: JsonObject = {
    "llm_calls": 1,
    "input_tokens": 24,
    "output_tokens": 8,
    "total_tokens": 32,
    "cached_input_tokens": 0,
    "reasoning_tokens": 0,
}
RESULT_EXAMPLE: JsonObject = {
    "final_text": "It is sunny in Bern.",
    "state": "completed",
    "run_id": EXAMPLE_RUN_ID,
    "thread_id": "customer-42",
    "tool_executions": [],
    "subagent_executions": [],
    "usage_aggregate": USAGE_EXAMPLE,
    "total_cost_usd": 0.00021,
    "final_structured": None,
    "requested_model": "openai/gpt-4o-mini",
    "model": "gpt-4o-mini-2024-07-18",
    "provider": "openai",
    "state_snapshot": {
        "step": 1,
        "llm_calls": 1,
        "tool_calls": 0,
        "attempts": 1,
        "started_at": EXAMPLE_TIME,
        "elapsed_s": 0.84,
        "replayed_effects": 0,
    },
    "error": None,
}
RUN_EXAMPLE: JsonObject = {
    "run_id": EXAMPLE_RUN_ID,
    "thread_id": "customer-42",
    "agent_name": "helper",
    "agent_version": 1,
    "status": "completed",
    "waiting_for": [],
    "pause_requested": False,
    "step": 1,
    "attempt": 1,
    "last_event_seq": 9,
    "input": "What is the weather in Bern?",
    "metadata": {"team": "support"},
    "user_id": None,
    "parent_run_id": None,
    "forked_from": None,
    "created_at": EXAMPLE_TIME,
    "started_at": EXAMPLE_TIME,
    "finished_at": "2026-01-31T08:00:00.840000Z",
    "result": RESULT_EXAMPLE,
    "error": None,
}


class RunProblem(Resource):
    """Why a run failed, was interrupted, or is degraded."""

    code: str
    message: str
    retryable: bool


class Usage(Resource):
    """Token counts. Cached ones are part of the input, reasoning ones part of the output."""

    llm_calls: int
    input_tokens: int
    output_tokens: int
    total_tokens: int
    cached_input_tokens: int
    reasoning_tokens: int


class ToolExecutionRecord(Resource):
    tool_name: str
    tool_call_id: str
    success: bool
    output: Any = Field(description="What the tool returned, any JSON; null where it failed.")
    error: str | None
    latency_ms: float | None
    agent_name: str
    agent_depth: int
    agent_path: str


class SubagentExecutionRecord(Resource):
    """One delegation: the child run, and how it ended."""

    subagent_name: str
    run_id: str
    success: bool
    state: RunStatus
    output_text: str | None
    error: str | None
    latency_ms: float | None
    usage: Usage = Field(description="Of the child run and of its own child runs.")


class StateSnapshot(Resource):
    step: int
    llm_calls: int
    tool_calls: int
    attempts: int
    started_at: Timestamp | None
    elapsed_s: float = Field(description="Seconds of active time.")
    replayed_effects: int


class AgentResult(Resource):
    """How a run ended."""

    final_text: str
    state: RunStatus
    run_id: str
    thread_id: str
    tool_executions: list[ToolExecutionRecord]
    subagent_executions: list[SubagentExecutionRecord]
    usage_aggregate: Usage
    total_cost_usd: float | None = Field(description="Null where the price is unknown.")
    final_structured: Any = Field(description="JSON that fits the response schema, or null.")
    requested_model: str
    model: str | None
    provider: str | None
    state_snapshot: StateSnapshot
    error: RunProblem | None


class WaitingFor(Resource):
    """What a run waits for: somebody's answer, a result that somebody posts, or the end of a child run."""

    kind: HoldKind
    id: str = Field(description="The id of the interaction, the tool call or the child run.")


class ForkedFrom(Resource):
    run_id: str
    checkpoint_id: str | None = Field(description="Null where that run had not begun.")


class Run(Resource):
    """One execution of an agent on a thread."""

    model_config = example(RUN_EXAMPLE)

    run_id: str = Field(description="A UUIDv7.")
    thread_id: str
    agent_name: str
    agent_version: int | None = Field(description="Null for an inline definition.")
    status: RunStatus
    waiting_for: list[WaitingFor] = Field(description="Empty unless the run is waiting.")
    pause_requested: bool
    step: int
    attempt: int
    last_event_seq: int
    input: str | list[InputMessage]
    metadata: Metadata
    user_id: str | None
    parent_run_id: str | None
    forked_from: ForkedFrom | None
    created_at: Timestamp
    started_at: Timestamp | None
    finished_at: Timestamp | None
    result: AgentResult | None = Field(description="In a terminal state; never in lists.")
    error: RunProblem | None


class RunPage(Resource):
    model_config = example({"items": [{**RUN_EXAMPLE, "result": None}], "next_cursor": None})

    items: list[Run]
    next_cursor: str | None


class RunsCreated(Resource):
    """Runs in the order in which they were asked for."""

    model_config = example({"items": [RUN_EXAMPLE]})

    items: list[Run]


def run_json(run: RunRecord) -> bytes:
    return orjson.dumps(run_object(run))


def run_object(run: RunRecord, *, with_result: bool = True) -> JsonObject:
    """A run as JSON values for `orjson.dumps`.

    Args:
        with_result: False in lists, whose records have no results and no tool executions.
    """
    origin = run.forked_from
    return {
        "run_id": run.run_id,
        "thread_id": run.thread_id,
        "agent_name": run.agent_name,
        "agent_version": run.agent_version,
        "status": run.status,
        "waiting_for": [dict(entry) for entry in run.waiting_for],
        "pause_requested": run.pause_requested,
        "step": run.step,
        "attempt": run.attempt,
        "last_event_seq": run.last_event_seq,
        "input": _input(run.input),
        "metadata": run.metadata,
        "user_id": run.user_id,
        "parent_run_id": run.parent_run_id,
        "forked_from": None if origin is None else {"run_id": origin.run_id, "checkpoint_id": origin.checkpoint_id},
        "created_at": timestamp(run.created_at),
        "started_at": None if run.started_at is None else timestamp(run.started_at),
        "finished_at": None if run.finished_at is None else timestamp(run.finished_at),
        "result": agent_result(run) if with_result else None,
        "error": None if run.error is None else run.error.as_dict(),
    }


def _input(messages: tuple[Message, ...]) -> str | list[JsonObject]:
    """As it is usually written: a single user message of plain text is a string."""
    if len(messages) == 1 and messages[0].role is Role.USER and isinstance(messages[0].content, str):
        return messages[0].content
    return [{"role": message.role, "content": message.content} for message in messages]
