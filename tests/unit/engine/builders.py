"""What the engine's tests begin with: an agent, its surroundings, answers and results."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import orjson

from app.engine.agent import AgentDefinition, AgentOverrides, AgentVersion, ResolvedAgent, resolve
from app.engine.deed import PolicySubject
from app.engine.events import RunIdentity
from app.engine.limits import RunLimits
from app.engine.messages import ToolCall
from app.engine.model import FinishReason, ModelResponse
from app.engine.policy import PolicyAction, PolicyEngine, PolicyRule, Rule
from app.engine.scope import Scope
from app.engine.tools import ToolResult
from app.engine.usage import Usage
from tests.unit.engine.fake_tools import SPECS, FakeTools

RUN = RunIdentity("run-1", "thread-1", "helper", 0, "helper")
NOW = datetime(2026, 1, 31, 8, tzinfo=UTC)


def an_agent(limits: RunLimits | None = None, **settings: Any) -> ResolvedAgent:
    """An agent that may use every tool there is; `settings` are fields of its definition."""
    stated = {"model": "scripted/answer", "tools": [*SPECS], "tool_output_max_chars": 200, **settings}
    definition = AgentDefinition(name="helper", **stated)
    return resolve(AgentVersion("version-1", definition, 1), AgentOverrides(), limits or RunLimits())


def a_rule(
    action: PolicyAction, tool: str | None = None, subject: PolicySubject = PolicySubject.TOOL_CALL, **fields: Any
) -> Rule:
    condition = {} if tool is None else {"tool_name": tool}
    stated = {"rule_id": f"{action}-{tool}", "condition": condition, **fields}
    return Rule.model_validate({"action": action, "subjects": [subject], **stated})


def a_scope(
    agent: ResolvedAgent | None = None,
    *,
    run: RunIdentity = RUN,
    context: Mapping[str, Any] | None = None,
    operator: Sequence[PolicyRule | Rule] = (),
    gone: Sequence[str] = (),
    now: datetime = NOW,
) -> Scope:
    """The surroundings of a run of this agent, with ids that count up.

    Args:
        gone: subagents of the agent that are not there any more.
    """
    agent = agent or an_agent()
    numbers = itertools.count(1)
    team = {
        name: AgentVersion(f"{name}-1", AgentDefinition(name=name, model="scripted/answer"))
        for name in agent.definition.subagents
        if name not in gone
    }
    return Scope(
        agent=agent,
        run=run,
        context=context or {},
        tools=FakeTools(),
        now=now,
        new_id=lambda: f"id-{next(numbers)}",
        policy=PolicyEngine(operator),
        team=team,
    )


def a_call(name: str, identifier: str | None = None, arguments: str = '{"q": 1}') -> ToolCall:
    return ToolCall(identifier or name, name, arguments)


def a_delegation(subagent: str, identifier: str | None = None, task: str = "look") -> ToolCall:
    name = f"delegate_to_{subagent}"
    return ToolCall(identifier or subagent, name, orjson.dumps({"task": task}).decode())


def a_response(text: str = "", *calls: ToolCall, **fields: Any) -> ModelResponse:
    reason = FinishReason.TOOL_CALLS if calls else FinishReason.STOP
    response = ModelResponse("scripted", "answer", text, calls, reason, Usage(llm_calls=1), Decimal("0.01"))
    return replace(response, **fields)


def a_result(success: bool = True, text: str = "found") -> ToolResult:
    if success:
        return ToolResult(True, orjson.dumps(text).decode(), None, text, 1.0)
    return ToolResult(False, None, text, text, 1.0)
