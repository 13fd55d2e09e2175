"""Delegation: who may be asked, what each child run may spend, and when a step's delegations are done. Pure."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import assert_never

import orjson

from app.engine.agent import (
    AgentOverrides,
    InteractionMode,
    JoinPolicy,
    ResolvedAgent,
    SubagentFailurePolicy,
    delegate_tool,
    subagent_name,
)
from app.engine.effects import ToolEffect
from app.engine.errors import RunError
from app.engine.limits import Limits
from app.engine.messages import Message, Role
from app.engine.records import Lineage, NewRun, RunRecord
from app.engine.scope import Scope
from app.engine.state import HoldKind, OpenCall, RunState
from app.engine.tools import ArgumentsRefused, ToolSource, ToolSpec

# What the model reads of delegations that its step's join policy made needless; they are no failure's cause.
NOT_MADE = "this delegation was not made: the step does not need it any more"
STOPPED = "this delegation was stopped: the step does not need it any more"

_MAX_TASK_CHARS = 200_000


def delegate_specs(scope: Scope) -> tuple[ToolSpec, ...]:
    """The tools `delegate_to_<name>` of an agent's subagents, as the model sees them."""
    return tuple(_delegate_spec(name, version.definition.description) for name, version in scope.team.items())


def task_of(arguments: str) -> str:
    """The task that a model states in a delegation.

    Raises:
        ArgumentsRefused: the arguments are no `{"task": "…"}`.
    """
    try:
        given = orjson.loads(arguments)
    except orjson.JSONDecodeError as error:
        raise ArgumentsRefused(f"the arguments are not valid JSON: {error}") from error
    task = given.get("task") if isinstance(given, dict) else None  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    if not isinstance(task, str) or not task.strip() or len(given) != 1:  # pyright: ignore[reportUnknownArgumentType]
        raise ArgumentsRefused('the arguments must be a JSON object with the one key "task", a text')
    if len(task) > _MAX_TASK_CHARS:
        raise ArgumentsRefused(f"the task has more than {_MAX_TASK_CHARS} characters")
    return task


def refusal(state: RunState, call: OpenCall, subagent: str, scope: Scope) -> str | None:
    """Why a delegation cannot be made, for the model; None if it can."""
    limits = scope.agent.limits
    if subagent not in scope.team:
        return f"the subagent {subagent!r} is not there any more"
    if scope.run.agent_depth + 1 > limits.max_subagent_depth:
        return (
            f"no deeper delegation: the run is at its limit of {limits.max_subagent_depth} levels (max_subagent_depth)"
        )
    delegations = [other.index for other in state.calls if scope.subagent_of(other.call.name) is not None]
    if delegations.index(call.index) >= limits.max_subagent_fanout:
        return (
            f"{len(delegations)} delegations in one step are more than {limits.max_subagent_fanout} "
            "(max_subagent_fanout); this one was not made"
        )
    return None


