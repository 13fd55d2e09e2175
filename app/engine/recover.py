"""What an ended attempt leaves to others: calls of unknown outcome, text without an end."""

from __future__ import annotations

from collections.abc import Iterable

import orjson

from app.engine.events import Event, EventType, StoredEvent, WarningCode
from app.engine.state import RunState
from app.engine.tools import ToolEffect, ToolResult

_UNKNOWN = (
    "The outcome of this call is unknown: it was started, and the process that ran it stopped before it "
    "reported a result. It was not run again, because the tool is not declared safe to repeat. Check whether it "
    "took effect before you call it again."
)


def unknown_outcomes(state: RunState) -> tuple[tuple[int, ToolResult], ...]:
    """The started calls without a result that must not be run again, each with the error for the model.

    Calls of read-only and idempotent tools are not among them: those are simply run again, with the same key.
    """
    return tuple(
        (call.index, ToolResult(success=False, output=None, error=_UNKNOWN, content=_UNKNOWN, latency_ms=0.0))
        for call in state.open_calls()
        if call.started and call.effect is ToolEffect.UNSAFE
    )


def unknown_outcome_warnings(state: RunState, indexes: set[int]) -> tuple[Event, ...]:
    return tuple(
        Event(
            EventType.WARNING,
            state.step,
            {
                "code": WarningCode.TOOL_OUTCOME_UNKNOWN,
                "tool_name": call.call.name,
                "tool_call_id": call.call.id,
            },
            message=f"the outcome of {call.call.name} is unknown; the call was not repeated",
        )
        for call in state.calls
        if call.index in indexes
    )


def partial_text(events: Iterable[StoredEvent]) -> str:
    """The committed text of a step that never closed; what a restart of the step made void is left out.

    Args:
        events: those after the run's last checkpoint, in order.
    """
    pieces: list[str] = []
    for event in events:
        match event.type:
            case EventType.TEXT_DELTA:
                pieces.append(orjson.loads(event.body)["data"]["delta"])
            case EventType.RUN_RESUMED:
                pieces.clear()
            case EventType.WARNING:
                if orjson.loads(event.body)["data"]["code"] == WarningCode.STEP_RESTARTED:
                    pieces.clear()
            case _:
                pass
    return "".join(pieces)
