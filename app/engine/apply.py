"""apply(state, outcome) -> Transition: what an outcome changes, and the facts that it leaves. Pure.

A write has two halves. `apply` gives the first: what the last action brought. `opening` gives the second: what the
next action begins with. Both are committed together, so that a run is never between two actions in the database.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass, replace
from typing import assert_never

import orjson

from app.engine.actions import Action, CallModel, ExecuteTools, Finish
from app.engine.agent import LlmFailurePolicy, ResolvedAgent, ToolFailurePolicy
from app.engine.errors import ModelError, RunError
from app.engine.events import Event, EventType, RunIdentity, WarningCode
from app.engine.messages import Message, Role, ToolCall, json_or_text
from app.engine.model import FinishReason, ModelResponse
from app.engine.state import OpenCall, Phase, RunState, finished
from app.engine.status import RunStatus
from app.engine.tools import ToolEffect, ToolPort, ToolResult
from app.engine.usage import add_cost


@dataclass(frozen=True, slots=True)
class ModelResponded:
    """The model answered; `latency_ms` is the wall time of the whole call in milliseconds."""

    response: ModelResponse
    latency_ms: float


@dataclass(frozen=True, slots=True)
class ModelFailed:
    """All tries of a model call failed."""

    error: ModelError


@dataclass(frozen=True, slots=True)
class ToolsFinished:
    """Some calls of the open step ended, as (call index, result)."""

    results: tuple[tuple[int, ToolResult], ...]


ActionOutcome = ModelResponded | ModelFailed | ToolsFinished


@dataclass(frozen=True, slots=True)
class ToolRecord:
    """What becomes known of a tool call: that it was asked for, was started, or has ended."""

    step: int
    call: OpenCall


@dataclass(frozen=True, slots=True)
class Transition:
    """The state after an outcome, with the facts, messages and records to commit with it."""

    state: RunState
    events: tuple[Event, ...] = ()
    messages: tuple[Message, ...] = ()
    records: tuple[ToolRecord, ...] = ()


def apply(
    state: RunState,
    outcome: ActionOutcome,
    agent: ResolvedAgent,
    run: RunIdentity,
    tools: ToolPort,
    used_ids: Set[str],
) -> Transition:
    """What an outcome changes.

    Args:
        tools: asked for the effect of each tool that the model names.
        used_ids: the tool call ids of the run so far; providers repeat them, a run must not.
    """
    match outcome:
        case ModelResponded():
            return _model_responded(state, outcome, tools, used_ids)
        case ModelFailed():
            return _model_failed(state, outcome.error, agent)
        case ToolsFinished():
            return _tools_finished(state, outcome.results, agent, run)
        case _:
            assert_never(outcome)


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
            new = [call for call in calls if not call.started]
            if not new:
                return (), ()
            return _batch_opening(step, new), tuple(ToolRecord(step, replace(call, started=True)) for call in new)
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
        case ExecuteTools():
            new = sum(1 for call in state.calls if not call.started)
            calls = tuple(call if call.started else replace(call, started=True) for call in state.calls)
            return replace(state, calls=calls, tool_calls=state.tool_calls + new)
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


def _batch_opening(step: int, calls: Sequence[OpenCall]) -> tuple[Event, ...]:
    batch = {
        "tool_call_count": len(calls),
        "tool_names": [call.call.name for call in calls],
        "tool_call_ids": [call.call.id for call in calls],
    }
    return (
        Event(EventType.TOOL_BATCH_STARTED, step, batch),
        *(
            Event(
                EventType.TOOL_STARTED,
                step,
                {
                    "tool_name": call.call.name,
                    "tool_call_id": call.call.id,
                    "arguments": call.call.shown_arguments(),
                },
            )
            for call in calls
        ),
    )


def _model_responded(state: RunState, outcome: ModelResponded, tools: ToolPort, used_ids: Set[str]) -> Transition:
    response = outcome.response
    usage = state.usage + response.usage
    cost = add_cost(state.cost_usd, response.cost_usd)
    state = replace(
        state,
        usage=usage,
        cost_usd=cost,
        best_text=response.text or state.best_text,
        model=response.model,
        provider=response.provider,
    )
    events = [_llm_completed(state.step, outcome), *_warnings(state.step, response)]
    if not response.tool_calls:
        return _answered(state, response, tuple(events))
    calls = _unique_calls(response.tool_calls, state.step, used_ids)
    open_calls = tuple(OpenCall(i, call, _effect(tools, call.name)) for i, call in enumerate(calls))
    state = replace(state, phase=Phase.EXECUTE_TOOLS, calls=open_calls)
    message = Message(Role.ASSISTANT, response.text, calls)
    return Transition(state, tuple(events), (message,), tuple(ToolRecord(state.step, call) for call in open_calls))


def _answered(state: RunState, response: ModelResponse, events: tuple[Event, ...]) -> Transition:
    """A response without tool calls ends the run; only a whole answer completes it."""
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
        case FinishReason.STOP | FinishReason.TOOL_CALLS:
            error = state.tolerated
        case _:
            assert_never(response.finish_reason)
    status = RunStatus.COMPLETED if error is None else RunStatus.DEGRADED
    state = finished(state, status, response.text, error)
    return Transition(state, events, (Message(Role.ASSISTANT, response.text),))


def _model_failed(state: RunState, error: ModelError, agent: ResolvedAgent) -> Transition:
    reason = RunError(error.code.value, error.message, error.retryable)
    match agent.llm_failure_policy:
        case LlmFailurePolicy.FAIL:
            return Transition(finished(state, RunStatus.FAILED, error.message, reason))
        case LlmFailurePolicy.DEGRADE:
            return Transition(finished(state, RunStatus.DEGRADED, state.best_text, reason))
        case _:
            assert_never(agent.llm_failure_policy)


def _tools_finished(
    state: RunState, results: Sequence[tuple[int, ToolResult]], agent: ResolvedAgent, run: RunIdentity
) -> Transition:
    ended = dict(results)
    new = [replace(call, result=ended[call.index]) for call in state.open_calls() if call.index in ended]
    known = {call.index: call for call in new}
    calls = tuple(known.get(call.index, call) for call in state.calls)
    events = tuple(_tool_completed(state.step, call, agent, run) for call in new)
    records = tuple(ToolRecord(state.step, call) for call in new)
    state = _after_failures(replace(state, calls=calls), agent)
    if state.open_calls():
        return Transition(state, events, records=records)
    messages = tuple(
        Message(Role.TOOL, call.result.content, tool_call_id=call.call.id) for call in calls if call.result is not None
    )
    return Transition(_closed_step(state, agent), events, messages, records)


def _after_failures(state: RunState, agent: ResolvedAgent) -> RunState:
    if agent.tool_failure_policy is ToolFailurePolicy.CONTINUE or state.tolerated is not None:
        return state
    for call in state.calls:
        if call.result is not None and not call.result.success:
            error = RunError("tool_failed", f"the tool {call.call.name} failed: {call.result.error}")
            return replace(state, tolerated=error)
    return state


def _closed_step(state: RunState, agent: ResolvedAgent) -> RunState:
    match agent.tool_failure_policy:
        case ToolFailurePolicy.FAIL if state.tolerated is not None:
            failed = finished(state, RunStatus.FAILED, state.tolerated.message, state.tolerated)
            return replace(failed, resume_step=state.step + 1)
        case ToolFailurePolicy.CONTINUE | ToolFailurePolicy.DEGRADE | ToolFailurePolicy.FAIL:
            return replace(state, step=state.step + 1, phase=Phase.CALL_MODEL, calls=())
        case _:
            assert_never(agent.tool_failure_policy)


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
            "tool_call_count": len(response.tool_calls),
            "usage": response.usage.as_dict(),
            "latency_ms": round(outcome.latency_ms, 3),
            "cost_usd": None if response.cost_usd is None else float(response.cost_usd),
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
    if response.usage_estimated:
        found.append((WarningCode.USAGE_ESTIMATED, "the provider reported no usage; token counts are estimated"))
    if response.cost_usd is None:
        found.append((WarningCode.PRICE_UNKNOWN, f"no price is known for {response.model}; costs are null, not zero"))
    data = {"model": response.model, "provider": response.provider}
    return [Event(EventType.WARNING, step, {"code": code, **data}, message=text) for code, text in found]


def _tool_completed(step: int, call: OpenCall, agent: ResolvedAgent, run: RunIdentity) -> Event:
    result = call.result
    assert result is not None
    output: orjson.Fragment | str | None = None
    if result.output is not None:
        whole = len(result.output) <= agent.tool_output_max_chars
        output = json_or_text(result.output) if whole else result.content
    return Event(
        EventType.TOOL_COMPLETED,
        step,
        {
            "tool_name": call.call.name,
            "tool_call_id": call.call.id,
            "success": result.success,
            "output": output,
            "error": result.error,
            "latency_ms": round(result.latency_ms, 3),
            "agent_name": run.agent_name,
            "agent_depth": run.agent_depth,
            "agent_path": run.agent_path or run.agent_name,
            "replayed": result.replayed,
        },
    )


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
