"""What a run is surrounded by: all that the pure functions may ask, the clock and the source of ids among it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from app.engine.agent import AgentVersion, ResolvedAgent, delegate_tool
from app.engine.events import RunIdentity
from app.engine.policy import Deed, PolicyEngine, PolicySubject, Verdict
from app.engine.structured_output import AnswerSchema
from app.engine.tools import ToolPort


@dataclass(frozen=True, slots=True)
class Scope:
    """
    Args:
        context: the run's context over the agent's defaults.
        tools: the agent's tools: asked for specs and effects, and to check arguments.
        policy: the operator's rules; the agent's own are in its definition.
        team: the agent's subagents, by name, at the versions that children are pinned to.
        used_ids: the tool call ids of the run so far; providers repeat them, a run must not.
        now: the database's time, as far as this replica knows it.
        new_id: makes ids, UUIDv7.
        answers: what the run's answer must fit; None where any text will do.
    """

    agent: ResolvedAgent
    run: RunIdentity
    context: Mapping[str, Any]
    tools: ToolPort
    now: datetime
    new_id: Callable[[], str]
    policy: PolicyEngine = field(default_factory=PolicyEngine)
    team: Mapping[str, AgentVersion] = field(default_factory=dict[str, AgentVersion])
    used_ids: Set[str] = frozenset()
    answers: AnswerSchema | None = None

    def subagent_of(self, tool_name: str) -> str | None:
        """The subagent that a tool delegates to, or None for any other tool."""
        for name in self.agent.definition.subagents:
            if tool_name == delegate_tool(name):
                return name
        return None

    def has_rules(self, subject: PolicySubject) -> bool:
        """Whether any rule is about such a thing."""
        return self.policy.concerns(subject, self.agent.definition.policy.rules)

    def judge(self, subject: PolicySubject, tool_name: str | None = None, arguments: Any = None) -> Verdict | None:
        """Policy's word; None where no rule is about such a thing."""
        deed = Deed(subject, self.run.agent_name, self.context, tool_name, arguments)
        return self.policy.judge(deed, self.agent.definition.policy.rules)
