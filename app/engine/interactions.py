"""Questions to people: approve a tool call, supply a value, say what became of a call of unknown outcome."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, cast

import orjson

from app.engine.agent import Fallback, InputFallback, ResolvedAgent

EXPIRY = "expiry"
HEADLESS = "headless"


class InteractionKind(StrEnum):
    APPROVAL = "approval"
    INPUT = "input"
    TOOL_OUTCOME_UNKNOWN = "tool_outcome_unknown"


class InteractionStatus(StrEnum):
    """`closed`: the run ended, or went on another way, before anyone answered."""

    PENDING = "pending"
    RESOLVED = "resolved"
    EXPIRED = "expired"
    CLOSED = "closed"


class Decision(StrEnum):
    APPROVE = "approve"
    DENY = "deny"


@dataclass(frozen=True, slots=True)
class Answer:
    """A decision, by a person or by the fallback; `Answer.approve` and `Answer.deny` make one of plain values.

    Args:
        value: JSON text of the value supplied, or None.
        arguments: JSON text of the arguments as edited, or None where they stand.
        by: who decided, in their own words; `EXPIRY` and `HEADLESS` for the fallback.

    Raises:
        ValueError: the decision is none, or `value` or `arguments` is no text: nothing is approved by mistake.
    """

    decision: Decision
    value: str | None = None
    arguments: str | None = None
    reason: str | None = None
    by: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "decision", Decision(self.decision))
        given = cast("tuple[object, ...]", (self.value, self.arguments))
        if not all(isinstance(text, str | None) for text in given):
            raise ValueError("value and arguments are JSON text; Answer.approve takes them as they are")

    @classmethod
    def approve(
        cls,
        *,
        value: Any = None,
        arguments: Mapping[str, Any] | None = None,
        reason: str | None = None,
        by: str | None = None,
    ) -> Answer:
        """Let the call run, with other `arguments` if given; or, where a value is asked for, supply it."""
        return cls(
            Decision.APPROVE,
            None if value is None else orjson.dumps(value).decode(),
            None if arguments is None else orjson.dumps(dict(arguments)).decode(),
            reason,
            by,
        )

    @classmethod
    def deny(cls, reason: str | None = None, *, by: str | None = None) -> Answer:
        return cls(Decision.DENY, reason=reason, by=by)


@dataclass(frozen=True, slots=True)
class NewInteraction:
    """A question to ask.

    Args:
        call_index: the call of the open step that it is about; None where it is about the model call.
        arguments: JSON text that the call would run with, or None.
        fallback: what counts if nobody answers until `expires_at`.
    """

    interaction_id: str
    step: int
    call_index: int | None
    kind: InteractionKind
    tool_name: str | None
    tool_call_id: str | None
    arguments: str | None
    prompt: str
    reason: str | None
    expires_at: datetime
    fallback: Answer


@dataclass(frozen=True, slots=True)
class InteractionRecord:
    """An interaction as readers see it; `arguments` and `value` are JSON text or None."""

    interaction_id: str
    run_id: str
    step: int
    call_index: int | None
    kind: InteractionKind
    status: InteractionStatus
    tool_name: str | None
    tool_call_id: str | None
    arguments: str | None
    prompt: str
    reason: str | None
    answer: Answer | None
    expires_at: datetime
    created_at: datetime
    resolved_at: datetime | None

    def resolved_event_data(self) -> Mapping[str, Any]:
        """The data of `interaction_resolved`; what was supplied is in the interaction, not in the log."""
        answer = self.answer
        return {
            "interaction_id": self.interaction_id,
            "kind": self.kind,
            "status": self.status,
            "tool_name": self.tool_name,
            "tool_call_id": self.tool_call_id,
            "decision": None if answer is None else answer.decision,
            "by": None if answer is None else answer.by,
            "reason": None if answer is None else answer.reason,
        }


def timeout_s(kind: InteractionKind, agent: ResolvedAgent) -> float:
    """Seconds that a question of this kind waits for an answer."""
    settings = agent.definition
    return settings.input_timeout_s if kind is InteractionKind.INPUT else settings.approval_timeout_s


def fallback(kind: InteractionKind, agent: ResolvedAgent, by: str) -> Answer:
    """What counts where nobody answers; `by` is `EXPIRY` or `HEADLESS`."""
    settings = agent.definition
    if kind is InteractionKind.APPROVAL and settings.approval_fallback is Fallback.APPROVE:
        return Answer(Decision.APPROVE, by=by, reason="nobody answered; approval_fallback is approve")
    if kind is InteractionKind.INPUT and isinstance(settings.input_fallback, InputFallback):
        value = orjson.dumps(settings.input_fallback.value).decode()
        return Answer(Decision.APPROVE, value=value, by=by, reason="nobody answered; this is input_fallback")
    said = "there is nobody to ask (interaction_mode is headless)" if by == HEADLESS else "nobody answered in time"
    return Answer(Decision.DENY, by=by, reason=said)
