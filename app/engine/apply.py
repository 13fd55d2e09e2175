"""apply(state, outcome) -> Transition: what an outcome changes, and the facts that it leaves. Pure.

A write has two halves. `apply` gives the first: what the last action brought. `opening` gives the second: what the
next action begins with. Both are committed together, so that a run is never between two actions in the database.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass, replace
from typing import assert_never

from app.engine.actions import Action, Await, CallModel, ExecuteTools, Finish
from app.engine.agent import LlmFailurePolicy, ResolvedAgent, subagent_name
from app.engine.effects import ToolEffect
from app.engine.errors import ModelError, RunError
from app.engine.events import Event, EventType, WarningCode
from app.engine.judge import judge_model_call
from app.engine.messages import Message, Role, ToolCall, json_or_text
from app.engine.model import FinishReason, ModelResponse
from app.engine.moves import CallMove, waiting_for
from app.engine.scope import Scope
from app.engine.state import HoldKind, OpenCall, Phase, RunState, finished
from app.engine.status import RunStatus
from app.engine.step import advance, lost_calls
from app.engine.structured_output import MAX_REPAIRS, AnswerSchema, Fits, Misfit, Repair
from app.engine.tools import ToolPort
from app.engine.transition import ToolRecord, Transition
from app.engine.usage import Spend, add_cost

_MAX_REASON_CHARS = 500


@dataclass(frozen=True, slots=True)
class AttemptBegan:
    """A replica has taken the run over; `moves` is what others have stored in the meantime."""

    moves: tuple[CallMove, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelResponded:
    """The model answered.

    Args:
        latency_ms: the wall time of the whole call in milliseconds.
        spent: what tries took that gave no answer.
    """

    response: ModelResponse
    latency_ms: float
    spent: tuple[Spend, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelFailed:
    """All tries of a model call failed; `spent` is what they took all the same."""

    error: ModelError
    spent: tuple[Spend, ...] = ()


@dataclass(frozen=True, slots=True)
class CallsMoved:
    """Something became of calls of the open step, or of the question about the model call."""

    moves: tuple[CallMove, ...]


ActionOutcome = ModelResponded | ModelFailed | CallsMoved


def apply(state: RunState, outcome: AttemptBegan | ActionOutcome, scope: Scope) -> Transition:
    """What an outcome changes; the state after it has been judged, as far as it can be, up to its next action."""
    match outcome:
        case AttemptBegan(moves):
            begun = advance(state, moves, scope)
            done = begun.then(lost_calls(begun.state, scope))
        case ModelResponded():
            done = _model_responded(state, outcome, scope)
        case ModelFailed():
            charged = _charged(state, outcome.spent)
            failed = outcome.error
            reason = RunError(failed.code.value, failed.message, failed.retryable)
            done = charged.then(Transition(_given_up(charged.state, reason, scope.agent)))
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
            return (
                Event(EventType.STEP_STARTED, step, {"step": step}),
                Event(EventType.LLM_CALLED, step, called),
            ), ()
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


def last_step(state: RunState) -> int:
    """The last step that began: a run that ends at a limit before its next model call has not begun the next step."""
    return max(state.step - 1, 1) if state.phase is Phase.CALL_MODEL else state.step


def begun(state: RunState, action: Action) -> RunState:
    """The state once an action's opening is committed: its calls are marked as started."""
    match action:
        case ExecuteTools() | Await():
            new = {call.index for call in action.calls if _begins(call)}
            calls = tuple(replace(call, started=True) if call.index in new else call for call in state.calls)
            return replace(state, calls=calls, tool_calls=state.tool_calls + len(new))
        case CallModel():
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


