"""Tool calls as the store without a database keeps them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from app.db.memory.json_text import same_json
from app.engine.moves import PostedResult
from app.engine.records import ToolExecution
from app.engine.state import HoldKind, OpenCall


@dataclass(slots=True)
class CallRow:
    """A tool call: asked for, started (the record of intent), ended.

    `posted` is a result from outside, which the run takes in later. `child_run_id` outlives the call's hold.
    """

    step: int
    call: OpenCall
    started_at: datetime | None = None
    finished_at: datetime | None = None
    child_run_id: str | None = None
    posted: PostedResult | None = None

    @property
    def open(self) -> bool:
        return self.call.result is None

    @property
    def result_expires_at(self) -> datetime | None:
        """When the wait for a result from outside ends; None if there is none to wait for any more."""
        hold = self.call.hold
        waits = self.open and self.posted is None and hold is not None and hold.kind is HoldKind.TOOL_RESULT
        return hold.expires_at if waits and hold is not None else None

    def save(self, call: OpenCall, now: datetime) -> None:
        """Take over what has become of the call; one that is to begin anew has not been started."""
        self.call = call
        self.started_at = (self.started_at or now) if call.started else None
        self.finished_at = None if call.result is None else self.finished_at or now
        self.child_run_id = call.child_run_id or self.child_run_id

    def has_result(self, output: str | None, error: str | None) -> bool | None:
        """Whether this is the result that the call has; None if it has none."""
        known = self.posted or self.call.result
        return None if known is None else known.error == error and same_json(known.output, output)

    def as_execution(self) -> ToolExecution:
        call, result = self.call.call, self.call.result
        return ToolExecution(
            step=self.step,
            call_index=self.call.index,
            tool_call_id=call.id,
            tool_name=call.name,
            arguments=call.arguments,
            started_at=self.started_at,
            finished_at=self.finished_at,
            success=None if result is None else result.success,
            output=None if result is None else result.output,
            error=None if result is None else result.error,
            latency_ms=None if result is None else result.latency_ms,
            replayed=result is not None and result.replayed,
            child_run_id=self.child_run_id,
        )
