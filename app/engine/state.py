"""Where a run stands: all that `decide` needs to say what comes next, and all that a checkpoint keeps."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any

from app.engine.compaction import Compacting, CompactionReason
from app.engine.effects import ToolEffect
from app.engine.errors import RunError
from app.engine.interactions import InteractionKind
from app.engine.messages import ToolCall
from app.engine.status import RunStatus
from app.engine.structured_output import Repair
from app.engine.tools import ToolResult
from app.engine.usage import Usage


class Phase(StrEnum):
    """What a run does next; the `next_action` of its checkpoints."""

    CALL_MODEL = "call_model"
    EXECUTE_TOOLS = "execute_tools"
    AWAIT = "await"  # of checkpoints only: the run waits, in whichever of the two above it was
    FINISH = "finish"


class HoldKind(StrEnum):
    """Whom a call, or a run, waits for."""

    INTERACTION = "interaction"
    TOOL_RESULT = "tool_result"
    CHILD_RUN = "child_run"


@dataclass(frozen=True, slots=True)
class Hold:
    """What keeps a call, or a model call, from going on.

    Args:
        id: of the interaction or the child run; of a tool result, the tool call's id.
        expires_at: when a tool result that did not come has failed; other holds end elsewhere.
        ticket_id: of a deferred tool's result.
        question: of an interaction, what it asks.
        tokens, cost_usd: what a child run may spend of its parent's budget; None where that is unbounded.
    """

    kind: HoldKind
    id: str
    expires_at: datetime | None = None
    ticket_id: str | None = None
    question: InteractionKind | None = None
    tokens: int | None = None
    cost_usd: float | None = None

    def as_dict(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "id": self.id,
            "expires_at": None if self.expires_at is None else self.expires_at.isoformat(),
            "ticket_id": self.ticket_id,
            "question": self.question,
            "tokens": self.tokens,
            "cost_usd": self.cost_usd,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Hold:
        return cls(
            HoldKind(data["kind"]),
            data["id"],
            None if data["expires_at"] is None else datetime.fromisoformat(data["expires_at"]),
            data["ticket_id"],
            None if data["question"] is None else InteractionKind(data["question"]),
            data["tokens"],
            data["cost_usd"],
        )


@dataclass(frozen=True, slots=True)
class OpenCall:
    """A tool call of the open step.

    Args:
        started: the record of intent: the call was handed to whoever runs it.
        result: None until the call has ended.
        judged: policy has let the call pass, or a person has; what is not judged has not begun.
        arguments: the JSON text that the call runs with, where hooks, a rule or a person have changed the model's.
        hold: what an open call waits for; None while it can go on here.
    """

    index: int
    call: ToolCall
    effect: ToolEffect
    started: bool = False
    result: ToolResult | None = None
    judged: bool = False
    arguments: str | None = None
    hold: Hold | None = None

    @property
    def final_arguments(self) -> str:
        return self.call.arguments if self.arguments is None else self.arguments

    @property
    def child_run_id(self) -> str | None:
        """The child run that answers this call, while it is open."""
        return self.hold.id if self.hold is not None and self.hold.kind is HoldKind.CHILD_RUN else None


@dataclass(frozen=True, slots=True)
class Gate:
    """Policy's word on the model call of `step`: `hold` while a person is asked, None once it may be made."""

    step: int
    hold: Hold | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ends, or has ended; `structured` is the answer's JSON where the agent has a response schema."""

    status: RunStatus
    final_text: str
    error: RunError | None = None
    structured: Any = None


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
        gate: what policy said of a model call; None where it said nothing yet.
        child_llm_calls: model calls of child runs: part of `usage`, and not counted against this run's own limit.
        repair: the last answer, where it did not fit the response schema; None once one did.
        compacting: the last compaction of the run, under way or done.
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
    gate: Gate | None = None
    child_llm_calls: int = 0
    repair: Repair | None = None
    compacting: Compacting | None = None

    @property
    def compacts(self) -> bool:
        """Whether the thread is to be compacted before the next model call."""
        return self.compacting is not None and self.compacting.step == self.step and not self.compacting.done

    @property
    def compacted(self) -> bool:
        """Whether it was, or that was tried, before the model call of this very step; the bound gets no second time."""
        return self.compacting is not None and self.compacting.step == self.step and self.compacting.done

    @property
    def compacted_for_overflow(self) -> bool:
        """Whether it was compacted in this very step because the provider found it too long; there is no second time.

        One that failed ends the run. One at the agent's bound does not count: it may have failed, or not sufficed.
        """
        reason = None if self.compacting is None else self.compacting.reason
        return self.compacted and reason is CompactionReason.CONTEXT_OVERFLOW

    def open_calls(self) -> tuple[OpenCall, ...]:
        """The calls that have no result yet."""
        return tuple(call for call in self.calls if call.result is None)

    def holds(self) -> tuple[Hold, ...]:
        """All that the run waits for."""
        if self.phase is Phase.CALL_MODEL:
            return () if self.gate is None or self.gate.hold is None else (self.gate.hold,)
        return tuple(call.hold for call in self.open_calls() if call.hold is not None)

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
            "child_llm_calls": self.child_llm_calls,
            "gate": None if self.gate is None else _gate_as_dict(self.gate),
            "repair": None if self.repair is None else self.repair.as_dict(),
            "compacting": None if self.compacting is None else self.compacting.as_dict(),
        }


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A committed place in a run to go on from. `state` is `RunState.as_checkpoint`."""

    step: int
    phase: Phase
    state: dict[str, Any] = field(default_factory=dict[str, Any])


def checkpoint_of(state: RunState, *, waits: bool = False) -> Checkpoint:
    """The place to go on from. A failed run's is the model call that would come next: it may be resumed.

    Args:
        waits: the run stops here until somebody outside has done their part.
    """
    if state.outcome is not None and state.outcome.status is RunStatus.FAILED:
        # What failed the run is forgiven by resuming it; what a policy let pass before still degrades it.
        step = state.resume_step or state.step
        state = replace(state, step=step, phase=Phase.CALL_MODEL, outcome=None, resume_step=None)
    kept = state.as_checkpoint()
    return Checkpoint(state.step, Phase.AWAIT if waits else state.phase, kept)


def restore(checkpoint: Checkpoint, calls: tuple[OpenCall, ...], best_text: str) -> RunState:
    """The state of a run as its last checkpoint, its open calls and its messages tell it.

    Calls of the open step are counted from their own records: they may have been started after the checkpoint.

    Args:
        calls: the tool calls recorded for the checkpoint's step, with the results that were committed.
        best_text: the last assistant text of the run, or "".
    """
    kept = checkpoint.state
    phase = checkpoint.phase
    if phase is Phase.AWAIT:
        phase = Phase.EXECUTE_TOOLS if kept["pending_tool_calls"] else Phase.CALL_MODEL
    tolerated, gate, repair = kept["tolerated"], kept.get("gate"), kept.get("repair")
    compacting = kept.get("compacting")
    open_calls = calls if phase is Phase.EXECUTE_TOOLS else ()
    return RunState(
        step=checkpoint.step,
        phase=phase,
        calls=open_calls,
        usage=Usage.from_dict(kept["usage"]),
        cost_usd=None if kept["cost_usd"] is None else Decimal(kept["cost_usd"]),
        tool_calls=kept["tool_calls"] + _started(open_calls),
        best_text=best_text,
        tolerated=None if tolerated is None else RunError.from_dict(tolerated),
        model=kept["model"],
        provider=kept["provider"],
        gate=None if gate is None else Gate(gate["step"], gate["hold"] and Hold.from_dict(gate["hold"])),
        child_llm_calls=kept.get("child_llm_calls", 0),
        repair=None if repair is None else Repair.from_dict(repair),
        compacting=None if compacting is None else Compacting.from_dict(compacting),
    )


def _gate_as_dict(gate: Gate) -> dict[str, Any]:
    return {"step": gate.step, "hold": None if gate.hold is None else gate.hold.as_dict()}


def _started(calls: tuple[OpenCall, ...]) -> int:
    return sum(1 for call in calls if call.started)


def finished(state: RunState, status: RunStatus, final_text: str, error: RunError | None = None) -> RunState:
    return replace(state, phase=Phase.FINISH, calls=(), outcome=Outcome(status, final_text, error))
