"""What an owner commits: a transition and the beginning of the next action, as one `Write`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, assert_never

from app.engine.actions import Action, Await, CallModel, Compact, ExecuteTools, Finish
from app.engine.apply import begun, last_step, opening
from app.engine.delegation import child_runs
from app.engine.errors import RunError
from app.engine.events import Event, EventType
from app.engine.moves import waiting_for
from app.engine.ownership import StopChildren, Write
from app.engine.records import RunRecord
from app.engine.scope import Scope
from app.engine.state import HoldKind, Outcome, Phase, RunState, checkpoint_of
from app.engine.status import RunStatus
from app.engine.transition import Transition

_NOT_NEEDED = RunError("not_needed", "the parent run has what it needs from other child runs")


@dataclass(frozen=True, slots=True)
class Position:
    """Where the owner stands before a write.

    Args:
        state: as last committed.
        message_seq: the last message of the thread that the owner knows; `wakes` the stimuli that it has seen.
        elapsed_s: active seconds of the run by now.
        joins: the run's input joins its thread with this write.
    """

    run: RunRecord
    state: RunState
    message_seq: int
    wakes: int
    elapsed_s: float
    joins: bool


def step_write(
    position: Position,
    transition: Transition,
    action: Action,
    scope: Scope,
    message_count: int,
    deltas: tuple[Event, ...],
) -> Write:
    """The write that commits a transition together with what its next action begins with.

    Args:
        message_count: of the model request that follows, if it does.
        deltas: events that go first.
    """
    state = transition.state
    outcome = action.outcome if isinstance(action, Finish) else None
    events, records = opening(state, action, scope.agent, message_count)
    waits = isinstance(action, Await)
    return Write(
        identity=scope.run,
        events=(*deltas, *transition.events),
        opening=events,
        on_pause=_on_pause(action, events),
        status=_status(action),
        step=state.step if outcome is None else last_step(state),
        messages=transition.messages,
        records=(*transition.records, *records),
        checkpoint=None
        if _keeps_checkpoint(position.state, state, outcome) and not waits
        else checkpoint_of(state, waits=waits),
        usage=state.usage,
        cost_usd=state.cost_usd,
        elapsed_s=position.elapsed_s,
        message_seq=position.message_seq,
        start=position.run.input if position.joins else (),
        progress=waits or outcome is not None or _gets_further(position.state, state),
        result=None if outcome is None else _result(state, outcome),
        error=None if outcome is None else outcome.error,
        wakes=position.wakes,
        waiting_for=waiting_for(begun(state, action)) if waits else (),
        interactions=transition.interactions,
        closes=transition.closes if outcome is None else _open_questions(position.state),
        children=() if outcome is not None else child_runs(state, scope, position.run),
        stops=_stops(position.state, transition, outcome),
        parent_run_id=None if outcome is None else position.run.parent_run_id,
        compaction=transition.compaction,
    )


def note_write(position: Position, scope: Scope, events: tuple[Event, ...]) -> Write:
    """A write that only adds events to the run's log."""
    state = position.state
    return Write(
        identity=scope.run,
        events=events,
        step=state.step,
        usage=state.usage,
        cost_usd=state.cost_usd,
        elapsed_s=position.elapsed_s,
        message_seq=position.message_seq,
        wakes=position.wakes,
    )


def _gets_further(before: RunState, after: RunState) -> bool:
    """Whether a step, the model's response, a call's result or a summary came to it: what is never done again."""
    return _place(after) != _place(before)


def _place(state: RunState) -> tuple[object, ...]:
    return state.step, state.phase, _results(state), state.compacted


def _results(state: RunState) -> int:
    return sum(call.result is not None for call in state.calls)


def _status(action: Action) -> RunStatus:
    if isinstance(action, Finish):
        return action.outcome.status
    return RunStatus.WAITING if isinstance(action, Await) else RunStatus.RUNNING


def _on_pause(action: Action, events: tuple[Event, ...]) -> tuple[Event, ...] | None:
    """What stands in place of the next action's beginning if a pause was asked for; None where it cannot pause.

    Delegations that begin with a wait begin in any case; the run is paused instead of waiting for them.
    """
    match action:
        case CallModel(step) | Compact(step):
            begins = ()
        case Await(step):
            begins = events[:-1]
        case ExecuteTools() | Finish():
            return None
        case _:
            assert_never(action)
    return (*begins, Event(EventType.RUN_PAUSED, step, {"reason": "requested"}, RunStatus.PAUSED))


def _keeps_checkpoint(before: RunState, after: RunState, outcome: Outcome | None) -> bool:
    """Whether the last checkpoint still says where to go on from: in the middle of a step, or where it was cut off."""
    if outcome is not None:
        return outcome.status is RunStatus.INTERRUPTED
    in_batch = before.phase is Phase.EXECUTE_TOOLS and after.phase is Phase.EXECUTE_TOOLS
    return in_batch and before.usage == after.usage


def _open_questions(state: RunState) -> tuple[str, ...]:
    return tuple(hold.id for hold in state.holds() if hold.kind is HoldKind.INTERACTION)


def _stops(before: RunState, transition: Transition, outcome: Outcome | None) -> StopChildren | None:
    """The child runs that end with the write: those not needed, and all of them with the run itself."""
    if outcome is None:
        return StopChildren(transition.stops, RunStatus.CANCELLED, _NOT_NEEDED) if transition.stops else None
    under_way = tuple(call.hold.id for call in before.open_calls() if call.hold is not None and call.child_run_id)
    if not under_way:
        return None
    # Interrupted, so that they go on with their parent should that be resumed.
    return StopChildren(
        under_way, RunStatus.INTERRUPTED, RunError("parent_ended", f"the parent run is {outcome.status}")
    )


def _result(state: RunState, outcome: Outcome) -> dict[str, Any]:
    """The scalars of the AgentResult that are stored with the run; its lists are read from rows."""
    return {
        "final_text": outcome.final_text,
        "final_structured": outcome.structured,
        "model": state.model,
        "provider": state.provider,
    }
