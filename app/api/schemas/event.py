"""Events in the OpenAPI document: one schema for each type, and an open one for those that are still to come.

The events themselves are written by `app.engine.events` and pass through here as they are.
"""

from __future__ import annotations

from typing import Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, RootModel, create_model
from pydantic.json_schema import models_json_schema

from app.api.schemas.fields import EXAMPLE_RUN_ID, EXAMPLE_TIME, JsonObject, Resource, Timestamp, example
from app.api.schemas.run import Usage
from app.engine.events import EventType
from app.engine.model import FinishReason
from app.engine.status import RunStatus

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
        "tool_call_count": int,
        "usage": Usage,
        "latency_ms": float,
        "cost_usd": float | None,
    },
    EventType.TOOL_BATCH_STARTED: {"tool_call_count": int, "tool_names": list[str], "tool_call_ids": list[str]},
    EventType.TOOL_STARTED: {"tool_name": str, "tool_call_id": str, "arguments": Any},
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

    type: str = Field(json_schema_extra={"not": {"enum": [kind.value for kind in EventType]}})
    data: JsonObject


def _variant(kind: EventType) -> type[BaseModel]:
    name = "".join(word.capitalize() for word in kind.value.split("_"))
    fields: dict[str, Any] = {field: (type_, ...) for field, type_ in _DATA[kind].items()}
    data = create_model(f"{name}Data", __base__=Resource, **fields)
    members: dict[str, Any] = {"type": (Literal[kind.value], ...), "data": (data, ...)}
    return create_model(f"{name}Event", __base__=_Envelope, **members)


VARIANTS: tuple[type[BaseModel], ...] = (*(_variant(kind) for kind in _DATA), OtherEvent)


def _one_of(schema: JsonObject) -> None:
    schema.clear()
    schema |= {
        "title": "Event",
        "description": "A fact about a run; `type` says which.",
        "oneOf": [{"$ref": REF_TEMPLATE.format(model=variant.__name__)} for variant in VARIANTS],
    }


class Event(RootModel[JsonObject]):
    """Any event."""

    model_config = ConfigDict(json_schema_extra=_one_of)


class EventPage(Resource):
    model_config = example({"items": [_EXAMPLE], "next_cursor": 4})

    items: list[Event]
    next_cursor: int | None = Field(description="Passed back as `after`.")


def variant_schemas() -> dict[str, JsonObject]:
    """The schemas that `Event` refers to, and theirs, by name."""
    inputs = [(variant, "serialization") for variant in VARIANTS]
    _, schemas = models_json_schema(cast("Any", inputs), ref_template=REF_TEMPLATE)
    return cast("dict[str, JsonObject]", schemas["$defs"])
