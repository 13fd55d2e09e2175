"""Judging: what policy and people say of a call before it begins, and of a model call. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, assert_never

import orjson

from app.engine.agent import ApprovalDenialPolicy, InteractionMode
from app.engine.decide import batch_breach, model_call_breach
from app.engine.delegation import refusal, task_of
from app.engine.errors import RunError
from app.engine.events import Event, EventType
from app.engine.interactions import (
    EXPIRY,
    HEADLESS,
    Answer,
    Decision,
    InteractionKind,
    NewInteraction,
    fallback,
    timeout_s,
)
from app.engine.messages import Message, Role, json_or_text
from app.engine.moves import InteractionEnd
from app.engine.policy import PolicyAction, PolicySubject, Verdict
from app.engine.scope import Scope
from app.engine.state import Gate, Hold, HoldKind, OpenCall, Phase, RunState, finished
from app.engine.status import RunStatus
from app.engine.timestamp import timestamp
from app.engine.tools import ArgumentsRefused, ToolResult, ToolSource
from app.engine.transition import Transition

_NOT_REPEATED = (
    "The outcome of this call is unknown: it was started, and the process that ran it stopped before it "
    "reported a result. It was not run again, because the tool is not declared safe to repeat. Check whether it "
    "took effect before you call it again."
)


@dataclass(frozen=True, slots=True)
class _Judged:
    """A call after its judgement, with the facts and the question that this left."""

    call: OpenCall
    events: tuple[Event, ...] = ()
    interaction: NewInteraction | None = None


# --- calls ------------------------------------------------------------------------------------------------------------


def judge_calls(state: RunState, scope: Scope) -> Transition:
    """Judge every call of the open step that can be: each then may begin, waits for a person, or has its refusal."""
    waiting = [call for call in state.open_calls() if not call.judged and not call.started and call.hold is None]
    if not waiting or batch_breach(state, scope.agent) is not None:
        return Transition(state)
    judged = [_judge_call(state, call, scope) for call in waiting]
    calls = {each.call.index: each.call for each in judged}
    return Transition(
        replace(state, calls=tuple(calls.get(call.index, call) for call in state.calls)),
        events=tuple(event for each in judged for event in each.events),
        interactions=tuple(each.interaction for each in judged if each.interaction is not None),
    )


def answered(state: RunState, call: OpenCall, end: InteractionEnd, scope: Scope) -> OpenCall:
    """A call after its question has ended; one that was closed without an answer is judged anew."""
    assert call.hold is not None
    question = call.hold.question
    assert question is not None
    freed = replace(call, hold=None)
    return freed if end.answer is None else _decided(state, freed, question, end.answer, scope)


def ask_about_unknown(state: RunState, call: OpenCall, scope: Scope) -> tuple[OpenCall, Event, NewInteraction]:
    """Ask a person what became of a call whose outcome was lost."""
    prompt = (
        f"{call.call.name} was started and its outcome was lost. Approve to run it again, or give its result as "
        "`value`; deny to tell the model that the outcome is unknown."
    )
    held, interaction = _ask(state, call, InteractionKind.TOOL_OUTCOME_UNKNOWN, prompt, None, scope)
    return held, _requested(state.step, interaction), interaction


def not_repeated(scope: Scope) -> ToolResult:
    """What the model reads of a call of unknown outcome that was not run again."""
    return _result(scope, error=_NOT_REPEATED)


def _judge_call(state: RunState, call: OpenCall, scope: Scope) -> _Judged:
    name = call.call.name
    subagent = scope.subagent_of(name)
    spec = None if subagent is not None else scope.tools.spec(name)
    if subagent is None and (spec is None or not scope.agent.may_use(name)):
        return _Judged(replace(call, judged=True))  # whoever runs it refuses it, and says so in the record
    if subagent is not None and (problem := refusal(state, call, subagent, scope)) is not None:
        return _Judged(replace(call, judged=True, result=_result(scope, error=problem)))
    if spec is not None and spec.has_prehooks and call.arguments is None:
        return _Judged(call)
    subject = PolicySubject.TOOL_CALL if subagent is None else PolicySubject.SUBAGENT_CALL
    if not scope.has_rules(subject):
        return _Judged(_placed(call, scope))
    try:
        arguments = _arguments(call, subagent, scope)
    except ArgumentsRefused as error:
        return _Judged(replace(call, judged=True, result=_result(scope, error=str(error))))
    verdict = scope.judge(subject, name, arguments)
    return _Judged(_placed(call, scope)) if verdict is None else _ruled(state, call, subject, verdict, scope)


def _ruled(state: RunState, call: OpenCall, subject: PolicySubject, verdict: Verdict, scope: Scope) -> _Judged:
    name = call.call.name
    told = Event(EventType.POLICY_DECISION, state.step, verdict.event_data(subject, name, call.call.id))
    if verdict.arguments is not None:
        call = replace(call, arguments=orjson.dumps(verdict.arguments).decode())
    match verdict.action:
        case PolicyAction.ALLOW:
            return _Judged(_placed(call, scope), (told,))
        case PolicyAction.DENY:
            return _Judged(_denied(call, f"policy denies this call{_because(verdict.reason)}", scope), (told,))
        case PolicyAction.REQUEST_APPROVAL:
            kind = InteractionKind.APPROVAL
            prompt = f"May {scope.run.agent_name} call {name}?"
        case PolicyAction.REQUEST_USER_INPUT:
            kind = InteractionKind.INPUT
            prompt = (
                f"{scope.run.agent_name} calls {name}: give its result as `value`, or the arguments to run it with."
            )
        case _:
            assert_never(verdict.action)
    if scope.agent.interaction_mode is InteractionMode.HEADLESS:
        answer = fallback(kind, scope.agent, HEADLESS)
        return _Judged(_decided(state, call, kind, answer, scope), (told,))
    held, interaction = _ask(state, call, kind, prompt, verdict.reason, scope)
    return _Judged(held, (told, _requested(state.step, interaction)), interaction)


def _decided(state: RunState, call: OpenCall, kind: InteractionKind, answer: Answer, scope: Scope) -> OpenCall:
    """A call after a decision: it may go on, or it has its result."""
    if answer.decision is Decision.DENY:
        if kind is InteractionKind.TOOL_OUTCOME_UNKNOWN:
            return replace(call, judged=True, result=not_repeated(scope))
        by = "the fallback" if answer.by in (HEADLESS, EXPIRY) else "a person"
        return _denied(call, f"{by} denied this call{_because(answer.reason)}", scope)
    if answer.value is not None:
        return replace(call, judged=True, result=_result(scope, output=answer.value))
    if answer.arguments is not None:
        call = replace(call, arguments=answer.arguments)
        refused = _refused_after_all(call, scope)
        if refused is not None:
            return refused
    if kind is InteractionKind.TOOL_OUTCOME_UNKNOWN:
        return replace(call, judged=True, started=False)  # begun anew, so that a second loss is noticed as well
    return _placed(call, scope)


def _refused_after_all(call: OpenCall, scope: Scope) -> OpenCall | None:
    """A rule that denies holds for arguments that a person edited as well."""
    name = call.call.name
    subagent = scope.subagent_of(name)
    subject = PolicySubject.TOOL_CALL if subagent is None else PolicySubject.SUBAGENT_CALL
    try:
        verdict = scope.judge(subject, name, _arguments(call, subagent, scope))
    except ArgumentsRefused as error:
        return replace(call, judged=True, result=_result(scope, error=str(error)))
    if verdict is None or verdict.action is not PolicyAction.DENY:
        return None
    return _denied(call, f"policy denies this call with these arguments{_because(verdict.reason)}", scope)


def _placed(call: OpenCall, scope: Scope) -> OpenCall:
    """A call that may begin: here, at a subagent, or at the caller's."""
    if scope.subagent_of(call.call.name) is not None:
        try:
            task_of(call.final_arguments)
        except ArgumentsRefused as error:
            return replace(call, judged=True, result=_result(scope, error=str(error)))
        return replace(call, judged=True, hold=Hold(HoldKind.CHILD_RUN, scope.new_id()))
    spec = scope.tools.spec(call.call.name)
    if spec is None or spec.source is not ToolSource.CALLER:
        return replace(call, judged=True)
    try:
        arguments = scope.tools.checked(spec.name, call.final_arguments)
    except ArgumentsRefused as error:
        return replace(call, judged=True, result=_result(scope, error=str(error)))
    expires_at = scope.now + timedelta(seconds=spec.ttl_s)
    return replace(call, judged=True, arguments=arguments, hold=Hold(HoldKind.TOOL_RESULT, call.call.id, expires_at))


