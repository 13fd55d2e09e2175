"""Interactions: questions of runs to people, their answers, and results that come from outside."""

from __future__ import annotations

from typing import Annotated, Any

import orjson
from pydantic import Field, StringConstraints

from app.api.errors import InvalidRequest
from app.api.schemas.fields import EXAMPLE_RUN_ID, EXAMPLE_TIME, JsonObject, RequestModel, Resource, Timestamp, example
from app.engine.interactions import Decision, InteractionKind, InteractionRecord, InteractionStatus
from app.engine.messages import json_or_text
from app.engine.records import Stimulated
from app.engine.status import RunStatus
from app.engine.timestamp import timestamp
from app.services.interactions import Resolution

_EXAMPLE: JsonObject = {
    "interaction_id": "019aa3f0-5b6e-7c31-9d0c-2f4b8a6e1d59",
    "run_id": EXAMPLE_RUN_ID,
    "kind": "approval",
    "tool_name": "refund",
    "tool_call_id": "call_1",
    "arguments": {"order_id": "A-7", "amount": 120},
    "prompt": "May helper call refund?",
    "reason": "refunds over 100 need a person",
    "status": "pending",
    "decision": None,
    "value": None,
    "decided_by": None,
    "expires_at": "2026-01-31T08:05:00.000000Z",
    "created_at": EXAMPLE_TIME,
    "resolved_at": None,
}
_RESOLVED_EXAMPLE: JsonObject = {
    **_EXAMPLE,
    "status": "resolved",
    "decision": "approve",
    "decided_by": "ann",
    "resolved_at": "2026-01-31T08:01:00.000000Z",
}

_DecidedBy = Annotated[str, StringConstraints(min_length=1, max_length=200)]


class Interaction(Resource):
    """A question of a run to a person. Until it is answered, or `expires_at`, the run waits."""

    model_config = example(_RESOLVED_EXAMPLE)

    interaction_id: str = Field(description="A UUIDv7.")
    run_id: str
    kind: InteractionKind
    tool_name: str | None = Field(description="Null where the question is about a model call.")
    tool_call_id: str | None
    arguments: JsonObject | str | None = Field(
        description="What the call would run with; a string where the model wrote no JSON object."
    )
    prompt: str
    reason: str | None = Field(description="Why it is asked.")
    status: InteractionStatus = Field(
        description="`expired`: nobody answered in time, and the agent's fallback decided. "
        "`closed`: the run ended, or went on another way, before anyone answered."
    )
    decision: Decision | None
    value: Any = Field(description="The value that was supplied, any JSON, or null.")
    decided_by: str | None = Field(description="Who decided, as they said; `expiry` for the fallback.")
    expires_at: Timestamp
    created_at: Timestamp
    resolved_at: Timestamp | None


class InteractionPage(Resource):
    model_config = example({"items": [_EXAMPLE], "next_cursor": None})

    items: list[Interaction]
    next_cursor: str | None


class InteractionResolve(RequestModel):
    """An answer. Null is the same as absent."""

    model_config = example({"decision": "approve", "decided_by": "ann"})

    decision: Decision
    value: Any = Field(
        default=None,
        description="For kinds `input` and `tool_outcome_unknown`, any JSON: the call's result, without it being run; "
        "before a model call, what the model is told.",
    )
    arguments: JsonObject | None = Field(
        default=None, description="To run the call with, in place of its own; only with `approve`, and without `value`."
    )
    reason: str | None = Field(default=None, max_length=10_000, description="For the model and in the log.")
    decided_by: _DecidedBy | None = Field(default=None, description="Who decides, in your own words.")

    def resolution(self) -> Resolution:
        return Resolution(self.decision, self.value, self.arguments, self.reason, self.decided_by)


class ToolResultSubmit(RequestModel):
    """Either `output` or `error`."""

    model_config = example({"output": {"status": "shipped"}})

    output: Any = Field(default=None, description="What the call returned, any JSON; null too, where it is given.")
    error: Annotated[str, StringConstraints(min_length=1, max_length=100_000)] | None = Field(
        default=None, description="Why the call failed, for the model."
    )

    def result(self) -> tuple[str | None, str | None]:
        """The output as JSON text, or None, and the error. Raises: InvalidRequest: not exactly one is given."""
        has_output = "output" in self.model_fields_set
        if has_output and self.error is not None:
            raise InvalidRequest.at("give either an output or an error, not both", "body", "error")
        if not has_output and self.error is None:
            raise InvalidRequest.at("this, or an error, is required", "body", "output")
        return (orjson.dumps(self.output).decode() if has_output else None), self.error


class ToolResultReceipt(Resource):
    """What became of a posted result."""

    model_config = example(
        {"run_id": EXAMPLE_RUN_ID, "tool_call_id": "call_1", "run_status": "queued", "accepted": True}
    )

    run_id: str
    tool_call_id: str
    run_status: RunStatus = Field(description="The run's status now; `queued`: it goes on.")
    accepted: bool = Field(description="False if the same result had been posted before.")


def interaction_object(interaction: InteractionRecord) -> JsonObject:
    answer = interaction.answer
    return {
        "interaction_id": interaction.interaction_id,
        "run_id": interaction.run_id,
        "kind": interaction.kind,
        "tool_name": interaction.tool_name,
        "tool_call_id": interaction.tool_call_id,
        "arguments": _arguments(interaction.arguments),
        "prompt": interaction.prompt,
        "reason": interaction.reason,
        "status": interaction.status,
        "decision": None if answer is None else answer.decision,
        "value": None if answer is None or answer.value is None else orjson.Fragment(answer.value),
        "decided_by": None if answer is None else answer.by,
        "expires_at": timestamp(interaction.expires_at),
        "created_at": timestamp(interaction.created_at),
        "resolved_at": None if interaction.resolved_at is None else timestamp(interaction.resolved_at),
    }


def receipt_object(tool_call_id: str, stimulated: Stimulated) -> JsonObject:
    return {
        "run_id": stimulated.run_id,
        "tool_call_id": tool_call_id,
        "run_status": stimulated.status,
        "accepted": stimulated.changed,
    }


def _arguments(text: str | None) -> orjson.Fragment | str | None:
    return text if text is None or not text.lstrip().startswith("{") else json_or_text(text)
