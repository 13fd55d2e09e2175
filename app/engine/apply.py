"""apply(state, outcome) -> Transition: what an outcome changes, and the facts that it leaves. Pure.

A write has two halves. `apply` gives the first: what the last action brought. `opening` gives the second: what the
next action begins with. Both are committed together, so that a run is never between two actions in the database.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import assert_never

from app.engine.actions import Action, Await, CallModel, Compact, ExecuteTools, Finish
from app.engine.agent import ResolvedAgent, subagent_name
from app.engine.compact_step import Compacted, NotCompacted, compacted, not_compacted
from app.engine.errors import RunError
from app.engine.events import Event, EventType
from app.engine.judge import judge_model_call
from app.engine.messages import json_or_text
from app.engine.model_answer import charge, given_up, model_failed, model_responded
from app.engine.moves import waiting_for
from app.engine.outcomes import ActionOutcome, AttemptBegan, CallsMoved, CompactionEnded, ModelFailed, ModelResponded
from app.engine.scope import Scope
from app.engine.state import HoldKind, OpenCall, Phase, RunState, finished
from app.engine.status import RunStatus
from app.engine.step import advance, lost_calls
from app.engine.transition import ToolRecord, Transition


def apply(state: RunState, outcome: AttemptBegan | ActionOutcome, scope: Scope) -> Transition:
    """What an outcome changes; the state after it has been judged, as far as it can be, up to its next action."""
    match outcome:
        case AttemptBegan(moves):
            begun = advance(state, moves, scope)
            done = begun.then(lost_calls(begun.state, scope))
        case ModelResponded():
            done = model_responded(state, outcome, scope)
        case ModelFailed():
            done = model_failed(state, outcome, scope.agent)
        case CompactionEnded():
            done = _compaction_ended(state, outcome, scope.agent)
        case CallsMoved(moves):
            done = advance(state, moves, scope)
        case _:
            assert_never(outcome)
    return done.then(judge_model_call(done.state, scope))


def opening(
    state: RunState, action: Action, agent: ResolvedAgent, message_count: int
) -> tuple[tuple[Event, ...], tuple[ToolRecord, ...]]:
    """The facts with which an action begins, and the tool calls that are marked as started with them."""
    match action:
        case CallModel(step):
            called = {"model": agent.model, "provider": agent.provider, "message_count": message_count}
            return (*_step_opening(state), Event(EventType.LLM_CALLED, step, called)), ()
        case Compact():
            return _step_opening(state), ()
        case ExecuteTools(step, calls):
            return _begin_calls(step, calls)
        case Await(step, calls):
            events, records = _begin_calls(step, calls)
            data = {"waiting_for": waiting_for(begun(state, action))}
            return (*events, Event(EventType.RUN_WAITING, step, data, RunStatus.WAITING)), records
        case Finish(outcome):
            last = replace(state, step=last_step(state))
            return (closing_event(last, outcome.status, outcome.final_text, outcome.error),), ()
        case _:
            assert_never(action)


def _step_opening(state: RunState) -> tuple[Event, ...]:
    """That the step begins; nothing where it has begun with a compaction, or before one."""
    begun_before = state.compacted or (state.compacts and state.compacting is not None and state.compacting.opened)
    return () if begun_before else (Event(EventType.STEP_STARTED, state.step, {"step": state.step}),)


def last_step(state: RunState) -> int:
    """The last step that began: a run that ends at a limit before its next model call has not begun the next step,
    unless it has compacted its thread in it."""
    compacted = state.compacting is not None and state.compacting.step == state.step
    return max(state.step - 1, 1) if state.phase is Phase.CALL_MODEL and not compacted else state.step


def begun(state: RunState, action: Action) -> RunState:
    """The state once an action's opening is committed: its calls are marked as started."""
    match action:
        case ExecuteTools() | Await():
            new = {call.index for call in action.calls if _begins(call)}
            calls = tuple(replace(call, started=True) if call.index in new else call for call in state.calls)
            return replace(state, calls=calls, tool_calls=state.tool_calls + len(new))
        case CallModel() | Compact():
            return state
        case Finish(outcome):
            return finished(state, outcome.status, outcome.final_text, outcome.error)
        case _:
            assert_never(action)


def closing_event(state: RunState, status: RunStatus, final_text: str, error: RunError | None) -> Event:
    """The terminal event that agrees with a terminal status."""
    if status in (RunStatus.COMPLETED, RunStatus.DEGRADED):
        data = {"state": status, "final_text": final_text, "usage": state.usage.as_dict()}
        return Event(EventType.RUN_COMPLETED, state.step, data, status, None if error is None else error.message)
    kind = {
        RunStatus.FAILED: EventType.RUN_FAILED,
        RunStatus.INTERRUPTED: EventType.RUN_INTERRUPTED,
        RunStatus.CANCELLED: EventType.RUN_CANCELLED,
    }[status]
    reason = error or RunError(status.value, f"the run was {status.value}")
    return Event(kind, state.step, {"code": reason.code, "message": reason.message}, status, reason.message)


def _begins(call: OpenCall) -> bool:
    """Whether a call begins with the action that names it: policy let it pass, and it has not begun."""
    asks = call.hold is not None and call.hold.kind is HoldKind.INTERACTION
    return call.judged and not call.started and not asks


def _begin_calls(step: int, calls: Sequence[OpenCall]) -> tuple[tuple[Event, ...], tuple[ToolRecord, ...]]:
    new = [call for call in calls if _begins(call)]
    if not new:
        return (), ()
    return _batch_opening(step, new), tuple(ToolRecord(step, replace(call, started=True)) for call in new)


def _batch_opening(step: int, calls: Sequence[OpenCall]) -> tuple[Event, ...]:
    batch = {
        "tool_call_count": len(calls),
        "tool_names": [call.call.name for call in calls],
        "tool_call_ids": [call.call.id for call in calls],
    }
    return (
        Event(EventType.TOOL_BATCH_STARTED, step, batch),
        *(event for call in calls for event in _started(step, call)),
    )


def _started(step: int, call: OpenCall) -> tuple[Event, ...]:
    name, identifier = call.call.name, call.call.id
    data = {"tool_name": name, "tool_call_id": identifier, "arguments": json_or_text(call.final_arguments)}
    started = Event(EventType.TOOL_STARTED, step, data)
    child = call.child_run_id
    if child is None:
        return (started,)
    delegated = {"subagent_name": subagent_name(name), "run_id": child, "tool_call_id": identifier}
    return (started, Event(EventType.SUBAGENT_STARTED, step, delegated))


def _compaction_ended(state: RunState, ended: CompactionEnded, agent: ResolvedAgent) -> Transition:
    charged = charge(state, ended.spent)
    match ended.outcome:
        case Compacted():
            return charged.then(compacted(charged.state, ended.outcome))
        case NotCompacted():
            done, fatal = not_compacted(charged.state, ended.outcome)
            if fatal is not None:
                done = done.then(Transition(given_up(done.state, fatal, agent)))
            return charged.then(done)
        case _:
            assert_never(ended.outcome)