def _arguments(call: OpenCall, subagent: str | None, scope: Scope) -> Any:
    """The final arguments as JSON values. Raises: ArgumentsRefused."""
    if subagent is not None:
        return {"task": task_of(call.final_arguments)}
    return orjson.loads(scope.tools.checked(call.call.name, call.final_arguments))


def _denied(call: OpenCall, error: str, scope: Scope) -> OpenCall:
    return replace(call, judged=True, result=_result(scope, error=error, denied=True))


def _result(scope: Scope, *, output: str | None = None, error: str | None = None, denied: bool = False) -> ToolResult:
    settings = scope.agent.definition
    return scope.tools.result(
        output=output,
        error=error,
        output_max_chars=settings.tool_output_max_chars,
        sanitize=settings.sanitize_tool_output,
        denied=denied,
    )


# --- model calls ------------------------------------------------------------------------------------------------------


def judge_model_call(state: RunState, scope: Scope) -> Transition:
    """Judge the model call that comes next, once a step."""
    gate = state.gate
    known = gate is not None and gate.step == state.step
    if state.phase is not Phase.CALL_MODEL or known or not scope.has_rules(PolicySubject.MODEL_CALL):
        return Transition(state)
    if model_call_breach(state, scope.agent) is not None:
        return Transition(state)
    verdict = scope.judge(PolicySubject.MODEL_CALL)
    if verdict is None:
        return Transition(state)
    told = Event(EventType.POLICY_DECISION, state.step, verdict.event_data(PolicySubject.MODEL_CALL))
    match verdict.action:
        case PolicyAction.ALLOW:
            return Transition(replace(state, gate=Gate(state.step)), (told,))
        case PolicyAction.DENY:
            return Transition(
                _without_model(state, f"policy denies the model call{_because(verdict.reason)}", scope), (told,)
            )
        case PolicyAction.REQUEST_APPROVAL:
            kind, prompt = InteractionKind.APPROVAL, f"May {scope.run.agent_name} call its model?"
        case PolicyAction.REQUEST_USER_INPUT:
            kind = InteractionKind.INPUT
            prompt = f"What should {scope.run.agent_name} be told before it calls its model? Give it as `value`."
        case _:
            assert_never(verdict.action)
    if scope.agent.interaction_mode is InteractionMode.HEADLESS:
        return Transition(state, (told,)).then(_gate_decided(state, fallback(kind, scope.agent, HEADLESS), scope))
    interaction = _question(state, None, kind, prompt, verdict.reason, scope)
    hold = Hold(HoldKind.INTERACTION, interaction.interaction_id, question=kind)
    events = (told, _requested(state.step, interaction))
    return Transition(replace(state, gate=Gate(state.step, hold)), events, interactions=(interaction,))


