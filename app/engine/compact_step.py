"""What a compaction, or the want of one, changes in a run. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from decimal import Decimal
from typing import assert_never

from app.engine.compaction import Compacting, CompactionReason, NewCompaction
from app.engine.errors import ModelError, RunError
from app.engine.events import Event, EventType, WarningCode
from app.engine.state import RunState
from app.engine.transition import Transition
from app.engine.usage import Usage, add_cost


@dataclass(frozen=True, slots=True)
class Compacted:
    """The thread's older part is a summary now.

    Args:
        messages: how many it stands for, an earlier summary counted as one.
        tokens_before, tokens_after: of the whole conversation, estimated.
        model: who wrote the summary.
        usage, cost_usd: of the calls that it took; the cost None where a price is unknown.
    """

    compaction: NewCompaction
    messages: int
    tokens_before: int
    tokens_after: int
    model: str
    usage: Usage
    cost_usd: Decimal | None


@dataclass(frozen=True, slots=True)
class NotCompacted:
    """There is no summary; `problem` says why, in a few words."""

    problem: str


def wanted(state: RunState, reason: CompactionReason, *, opened: bool, problem: str = "") -> RunState:
    """The state in which the thread is compacted before the step's model call.

    Args:
        opened: the step's own beginning is committed already.
        problem: of a conversation that is too long for its model: what the provider said.
    """
    return replace(state, compacting=Compacting(state.step, reason, opened, problem=problem))


def overflowed(state: RunState, error: ModelError) -> Transition:
    """The provider says that the conversation is too long: it is to be compacted, and the call made once more."""
    data = {"code": WarningCode.CONTEXT_OVERFLOW, "problem": error.message}
    said = "the conversation is too long for the model; the call is made once more only if it can be compacted"
    compacts = wanted(state, CompactionReason.CONTEXT_OVERFLOW, opened=True, problem=error.message)
    return Transition(compacts, (Event(EventType.WARNING, state.step, data, message=said),))


def compacted(state: RunState, outcome: Compacted) -> Transition:
    """The state before the step's model call, with the summary in the thread."""
    compacting = state.compacting
    assert compacting is not None
    state = replace(
        state,
        usage=state.usage + outcome.usage,
        cost_usd=add_cost(state.cost_usd, outcome.cost_usd),
        compacting=replace(compacting, done=True),
    )
    data = {
        "reason": compacting.reason,
        "upto_seq": outcome.compaction.upto_seq,
        "messages_compacted": outcome.messages,
        "tokens_before": outcome.tokens_before,
        "tokens_after": outcome.tokens_after,
        "model": outcome.model,
        "usage": outcome.usage.as_dict(),
        "cost_usd": None if outcome.cost_usd is None else float(outcome.cost_usd),
    }
    event = Event(EventType.THREAD_COMPACTED, state.step, data)
    return Transition(state, (event,), compaction=outcome.compaction)


def not_compacted(state: RunState, outcome: NotCompacted) -> tuple[Transition, RunError | None]:
    """The state before the step's model call, which is made all the same; or the error with which the run ends."""
    compacting = state.compacting
    assert compacting is not None
    data = {"code": WarningCode.COMPACTION_FAILED, "problem": outcome.problem}
    warning = Event(EventType.WARNING, state.step, data, message="the thread could not be compacted")
    done = Transition(replace(state, compacting=replace(compacting, done=True)), (warning,))
    match compacting.reason:
        case CompactionReason.TOKEN_LIMIT:
            return done, None
        case CompactionReason.CONTEXT_OVERFLOW:
            message = f"{compacting.problem}; the thread could not be compacted: {outcome.problem}"
            # Forgotten: a run that is resumed after this failure tries again, since this one has changed nothing.
            forgotten = replace(done, state=replace(state, compacting=None))
            return forgotten, RunError(WarningCode.CONTEXT_OVERFLOW.value, message)
        case _:
            assert_never(compacting.reason)
