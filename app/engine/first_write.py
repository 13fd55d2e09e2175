"""The first write of a run whose thread is known to be new: made before the run exists, committed with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from app.engine.actions import CallModel
from app.engine.agent import ResolvedAgent
from app.engine.apply import opening
from app.engine.decide import decide
from app.engine.events import Event, EventType
from app.engine.messages import Message
from app.engine.model_request import build_request
from app.engine.policy import PolicyEngine, PolicySubject
from app.engine.records import Opening
from app.engine.state import RunState, checkpoint_of
from app.engine.tools import ToolPort


def run_started(agent: ResolvedAgent) -> Event:
    return Event(EventType.RUN_STARTED, 1, {"agent_name": agent.name, "agent_version": agent.version})


def first_write(
    agent: ResolvedAgent,
    context: Mapping[str, Any],
    messages: Sequence[Message],
    tools: ToolPort,
    policy: PolicyEngine,
) -> Opening | None:
    """`run_started` and the beginning of the first step; None if the run may not begin with a model call at once."""
    state = RunState()
    definition = agent.definition
    action = decide(state, agent)
    judged = policy.concerns(PolicySubject.MODEL_CALL, definition.policy.rules)
    if not isinstance(action, CallModel) or judged or definition.subagents:
        return None
    specs = tools.for_agent(agent.toolbox).granted(agent.tools)
    count = len(build_request(agent, context, messages, specs).messages)
    events, _ = opening(state, action, agent, count)
    return Opening((run_started(agent), *events), checkpoint_of(state), checkpoint_after=1)