def with_budgets(state: RunState, scope: Scope) -> RunState:
    """Split what is left of the run's budget evenly over the delegations of its step that have not begun."""
    new = [call for call in state.open_calls() if call.child_run_id is not None and not call.started]
    limits = scope.agent.limits
    if not new or (limits.max_total_tokens is None and limits.max_total_cost_usd is None):
        return state
    yet_to_judge = sum(
        1 for call in state.open_calls() if not call.judged and scope.subagent_of(call.call.name) is not None
    )
    shares = len(new) + yet_to_judge
    under_way = [call.hold for call in state.open_calls() if call.child_run_id is not None and call.started]
    tokens = limits.max_total_tokens
    if tokens is not None:
        promised = sum(hold.tokens or 0 for hold in under_way if hold is not None)
        tokens = max((tokens - state.usage.total_tokens - promised) // shares, 1)
    dollars = limits.max_total_cost_usd
    if dollars is not None:
        spent = float(state.cost_usd or Decimal(0))
        promised = sum(hold.cost_usd or 0.0 for hold in under_way if hold is not None)
        dollars = max((dollars - spent - promised) / shares, 1e-9)
    shared = {
        call.index: replace(call, hold=replace(call.hold, tokens=tokens, cost_usd=dollars))
        for call in new
        if call.hold is not None
    }
    return replace(state, calls=tuple(shared.get(call.index, call) for call in state.calls))


def is_joined(state: RunState, scope: Scope) -> bool:
    """Whether the step needs no more of its delegations, by its agent's join policy."""
    ended = _ended(state, scope)
    won = sum(1 for call in ended if call.result is not None and call.result.success)
    match scope.agent.definition.join_policy:
        case JoinPolicy.ALL_REQUIRED:
            fails = scope.agent.definition.subagent_failure_policy is SubagentFailurePolicy.FAIL
            return fails and won < len(ended)
        case JoinPolicy.ALLOW_OPTIONAL_FAILURES:
            return False
        case JoinPolicy.FIRST_SUCCESS:
            return won >= 1
        case JoinPolicy.QUORUM:
            return won >= (scope.agent.definition.quorum or 1)
        case _:
            assert_never(scope.agent.definition.join_policy)


def unneeded_children(state: RunState, scope: Scope) -> tuple[str, ...]:
    """The child runs under way whose results the step does not need any more."""
    running = tuple(
        call.hold.id
        for call in state.open_calls()
        if call.hold is not None and call.hold.kind is HoldKind.CHILD_RUN and call.started
    )
    return running if running and is_joined(state, scope) else ()


def unneeded_calls(state: RunState, scope: Scope) -> tuple[OpenCall, ...]:
    """The delegations that have not begun, and that the step does not need any more."""
    waiting = tuple(
        call for call in state.open_calls() if not call.started and scope.subagent_of(call.call.name) is not None
    )
    return waiting if waiting and is_joined(state, scope) else ()


def delegation_failure(state: RunState, scope: Scope) -> RunError | None:
    """Why a closed step's delegations have failed as a whole, or None if its agent's join policy is satisfied."""
    ended = _ended(state, scope)
    failed = [(call.call.name, call.result.error) for call in ended if call.result and not call.result.success]
    if not failed or _satisfied(len(ended) - len(failed), len(ended), scope.agent):
        return None
    name, error = next((each for each in failed if each[1] not in (NOT_MADE, STOPPED)), failed[0])
    return RunError("subagent_failed", f"{name} failed: {error}")


def child_runs(state: RunState, scope: Scope, parent: RunRecord) -> tuple[NewRun, ...]:
    """The child runs of the open step's delegations that have not begun.

    Each has a thread of its own, the context keys that its agent inherits, its share of the budget, and what the
    parent's caller has said of people and users.
    """
    return tuple(
        _child_run(call, scope, parent)
        for call in state.open_calls()
        if call.child_run_id is not None and not call.started
    )


def _child_run(call: OpenCall, scope: Scope, parent: RunRecord) -> NewRun:
    assert call.hold is not None
    agent = scope.team[subagent_name(call.call.name)]
    definition = agent.definition
    limits = Limits(
        max_total_tokens=call.hold.tokens,
        max_total_cost_usd=call.hold.cost_usd,
        max_subagent_depth=scope.agent.limits.max_subagent_depth,
    )
    inherited = {key: scope.context[key] for key in definition.inherit_context_keys if key in scope.context}
    return NewRun(
        run_id=call.hold.id,
        thread_id=call.hold.id,
        thread_key=call.hold.id,
        agent=agent,
        input=(Message(Role.USER, task_of(call.final_arguments)),),
        tenant_id=parent.tenant_id,
        overrides=AgentOverrides(limits=limits, interaction_mode=_mode(scope, parent)),
        context=inherited,
        user_id=parent.user_id,
        lineage=Lineage(
            parent_run_id=parent.run_id,
            root_run_id=parent.root_run_id or parent.run_id,
            depth=scope.run.agent_depth + 1,
            path=f"{scope.run.agent_path}>{definition.name}",
            deadline_s=scope.agent.definition.subagent_timeout_s,
        ),
        trace_context=parent.trace_context,
    )


def _mode(scope: Scope, parent: RunRecord) -> InteractionMode | None:
    """What a caller said of people holds for the whole family; a parent that asks lets its children ask as well."""
    if parent.overrides.interaction_mode is not None:
        return parent.overrides.interaction_mode
    return InteractionMode.EXTERNAL if scope.agent.interaction_mode is InteractionMode.EXTERNAL else None


def _delegate_spec(name: str, description: str | None) -> ToolSpec:
    about = f": {description}" if description else ""
    return ToolSpec(
        name=delegate_tool(name),
        description=f"Delegate a task to the agent {name}{about}",
        parameters={
            "type": "object",
            "properties": {"task": {"type": "string", "description": "The whole task: the agent sees nothing else."}},
            "required": ["task"],
            "additionalProperties": False,
        },
        effect=ToolEffect.IDEMPOTENT,
        source=ToolSource.SUBAGENT,
    )


def _ended(state: RunState, scope: Scope) -> list[OpenCall]:
    """The delegations that have ended; those that were denied count neither way (approval_denial_policy is theirs)."""
    return [
        call
        for call in state.calls
        if call.result is not None and not call.result.denied and scope.subagent_of(call.call.name) is not None
    ]


def _satisfied(won: int, asked: int, agent: ResolvedAgent) -> bool:
    match agent.definition.join_policy:
        case JoinPolicy.ALL_REQUIRED:
            return won == asked
        case JoinPolicy.ALLOW_OPTIONAL_FAILURES | JoinPolicy.FIRST_SUCCESS:
            return won >= 1
        case JoinPolicy.QUORUM:
            return won >= min(agent.definition.quorum or 1, asked)
        case _:
            assert_never(agent.definition.join_policy)
