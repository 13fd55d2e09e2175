"""Events in the OpenAPI document: one schema for each type, and an open one for those that are still to come.

The events themselves are written by `app.engine.events` and pass through here as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, RootModel, create_model
from pydantic.json_schema import models_json_schema

from app.api.schemas.fields import EXAMPLE_RUN_ID, EXAMPLE_TIME, JsonObject, Resource, Timestamp, example
from app.api.schemas.run import Usage, WaitingFor
from app.engine.compaction import CompactionReason
from app.engine.deed import PolicySubject
from app.engine.events import EventType
from app.engine.interactions import Decision, InteractionKind, InteractionStatus
from app.engine.model import FinishReason
from app.engine.policy import PolicyAction
from app.engine.status import RunStatus
from app.services.family_stream import SUBAGENT_EVENT

REF_TEMPLATE = "#/components/schemas/{model}"

_EXAMPLE: JsonObject = {
    "seq": 4,
    "created_at": EXAMPLE_TIME,
    "type": "text_delta",
    "run_id": EXAMPLE_RUN_ID,
    "thread_id": "customer-42",
    "agent_name": "helper",
    "state": "running",
    "step": 1,
    "message": None,
    "data": {"delta": "It is"},
    "schema_version": 1,
}

_TICKET: dict[str, Any] = {"tool_name": str, "tool_call_id": str, "ticket_id": str}
# What stands under `data`, by type. A test holds the keys against EventType.
_DATA: dict[EventType, dict[str, Any]] = {
    EventType.RUN_STARTED: {"agent_name": str, "agent_version": int | None},
    EventType.STEP_STARTED: {"step": int},
    EventType.LLM_CALLED: {"model": str, "provider": str, "message_count": int},
    EventType.TEXT_DELTA: {"delta": str},
    EventType.REASONING_DELTA: {"delta": str},
    EventType.TOOL_CALL_DELTA: {"tool_call_id": str, "tool_name": str, "delta": str},
    EventType.LLM_COMPLETED: {
        "model": str,
        "provider": str,
        "finish_reason": FinishReason,
        "text": str,
        "reasoning": str | None,
        "tool_call_count": int,
        "usage": Usage,
        "latency_ms": float,
        "cost_usd": float | None,
        "reused": bool,
    },
    EventType.THREAD_COMPACTED: {
        "reason": CompactionReason,
        "upto_seq": int,
        "messages_compacted": int,
        "tokens_before": int,
        "tokens_after": int,
        "model": str,
        "usage": Usage,
        "cost_usd": float | None,
    },
    EventType.TOOL_BATCH_STARTED: {"tool_call_count": int, "tool_names": list[str], "tool_call_ids": list[str]},
    EventType.TOOL_STARTED: {"tool_name": str, "tool_call_id": str, "arguments": Any},
    EventType.TOOL_PROGRESS: {"tool_call_id": str, "message": str, "data": Any},
    EventType.TOOL_COMPLETED: {
        "tool_name": str,
        "tool_call_id": str,
        "success": bool,
        "output": Any,
        "error": str | None,
        "latency_ms": float,
        "agent_name": str,
        "agent_depth": int,
        "agent_path": str,
        "replayed": bool,
    },
    EventType.TOOL_DEFERRED: {**_TICKET, "summary": str, "resume_hint": str | None},
    EventType.TOOL_BACKGROUND_RESOLVED: {**_TICKET, "output": Any},
    EventType.TOOL_BACKGROUND_FAILED: {**_TICKET, "error": str},
    EventType.POLICY_DECISION: {
        "subject": PolicySubject,
        "action": PolicyAction,
        "reason": str | None,
        "rule_id": str | None,
        "matched_rules": list[str],
        "tool_name": str | None,
        "tool_call_id": str | None,
    },
    EventType.INTERACTION_REQUESTED: {
        "interaction_id": str,
        "kind": InteractionKind,
        "tool_name": str | None,
        "tool_call_id": str | None,
        "arguments": Any,
        "prompt": str,
        "reason": str | None,
        "expires_at": Timestamp,
    },
    EventType.INTERACTION_RESOLVED: {
        "interaction_id": str,
        "kind": InteractionKind,
        "status": InteractionStatus,
        "tool_name": str | None,
        "tool_call_id": str | None,
        "decision": Decision | None,
        "by": str | None,
        "reason": str | None,
    },
    EventType.SUBAGENT_STARTED: {"subagent_name": str, "run_id": str, "tool_call_id": str},
    EventType.SUBAGENT_COMPLETED: {
        "subagent_name": str,
        "run_id": str,
        "tool_call_id": str,
        "state": RunStatus,
        "success": bool,
        "latency_ms": float,
        "error": str | None,
    },
    EventType.RUN_WAITING: {"waiting_for": list[WaitingFor]},
    EventType.RUN_PAUSED: {"reason": str},
    EventType.RUN_RESUMED: {"reason": str, "attempt": int, "from_seq": int},
    EventType.WARNING: {"code": str},
    EventType.RUN_COMPLETED: {"state": RunStatus, "final_text": str, "usage": Usage},
    EventType.RUN_FAILED: {"code": str, "message": str},
    EventType.RUN_INTERRUPTED: {"code": str, "message": str},
    EventType.RUN_CANCELLED: {"code": str, "message": str},
}


class _Envelope(Resource):
    seq: int = Field(description="1, 2, 3 … within the run, without gaps.")
    created_at: Timestamp
    run_id: str
    thread_id: str
    agent_name: str
    state: RunStatus = Field(description="The run's status once the event holds.")
    step: int
    message: str | None
    schema_version: int


class OtherEvent(_Envelope):
    """A type that came later than this document; clients pass over what they do not know."""

    type: str = Field(json_schema_extra={"not": {"enum": [*(kind.value for kind in EventType), SUBAGENT_EVENT]}})
    data: JsonObject


def _variant(kind: EventType) -> type[BaseModel]:
    name = "".join(word.capitalize() for word in kind.value.split("_"))
    fields: dict[str, Any] = {field: (type_, ...) for field, type_ in _DATA[kind].items()}
    data = create_model(f"{name}Data", __base__=Resource, **fields)
    members: dict[str, Any] = {"type": (Literal[kind.value], ...), "data": (data, ...)}
    return create_model(f"{name}Event", __base__=_Envelope, **members)


def _one_of(title: str, description: str, variants: Sequence[type[BaseModel]]) -> ConfigDict:
    schema = {
        "title": title,
        "description": description,
        "oneOf": [{"$ref": REF_TEMPLATE.format(model=variant.__name__)} for variant in variants],
    }

    def replace(made: JsonObject) -> None:
        made.clear()
        made |= schema

    return ConfigDict(json_schema_extra=replace)


_OF_RUNS = tuple(_variant(kind) for kind in EventType)


class RunEvent(RootModel[JsonObject]):
    """An event of a run's own log."""

    model_config = _one_of("RunEvent", "A fact about a run, as its log has it.", (*_OF_RUNS, OtherEvent))


class SubagentEventData(Resource):
    event: RunEvent


class SubagentEvent(_Envelope):
    """An event of a child run, in streams with `subagents=true`; the envelope, its seq too, is that of the event."""

    type: Literal["subagent_event"]
    data: SubagentEventData


VARIANTS: tuple[type[BaseModel], ...] = (*_OF_RUNS, SubagentEvent, OtherEvent)


class Event(RootModel[JsonObject]):
    """Any event."""

    model_config = _one_of("Event", "A fact about a run; `type` says which.", VARIANTS)


class EventPage(Resource):
    model_config = example({"items": [_EXAMPLE], "next_cursor": 4})

    items: list[Event]
    next_cursor: int | None = Field(description="Passed back as `after`.")


def variant_schemas() -> dict[str, JsonObject]:
    """The schemas that `Event` refers to, and theirs, by name."""
    inputs = [(variant, "serialization") for variant in VARIANTS]
    _, schemas = models_json_schema(cast("Any", inputs), ref_template=REF_TEMPLATE)
    return cast("dict[str, JsonObject]", schemas["$defs"])