def gate_answered(state: RunState, end: InteractionEnd, scope: Scope) -> Transition:
    """The state after the question about its model call has ended; closed without an answer, it is judged anew."""
    if end.answer is None:
        return Transition(replace(state, gate=None))
    return _gate_decided(state, end.answer, scope)


def _gate_decided(state: RunState, answer: Answer, scope: Scope) -> Transition:
    if answer.decision is Decision.DENY:
        return Transition(_without_model(state, f"the model call was denied{_because(answer.reason)}", scope))
    messages: tuple[Message, ...] = ()
    if answer.value is not None:
        value = orjson.loads(answer.value)
        messages = (Message(Role.USER, value if isinstance(value, str) else answer.value),)
    return Transition(replace(state, gate=Gate(state.step)), messages=messages)


def _without_model(state: RunState, message: str, scope: Scope) -> RunState:
    error = RunError("approval_denied", message)
    state = replace(state, gate=None)
    match scope.agent.definition.approval_denial_policy:
        case ApprovalDenialPolicy.DEGRADE:
            return finished(state, RunStatus.DEGRADED, state.best_text, error)
        case ApprovalDenialPolicy.CONTINUE | ApprovalDenialPolicy.FAIL:  # there is no going on without a model
            return finished(state, RunStatus.FAILED, message, error)
        case _:
            assert_never(scope.agent.definition.approval_denial_policy)


# --- questions --------------------------------------------------------------------------------------------------------


def _ask(
    state: RunState, call: OpenCall, kind: InteractionKind, prompt: str, reason: str | None, scope: Scope
) -> tuple[OpenCall, NewInteraction]:
    interaction = _question(state, call, kind, prompt, reason, scope)
    return replace(call, hold=Hold(HoldKind.INTERACTION, interaction.interaction_id, question=kind)), interaction


def _question(
    state: RunState, call: OpenCall | None, kind: InteractionKind, prompt: str, reason: str | None, scope: Scope
) -> NewInteraction:
    return NewInteraction(
        interaction_id=scope.new_id(),
        step=state.step,
        call_index=None if call is None else call.index,
        kind=kind,
        tool_name=None if call is None else call.call.name,
        tool_call_id=None if call is None else call.call.id,
        arguments=None if call is None else call.final_arguments,
        prompt=prompt,
        reason=reason,
        expires_at=scope.now + timedelta(seconds=timeout_s(kind, scope.agent)),
        fallback=fallback(kind, scope.agent, EXPIRY),
    )


def _requested(step: int, interaction: NewInteraction) -> Event:
    arguments = interaction.arguments
    data = {
        "interaction_id": interaction.interaction_id,
        "kind": interaction.kind,
        "tool_name": interaction.tool_name,
        "tool_call_id": interaction.tool_call_id,
        "arguments": None if arguments is None else json_or_text(arguments),
        "prompt": interaction.prompt,
        "reason": interaction.reason,
        "expires_at": timestamp(interaction.expires_at),
    }
    return Event(EventType.INTERACTION_REQUESTED, step, data, message=interaction.prompt)


def _because(reason: str | None) -> str:
    return f": {reason}" if reason else ""