def _model_responded(state: RunState, outcome: ModelResponded, scope: Scope) -> Transition:
    response = outcome.response
    charged = _charged(state, outcome.spent)
    state = replace(
        charged.state,
        usage=charged.state.usage + response.usage,
        cost_usd=add_cost(charged.state.cost_usd, response.cost_usd),
        best_text=response.text or state.best_text,
        model=response.model,
        provider=response.provider,
    )
    events = (*charged.events, _llm_completed(state.step, outcome), *_warnings(state.step, response))
    if not response.tool_calls:
        if scope.answers is None:
            return _answered(state, response, events)
        return _structured(state, response, events, scope.answers, scope.agent)
    calls = _unique_calls(response.tool_calls, state.step, scope.used_ids)
    open_calls = tuple(OpenCall(i, call, _effect(scope.tools, call.name)) for i, call in enumerate(calls))
    repair = None if state.repair is None else Repair(state.repair.turn)
    state = replace(state, phase=Phase.EXECUTE_TOOLS, calls=open_calls, repair=repair)
    message = Message(Role.ASSISTANT, response.text, calls, kept=response.kept)
    asked = Transition(state, events, (message,), tuple(ToolRecord(state.step, call) for call in open_calls))
    return asked.then(advance(state, (), scope))


def _charged(state: RunState, spent: Sequence[Spend]) -> Transition:
    """Count what calls took that gave no answer; it is said to be an estimate."""
    events: list[Event] = []
    for spend in spent:
        cost = add_cost(state.cost_usd, spend.cost_usd)
        state = replace(state, usage=state.usage + spend.usage, cost_usd=cost)
        data = {
            "code": WarningCode.USAGE_ESTIMATED,
            "model": spend.model,
            "usage": spend.usage.as_dict(),
            "cost_usd": None if spend.cost_usd is None else float(spend.cost_usd),
        }
        said = f"{spend.reason}: what the call has used is estimated"
        events.append(Event(EventType.WARNING, state.step, data, message=said))
    return Transition(state, tuple(events))


def _answered(state: RunState, response: ModelResponse, events: tuple[Event, ...]) -> Transition:
    """A response without tool calls ends the run; only a whole answer completes it. A refusal is one."""
    if not response.text and response.finish_reason is not FinishReason.CONTENT_FILTER:
        error = RunError(WarningCode.EMPTY_RESPONSE.value, "the model gave an empty answer", retryable=True)
        if state.best_text:
            state = finished(state, RunStatus.DEGRADED, state.best_text, error)
        else:
            state = finished(state, RunStatus.FAILED, error.message, error)
        return Transition(state, events)
    match response.finish_reason:
        case FinishReason.LENGTH:
            error = RunError(
                WarningCode.TRUNCATED_RESPONSE.value,
                "the model's answer was cut off at its output limit (max_tokens)",
            )
        case FinishReason.CONTENT_FILTER:
            error = RunError(WarningCode.CONTENT_FILTERED.value, "the provider filtered the model's answer")
        case FinishReason.STOP | FinishReason.TOOL_CALLS | FinishReason.REFUSAL:
            error = state.tolerated
        case _:
            assert_never(response.finish_reason)
    status = RunStatus.COMPLETED if error is None else RunStatus.DEGRADED
    state = finished(state, status, response.text, error)
    return Transition(state, events, (Message(Role.ASSISTANT, response.text, kept=response.kept),))


def _structured(
    state: RunState, response: ModelResponse, events: tuple[Event, ...], answers: AnswerSchema, agent: ResolvedAgent
) -> Transition:
    """The same where the answer must fit a schema: one that does not is shown to the model again, so many times."""
    unusable = _unusable(response)
    if unusable is not None:
        return Transition(_given_up(state, unusable, agent), events)
    checked = answers.check(response.text)
    match checked:
        case Fits(value):
            done = _answered(replace(state, repair=None), response, events)
            outcome = done.state.outcome
            assert outcome is not None
            return replace(done, state=replace(done.state, outcome=replace(outcome, structured=value)))
        case Misfit(problem):
            turn = 1 if state.repair is None else state.repair.turn + 1
            data = {"code": WarningCode.STRUCTURED_OUTPUT_INVALID, "problem": problem, "turn": turn}
            said = "the answer does not fit the response schema"
            events = (*events, Event(EventType.WARNING, state.step, data, message=said))
            if turn > MAX_REPAIRS:
                error = RunError("invalid_structured_output", f"{said}, after {MAX_REPAIRS} corrections: {problem}")
                return Transition(_given_up(replace(state, repair=None), error, agent), events)
            return Transition(replace(state, step=state.step + 1, repair=Repair(turn, response.text, problem)), events)
        case _:
            assert_never(checked)


