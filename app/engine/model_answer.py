"""What a model's answer, or the want of one, changes in a run. Pure."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import replace
from typing import assert_never

from app.engine.agent import LlmFailurePolicy, ResolvedAgent
from app.engine.compact_step import overflowed
from app.engine.effects import ToolEffect
from app.engine.errors import ModelErrorCode, RunError
from app.engine.events import Event, EventType, WarningCode
from app.engine.messages import Message, Role, ToolCall
from app.engine.model import FinishReason, ModelResponse
from app.engine.outcomes import ModelFailed, ModelResponded
from app.engine.scope import Scope
from app.engine.state import OpenCall, Phase, RunState, finished
from app.engine.status import RunStatus
from app.engine.step import advance
from app.engine.structured_output import MAX_REPAIRS, AnswerSchema, Fits, Misfit, Repair
from app.engine.tools import ToolPort
from app.engine.transition import ToolRecord, Transition
from app.engine.usage import Spend, add_cost

_MAX_REASON_CHARS = 500


def model_responded(state: RunState, outcome: ModelResponded, scope: Scope) -> Transition:
    response = outcome.response
    charged = charge(state, outcome.spent)
    state = replace(
        charged.state,
        usage=charged.state.usage + response.usage,
        cost_usd=add_cost(charged.state.cost_usd, response.cost_usd),
        best_text=response.text or state.best_text,
        model=response.model,
        provider=response.provider,
    )
    events = (*charged.events, _llm_completed(state.step, outcome), *_warnings(state.step, response, scope.agent))
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


def charge(state: RunState, spent: Sequence[Spend]) -> Transition:
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
        return Transition(given_up(state, unusable, agent), events)
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
                return Transition(given_up(replace(state, repair=None), error, agent), events)
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


def model_failed(state: RunState, outcome: ModelFailed, agent: ResolvedAgent) -> Transition:
    """All tries of the step's model call failed; a conversation that is too long is compacted, once."""
    charged = charge(state, outcome.spent)
    state, failed = charged.state, outcome.error
    message = failed.message
    if failed.code is ModelErrorCode.CONTEXT_OVERFLOW:
        if not state.compacted_for_overflow:
            return charged.then(overflowed(state, failed))
        message = f"{message}; the thread was compacted before the call"
    error = RunError(failed.code.value, message, failed.retryable)
    return charged.then(Transition(given_up(state, error, agent)))


def given_up(state: RunState, error: RunError, agent: ResolvedAgent) -> RunState:
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


def _warnings(step: int, response: ModelResponse, agent: ResolvedAgent) -> list[Event]:
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
        said = f"no price is known for {response.model}; costs are null, not zero"
        if agent.limits.max_total_cost_usd is not None:
            said += ", and max_total_cost_usd cannot hold"
        found.append((WarningCode.PRICE_UNKNOWN, said))
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
