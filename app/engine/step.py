"""The open step: what becomes of its calls, and how it closes. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, assert_never

import orjson

from app.engine.agent import (
    ApprovalDenialPolicy,
    InteractionMode,
    SubagentFailurePolicy,
    ToolFailurePolicy,
    subagent_name,
)
from app.engine.delegation import (
    NOT_MADE,
    STOPPED,
    delegation_failure,
    is_joined,
    unneeded_calls,
    unneeded_children,
    with_budgets,
)
from app.engine.effects import ToolEffect
from app.engine.errors import RunError
from app.engine.events import Event, EventType, WarningCode
from app.engine.judge import answered, ask_about_unknown, gate_answered, judge_calls, not_repeated
from app.engine.messages import Message, Role, json_or_text
from app.engine.moves import CallMove, ChildEnd, Deferred, Ended, InteractionEnd, PostedResult, Prepared
from app.engine.scope import Scope
from app.engine.state import Hold, HoldKind, OpenCall, Phase, RunState, finished
from app.engine.status import RunStatus
from app.engine.tools import ToolResult
from app.engine.transition import ToolRecord, Transition
from app.engine.usage import add_cost

_FailurePolicy = ToolFailurePolicy | SubagentFailurePolicy | ApprovalDenialPolicy


@dataclass(frozen=True, slots=True)
class _Moved:
    """The state after one move, the facts that it leaves, and the questions and child runs that it makes needless."""

    state: RunState
    events: tuple[Event, ...] = ()
    closes: tuple[str, ...] = ()
    stops: tuple[str, ...] = ()


def advance(state: RunState, moves: Sequence[CallMove], scope: Scope) -> Transition:
    """Take moves in, judge what can be judged, and close the step if all of its calls have ended."""
    done = Transition(state)
    for move in moves:
        if isinstance(move, InteractionEnd):
            if move.interaction_id not in {hold.id for hold in done.state.holds()}:
                continue  # its question was answered before: an owner may be told of the same answer twice
            if move.call_index is None:
                done = done.then(gate_answered(done.state, move, scope))
                continue
        index = _call_index(move)
        call = next((call for call in done.state.open_calls() if call.index == index), None)
        if call is not None:
            moved = _moved(done.state, call, move, scope)
            done = done.then(Transition(moved.state, moved.events, closes=moved.closes, stops=moved.stops))
    if done.state.phase is not Phase.EXECUTE_TOOLS:
        return done
    done = done.then(_without_unneeded(done.state, scope))
    done = done.then(judge_calls(done.state, scope))
    return _settled(state, replace(done, state=with_budgets(done.state, scope)), scope)


def lost_calls(state: RunState, scope: Scope) -> Transition:
    """What becomes of calls that an ended attempt had begun, and that must not be run again by themselves.

    Calls of read-only and idempotent tools are not among them: those are simply run again, with the same key.
    """
    done = Transition(state)
    for call in state.open_calls():
        if not call.started or call.hold is not None or call.effect is not ToolEffect.UNSAFE:
            continue
        warning = _outcome_unknown(state.step, call)
        if scope.agent.interaction_mode is InteractionMode.HEADLESS:
            ended = replace(call, result=not_repeated(scope))
            done = done.then(Transition(_with_call(done.state, ended), (warning,)))
        else:
            held, requested, question = ask_about_unknown(state, call, scope)
            done = done.then(Transition(_with_call(done.state, held), (warning, requested), interactions=(question,)))
    return _settled(state, done, scope)


def _call_index(move: CallMove) -> int | None:
    return move.call_index if isinstance(move, InteractionEnd) else move.index


def _moved(state: RunState, call: OpenCall, move: CallMove, scope: Scope) -> _Moved:
    match move:
        case Prepared(_, arguments):
            return _Moved(_with_call(state, replace(call, arguments=arguments)))
        case Ended(_, result):
            return _Moved(_with_call(state, replace(call, judged=True, result=result)))
        case Deferred():
            return _deferred(state, call, move, scope)
        case InteractionEnd():
            return _answered(state, call, move, scope)
        case PostedResult():
            return _posted(state, call, move, scope)
        case ChildEnd():
            return _child_ended(state, call, move, scope)
        case _:
            assert_never(move)


def _deferred(state: RunState, call: OpenCall, move: Deferred, scope: Scope) -> _Moved:
    deferral = move.deferral
    expires_at = scope.now + timedelta(seconds=deferral.ttl_s)
    hold = Hold(HoldKind.TOOL_RESULT, call.call.id, expires_at, deferral.ticket_id)
    data = {**_of(call, deferral.ticket_id), "summary": deferral.summary, "resume_hint": deferral.resume_hint}
    event = Event(EventType.TOOL_DEFERRED, state.step, data)
    return _Moved(_with_call(state, replace(call, hold=hold)), (event,))


def _answered(state: RunState, call: OpenCall, move: InteractionEnd, scope: Scope) -> _Moved:
    freed = answered(state, call, move, scope)
    if call.started and not freed.started:  # it begins anew, and counts once
        state = replace(state, tool_calls=state.tool_calls - 1)
    return _Moved(_with_call(state, freed))


def _posted(state: RunState, call: OpenCall, move: PostedResult, scope: Scope) -> _Moved:
    hold = call.hold
    if call.child_run_id is not None and call.started:
        # The call ends with its child run, so that what that has spent is counted; the result is kept until then.
        return _Moved(state, stops=(call.child_run_id,))
    result = _result(scope, move.output, move.error, move.latency_ms)
    state = _with_call(state, replace(call, judged=True, hold=None, result=result))
    if hold is not None and hold.kind is HoldKind.INTERACTION:
        return _Moved(state, closes=(hold.id,))
    if hold is None or hold.ticket_id is None:
        return _Moved(state)
    shown = None if move.output is None else _shown(move.output, result, scope)
    if result.success:
        event = Event(EventType.TOOL_BACKGROUND_RESOLVED, state.step, {**_of(call, hold.ticket_id), "output": shown})
    else:
        event = Event(
            EventType.TOOL_BACKGROUND_FAILED, state.step, {**_of(call, hold.ticket_id), "error": result.error}
        )
    return _Moved(state, (event,))


def _child_ended(state: RunState, call: OpenCall, move: ChildEnd, scope: Scope) -> _Moved:
    success = move.status in (RunStatus.COMPLETED, RunStatus.DEGRADED)
    error = None
    output = None
    match move.status:
        case RunStatus.COMPLETED:
            output = orjson.dumps(move.final_text).decode()
        case RunStatus.DEGRADED:
            tolerated = None if move.error is None else move.error.message
            output = orjson.dumps({"state": "degraded", "text": move.final_text, "error": tolerated}).decode()
        case RunStatus.CANCELLED if is_joined(state, scope):
            error = STOPPED
        case _:
            reason = "" if move.error is None else f": {move.error.message}"
            ended = "failed" if move.status is RunStatus.FAILED else f"was {move.status}"
            error = f"the subagent's run {ended}{reason}"
    posted = move.posted
    shown = (output, error) if posted is None else (posted.output, posted.error)
    result = _result(scope, *shown, latency_ms=move.latency_ms)
    state = replace(
        _with_call(state, replace(call, hold=None, result=result)),
        usage=state.usage + move.usage,
        cost_usd=add_cost(state.cost_usd, move.cost_usd),
        child_llm_calls=state.child_llm_calls + move.usage.llm_calls,
    )
    data = {
        "subagent_name": subagent_name(call.call.name),
        "run_id": move.run_id,
        "tool_call_id": call.call.id,
        "state": move.status,
        "success": success,
        "latency_ms": round(move.latency_ms, 3),
        "error": error,
    }
    return _Moved(state, (Event(EventType.SUBAGENT_COMPLETED, state.step, data),))


def _settled(before: RunState, done: Transition, scope: Scope) -> Transition:
    """Record what has changed of the calls, and close the step when none of them is open any more."""
    state = done.state
    if state.phase is not Phase.EXECUTE_TOOLS:
        return done
    old = {call.index: call for call in before.calls}
    changed = [call for call in state.calls if call != old.get(call.index)]
    ended = [call for call in changed if call.result is not None]
    events = tuple(_completed(state.step, call, scope) for call in ended)
    records = tuple(ToolRecord(state.step, call) for call in changed)
    settled = done.then(Transition(state, events, records=records, stops=unneeded_children(state, scope)))
    if state.open_calls() or not state.calls:
        return settled
    messages = tuple(
        Message(Role.TOOL, call.result.content, tool_call_id=call.call.id, failed=not call.result.success)
        for call in state.calls
        if call.result is not None
    )
    return settled.then(Transition(_closed(state, scope), messages=messages))


def _closed(state: RunState, scope: Scope) -> RunState:
    """The state after a step whose calls have all ended: the next model call, unless a failure ends the run."""
    failures = _failures(state, scope)
    tolerated = next((error for policy, error in failures if policy == "degrade"), None)
    state = replace(state, tolerated=state.tolerated or tolerated, gate=None)
    fatal = next((error for policy, error in failures if policy == "fail"), None)
    if fatal is not None:
        return replace(finished(state, RunStatus.FAILED, fatal.message, fatal), resume_step=state.step + 1)
    return replace(state, step=state.step + 1, phase=Phase.CALL_MODEL, calls=())


def _failures(state: RunState, scope: Scope) -> list[tuple[_FailurePolicy, RunError]]:
    """What failed in a step, each with the policy that says what follows."""
    settings = scope.agent.definition
    found: list[tuple[_FailurePolicy, RunError]] = []
    for call in state.calls:
        result = call.result
        if result is None or result.success:
            continue
        if result.denied:
            error = RunError("approval_denied", f"a call of {call.call.name} was denied: {result.error}")
            found.append((settings.approval_denial_policy, error))
        elif scope.subagent_of(call.call.name) is None:
            error = RunError("tool_failed", f"the tool {call.call.name} failed: {result.error}")
            spec = scope.tools.spec(call.call.name)
            fatal = spec is not None and spec.raise_on_error
            found.append((ToolFailurePolicy.FAIL if fatal else settings.tool_failure_policy, error))
    failure = delegation_failure(state, scope)
    return found if failure is None else [*found, (settings.subagent_failure_policy, failure)]


def _without_unneeded(state: RunState, scope: Scope) -> Transition:
    """End the delegations that have not begun and need not begin any more, so that nobody is asked about them."""
    closes: tuple[str, ...] = ()
    for call in unneeded_calls(state, scope):
        if call.hold is not None and call.hold.kind is HoldKind.INTERACTION:
            closes = (*closes, call.hold.id)
        result = _result(scope, None, NOT_MADE)
        state = _with_call(state, replace(call, judged=True, hold=None, result=result))
    return Transition(state, closes=closes)


def _completed(step: int, call: OpenCall, scope: Scope) -> Event:
    result, run = call.result, scope.run
    assert result is not None
    return Event(
        EventType.TOOL_COMPLETED,
        step,
        {
            "tool_name": call.call.name,
            "tool_call_id": call.call.id,
            "success": result.success,
            "output": None if result.output is None else _shown(result.output, result, scope),
            "error": result.error,
            "latency_ms": round(result.latency_ms, 3),
            "agent_name": run.agent_name,
            "agent_depth": run.agent_depth,
            "agent_path": run.agent_path or run.agent_name,
            "replayed": result.replayed,
        },
    )


def _shown(output: str, result: ToolResult, scope: Scope) -> Any:
    """An output as events carry it: whole where it is short, else the bounded text that the model reads."""
    return json_or_text(output) if len(output) <= scope.agent.definition.tool_output_max_chars else result.content


def _outcome_unknown(step: int, call: OpenCall) -> Event:
    name = call.call.name
    data = {"code": WarningCode.TOOL_OUTCOME_UNKNOWN, "tool_name": name, "tool_call_id": call.call.id}
    return Event(EventType.WARNING, step, data, message=f"the outcome of {name} is unknown; the call was not repeated")


def _result(scope: Scope, output: str | None, error: str | None, latency_ms: float = 0.0) -> ToolResult:
    settings = scope.agent.definition
    return scope.tools.result(
        output=output,
        error=error,
        output_max_chars=settings.tool_output_max_chars,
        sanitize=settings.sanitize_tool_output,
        latency_ms=latency_ms,
    )


def _of(call: OpenCall, ticket_id: str) -> dict[str, Any]:
    return {"tool_name": call.call.name, "tool_call_id": call.call.id, "ticket_id": ticket_id}


def _with_call(state: RunState, call: OpenCall) -> RunState:
    return replace(state, calls=tuple(call if other.index == call.index else other for other in state.calls))