def _unusable(response: ModelResponse) -> RunError | None:
    """Why an answer cannot fit a schema, whatever it says; None where it is to be held against it."""
    match response.finish_reason:
        case FinishReason.LENGTH:
            said = "the model's answer was cut off at its output limit (max_tokens)"
            return RunError(WarningCode.TRUNCATED_RESPONSE.value, said)
        case FinishReason.CONTENT_FILTER:
            return RunError(WarningCode.CONTENT_FILTERED.value, "the provider filtered the model's answer")
        case FinishReason.REFUSAL:
            return RunError(WarningCode.MODEL_REFUSED.value, f"the model refused: {response.text[:_MAX_REASON_CHARS]}")
        case FinishReason.STOP | FinishReason.TOOL_CALLS:
            return None
        case _:
            assert_never(response.finish_reason)


def _given_up(state: RunState, error: RunError, agent: ResolvedAgent) -> RunState:
    """The end of a run whose model did not do its part."""
    policy = agent.definition.llm_failure_policy
    match policy:
        case LlmFailurePolicy.FAIL:
            return finished(state, RunStatus.FAILED, error.message, error)
        case LlmFailurePolicy.DEGRADE:
            return finished(state, RunStatus.DEGRADED, state.best_text, error)
        case _:
            assert_never(policy)


def _llm_completed(step: int, outcome: ModelResponded) -> Event:
    response = outcome.response
    return Event(
        EventType.LLM_COMPLETED,
        step,
        {
            "model": response.model,
            "provider": response.provider,
            "finish_reason": response.finish_reason,
            "text": response.text,
            "reasoning": response.reasoning or None,
            "tool_call_count": len(response.tool_calls),
            "usage": response.usage.as_dict(),
            "latency_ms": round(outcome.latency_ms, 3),
            "cost_usd": None if response.cost_usd is None else float(response.cost_usd),
            "reused": response.reused,
        },
    )


def _warnings(step: int, response: ModelResponse) -> list[Event]:
    found: list[tuple[WarningCode, str]] = []
    filtered = response.finish_reason is FinishReason.CONTENT_FILTER
    if not response.text and not response.tool_calls and not filtered:
        found.append((WarningCode.EMPTY_RESPONSE, "the model gave an empty answer"))
    if response.finish_reason is FinishReason.LENGTH:
        found.append(
            (
                WarningCode.TRUNCATED_RESPONSE,
                "the model's answer was cut off at its output limit (max_tokens)",
            )
        )
    if filtered:
        found.append((WarningCode.CONTENT_FILTERED, "the provider filtered the model's answer"))
    if response.finish_reason is FinishReason.REFUSAL:
        found.append((WarningCode.MODEL_REFUSED, "the model refused to answer"))
    if response.usage_estimated:
        found.append((WarningCode.USAGE_ESTIMATED, "the provider reported no usage; token counts are estimated"))
    if response.cost_usd is None:
        found.append((WarningCode.PRICE_UNKNOWN, f"no price is known for {response.model}; costs are null, not zero"))
    data = {"model": response.model, "provider": response.provider}
    return [Event(EventType.WARNING, step, {"code": code, **data}, message=text) for code, text in found]


def _unique_calls(calls: Sequence[ToolCall], step: int, used_ids: Set[str]) -> tuple[ToolCall, ...]:
    seen = set(used_ids)
    unique: list[ToolCall] = []
    for index, call in enumerate(calls):
        identifier = call.id or f"call-{step}-{index}"
        while identifier in seen:
            identifier = f"{identifier}-{step}-{index}"
        seen.add(identifier)
        unique.append(call if identifier == call.id else replace(call, id=identifier))
    return tuple(unique)


def _effect(tools: ToolPort, name: str) -> ToolEffect:
    spec = tools.spec(name)
    return ToolEffect.UNSAFE if spec is None else spec.effect
