"""Checkpoints: where a run stood after each of its writes."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from app.api.schemas.fields import EXAMPLE_TIME, JsonObject, Resource, Timestamp, example
from app.api.schemas.thread import MESSAGE_EXAMPLE, Message, message_object
from app.engine.timestamp import timestamp
from app.services.run_queries import CheckpointDetail, CheckpointRecord

_COUNTERS = ("llm_calls", "input_tokens", "output_tokens", "total_tokens", "cached_input_tokens", "reasoning_tokens")
_EXAMPLE: JsonObject = {
    "checkpoint_id": "6",
    "step": 1,
    "phase": "execute_tools",
    "next_action": "execute_tools",
    "message_seq": 2,
    "counters": {
        "llm_calls": 1,
        "tool_calls": 0,
        "input_tokens": 24,
        "output_tokens": 8,
        "total_tokens": 32,
        "cached_input_tokens": 0,
        "reasoning_tokens": 0,
        "cost_usd": 0.00021,
    },
    "created_at": EXAMPLE_TIME,
}
_DETAIL_EXAMPLE: JsonObject = {
    **_EXAMPLE,
    "state": {"model": "gpt-4o-mini-2024-07-18", "pending_tool_calls": ["call_1"]},
    "messages": [MESSAGE_EXAMPLE],
}


class NextAction(StrEnum):
    """What a run that goes on from a checkpoint does first."""

    CALL_MODEL = "call_model"
    EXECUTE_TOOLS = "execute_tools"
    AWAIT = "await"
    FINISH = "finish"


class Counters(Resource):
    """What the run had used by then."""

    llm_calls: int
    tool_calls: int
    input_tokens: int
    output_tokens: int
    total_tokens: int
    cached_input_tokens: int
    reasoning_tokens: int
    cost_usd: float | None


class Checkpoint(Resource):
    model_config = example(_EXAMPLE)

    checkpoint_id: str
    step: int
    phase: NextAction
    next_action: NextAction
    message_seq: int = Field(description="The last message of the thread as of then.")
    counters: Counters
    created_at: Timestamp


class CheckpointWithState(Checkpoint):
    """A checkpoint with what it stands on."""

    model_config = example(_DETAIL_EXAMPLE)

    state: JsonObject
    messages: list[Message]


class CheckpointPage(Resource):
    model_config = example({"items": [_EXAMPLE], "next_cursor": None})

    items: list[Checkpoint]
    next_cursor: str | None


def checkpoint_object(checkpoint: CheckpointRecord) -> JsonObject:
    state = checkpoint.state
    usage = state.get("usage", {})
    return {
        "checkpoint_id": checkpoint.checkpoint_id,
        "step": checkpoint.step,
        "phase": checkpoint.phase,
        "next_action": checkpoint.phase,
        "message_seq": checkpoint.message_seq,
        "counters": {
            **{name: usage.get(name, 0) for name in _COUNTERS},
            "tool_calls": state.get("tool_calls", 0),
            "cost_usd": _number(state.get("cost_usd")),
        },
        "created_at": timestamp(checkpoint.created_at),
    }


def checkpoint_detail_object(detail: CheckpointDetail) -> JsonObject:
    state = detail.checkpoint.state
    return {
        **checkpoint_object(detail.checkpoint),
        "state": {**state, "cost_usd": _number(state.get("cost_usd"))},
        "messages": [message_object(message) for message in detail.messages],
    }


def _number(cost: str | None) -> float | None:
    """Stored as the text of a decimal, so that sums stay exact."""
    return None if cost is None else float(cost)
