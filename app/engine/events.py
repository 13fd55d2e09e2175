"""Facts about a run, and the one function that writes an event's line.

The contract is append-only: types and fields are added, never removed or changed. A field without a value is null.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

import orjson

from app.engine.status import RunStatus

SCHEMA_VERSION = 1


class EventType(StrEnum):
    RUN_STARTED = "run_started"
    STEP_STARTED = "step_started"
    LLM_CALLED = "llm_called"
    TEXT_DELTA = "text_delta"
    REASONING_DELTA = "reasoning_delta"
    TOOL_CALL_DELTA = "tool_call_delta"
    LLM_COMPLETED = "llm_completed"
    TOOL_BATCH_STARTED = "tool_batch_started"
    TOOL_STARTED = "tool_started"
    TOOL_PROGRESS = "tool_progress"
    TOOL_COMPLETED = "tool_completed"
    TOOL_DEFERRED = "tool_deferred"
    TOOL_BACKGROUND_RESOLVED = "tool_background_resolved"
    TOOL_BACKGROUND_FAILED = "tool_background_failed"
    POLICY_DECISION = "policy_decision"
    INTERACTION_REQUESTED = "interaction_requested"
    INTERACTION_RESOLVED = "interaction_resolved"
    SUBAGENT_STARTED = "subagent_started"
    SUBAGENT_COMPLETED = "subagent_completed"
    THREAD_COMPACTED = "thread_compacted"
    RUN_WAITING = "run_waiting"
    RUN_PAUSED = "run_paused"
    RUN_RESUMED = "run_resumed"
    WARNING = "warning"
    RUN_COMPLETED = "run_completed"
    RUN_FAILED = "run_failed"
    RUN_INTERRUPTED = "run_interrupted"
    RUN_CANCELLED = "run_cancelled"


DELTA_TYPES = frozenset({EventType.TEXT_DELTA, EventType.REASONING_DELTA, EventType.TOOL_CALL_DELTA})

TERMINAL_TYPES = frozenset(
    {EventType.RUN_COMPLETED, EventType.RUN_FAILED, EventType.RUN_INTERRUPTED, EventType.RUN_CANCELLED}
)


class ResumeReason(StrEnum):
    """Why an attempt after the first one began."""

    CRASH = "crash"
    PAUSE = "pause"
    INTERRUPT = "interrupt"
    FAILURE = "failure"
    WAKE = "wake"
    DRAIN = "drain"


class WarningCode(StrEnum):
    EMPTY_RESPONSE = "empty_response"
    TRUNCATED_RESPONSE = "truncated_response"
    CONTENT_FILTERED = "content_filtered"
    MODEL_REFUSED = "model_refused"
    STEP_RESTARTED = "step_restarted"
    TOOL_OUTCOME_UNKNOWN = "tool_outcome_unknown"
    USAGE_ESTIMATED = "usage_estimated"
    PRICE_UNKNOWN = "price_unknown"
    STEP_STALLED = "step_stalled"
    FALLBACK_USED = "fallback_used"
    CONTEXT_OVERFLOW = "context_overflow"
    COMPACTION_FAILED = "compaction_failed"
    STRUCTURED_OUTPUT_INVALID = "structured_output_invalid"
    SETTING_IGNORED = "setting_ignored"
    MODEL_RETRIED = "model_retried"


@dataclass(frozen=True, slots=True)
class RunIdentity:
    """What every event and record of a run repeats."""

    run_id: str
    thread_id: str
    agent_name: str
    agent_depth: int = 0
    agent_path: str = ""


@dataclass(frozen=True, slots=True)
class Event:
    """A fact before it is numbered. `state` is the run's status once the fact holds."""

    type: EventType
    step: int
    data: Mapping[str, Any] = field(default_factory=dict[str, Any])
    state: RunStatus = RunStatus.RUNNING
    message: str | None = None


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """A numbered fact: what readers of a log are given. `body` is JSON text without seq and time."""

    seq: int
    type: str
    created_at: datetime
    body: str

    def line(self) -> bytes:
        """The event as one JSON line. Rows and memory both come through here, so a replay is the same byte for byte."""
        stamp = self.created_at.isoformat(timespec="microseconds")[:-6]
        return f'{{"seq":{self.seq},"created_at":"{stamp}Z",{self.body[1:]}'.encode()

    def as_dict(self) -> dict[str, Any]:
        """The event's envelope as Python values."""
        return orjson.loads(self.line())


def encode(event: Event, run: RunIdentity) -> str:
    """The body of an event as JSON text.

    U+0085, U+2028 and U+2029 are escaped: some readers of event streams take them for ends of lines.
    """
    text = orjson.dumps(
        {
            "type": event.type,
            "run_id": run.run_id,
            "thread_id": run.thread_id,
            "agent_name": run.agent_name,
            "state": event.state,
            "step": event.step,
            "message": event.message,
            "data": event.data,
            "schema_version": SCHEMA_VERSION,
        },
        default=str,
    ).decode()
    if text.isascii():
        return text
    return text.replace("\u2028", "\\u2028").replace("\u2029", "\\u2029").replace("\u0085", "\\u0085")
