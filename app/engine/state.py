"""Where a run stands: all that `decide` needs to say what comes next, and all that a checkpoint keeps."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from decimal import Decimal
from enum import StrEnum
from typing import Any

from app.engine.errors import RunError
from app.engine.messages import ToolCall
from app.engine.status import RunStatus
from app.engine.tools import ToolEffect, ToolResult
from app.engine.usage import Usage


class Phase(StrEnum):
    """What a run does next; the `next_action` of its checkpoints."""

    CALL_MODEL = "call_model"
    EXECUTE_TOOLS = "execute_tools"
    FINISH = "finish"


@dataclass(frozen=True, slots=True)
class OpenCall:
    """A tool call of the open step. `started` is the record of intent; `result` is None until the call has ended."""

    index: int
    call: ToolCall
    effect: ToolEffect
    started: bool = False
    result: ToolResult | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ends, or has ended."""

    status: RunStatus
    final_text: str
    error: RunError | None = None


@dataclass(frozen=True, slots=True)
class RunState:
    """
    Args:
        step: the open step, counted from 1.
        calls: the open step's tool calls, in the model's order; empty outside of `EXECUTE_TOOLS`.
        tool_calls: calls that were begun, over the whole run.
        best_text: the last text that the model gave, for an ending without a better one.
        tolerated: the first failure that a policy let pass; the run then ends degraded.
        model, provider: who answered last.
        outcome: set in `FINISH`.
        resume_step: the step that a failed run goes on with, where it is not the open one: its tools have all ended.
    """

    step: int = 1
    phase: Phase = Phase.CALL_MODEL
    calls: tuple[OpenCall, ...] = ()
    usage: Usage = field(default_factory=Usage)
    cost_usd: Decimal | None = Decimal(0)
    tool_calls: int = 0
    best_text: str = ""
    tolerated: RunError | None = None
    model: str | None = None
    provider: str | None = None
    outcome: Outcome | None = None
    resume_step: int | None = None

    def open_calls(self) -> tuple[OpenCall, ...]:
        """The calls that have no result yet."""
        return tuple(call for call in self.calls if call.result is None)

    def as_checkpoint(self) -> dict[str, Any]:
        """The counters as JSON values. Calls and texts are not copied: they are in `tool_executions` and `messages`."""
        return {
            "usage": self.usage.as_dict(),
            "cost_usd": None if self.cost_usd is None else str(self.cost_usd),
            "tool_calls": self.tool_calls - _started(self.calls),
            "tolerated": None if self.tolerated is None else self.tolerated.as_dict(),
            "model": self.model,
            "provider": self.provider,
            "pending_tool_calls": [call.call.id for call in self.open_calls()],
        }


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A committed place in a run to go on from. `state` is `RunState.as_checkpoint`."""

    step: int
    phase: Phase
    state: dict[str, Any] = field(default_factory=dict[str, Any])


def checkpoint_of(state: RunState) -> Checkpoint:
    """The place to go on from. A failed run's is the model call that would come next: it may be resumed."""
    if state.outcome is not None and state.outcome.status is RunStatus.FAILED:
        # What failed the run is forgiven by resuming it; what a policy let pass before still degrades it.
        tolerated = None if state.outcome.error == state.tolerated else state.tolerated
        step = state.resume_step or state.step
        state = replace(state, step=step, phase=Phase.CALL_MODEL, outcome=None, resume_step=None, tolerated=tolerated)
    return Checkpoint(state.step, state.phase, state.as_checkpoint())


def restore(checkpoint: Checkpoint, calls: tuple[OpenCall, ...], best_text: str) -> RunState:
    """The state of a run as its last checkpoint, its open calls and its messages tell it.

    Calls of the open step are counted from their own records: they may have been started after the checkpoint.

    Args:
        calls: the tool calls recorded for the checkpoint's step, with the results that were committed.
        best_text: the last assistant text of the run, or "".
    """
    kept = checkpoint.state
    open_calls = calls if checkpoint.phase is Phase.EXECUTE_TOOLS else ()
    tolerated = kept["tolerated"]
    open_calls = calls if checkpoint.phase is Phase.EXECUTE_TOOLS else ()
    return RunState(
        step=checkpoint.step,
        phase=checkpoint.phase,
        calls=open_calls,
        usage=Usage.from_dict(kept["usage"]),
        cost_usd=None if kept["cost_usd"] is None else Decimal(kept["cost_usd"]),
        tool_calls=kept["tool_calls"] + _started(open_calls),
        best_text=best_text,
        tolerated=None if tolerated is None else RunError.from_dict(tolerated),
        model=kept["model"],
        provider=kept["provider"],
    )


def _started(calls: tuple[OpenCall, ...]) -> int:
    return sum(1 for call in calls if call.started)


def finished(state: RunState, status: RunStatus, final_text: str, error: RunError | None = None) -> RunState:
    return replace(state, phase=Phase.FINISH, calls=(), outcome=Outcome(status, final_text, error))
