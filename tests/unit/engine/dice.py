"""What a simulated world throws: agents, the model's answers, results of tools, decisions, ends of child runs."""

from __future__ import annotations

import json
from decimal import Decimal
from random import Random
from typing import Any, TypeVar

import orjson

from app.engine.agent import (
    ApprovalDenialPolicy,
    Fallback,
    InputFallback,
    InteractionMode,
    JoinPolicy,
    LlmFailurePolicy,
    OnLimit,
    PolicySettings,
    ResolvedAgent,
    SubagentFailurePolicy,
    ToolFailurePolicy,
)
from app.engine.compact_step import Compacted, NotCompacted
from app.engine.compaction import NewCompaction
from app.engine.deed import PolicySubject
from app.engine.errors import ModelError, ModelErrorCode, RunError
from app.engine.interactions import Answer, Decision
from app.engine.limits import RunLimits
from app.engine.messages import ToolCall
from app.engine.model import FinishReason, ModelResponse
from app.engine.model_settings import ModelSettings
from app.engine.policy import PolicyAction, Rule
from app.engine.status import RunStatus
from app.engine.tools import Deferral, ToolResult
from app.engine.usage import Usage
from tests.unit.engine.builders import a_delegation, a_result, a_rule, an_agent
from tests.unit.engine.fake_tools import SPECS
from tests.unit.engine.odd_texts import ODD_CHARACTERS

_SUBAGENTS = ("scout", "critic")
# Providers repeat ids, or give none; these also look like what the engine makes of such ids.
_IDS = ("", "a", "b", "call-1-0", "call-1-1", "a-1-0", "a-2-0", "a-2-1")
_ENDS = [status for status in RunStatus if status.terminal]

_FailurePolicy = TypeVar("_FailurePolicy", ToolFailurePolicy, SubagentFailurePolicy, ApprovalDenialPolicy)


class Dice(Random):
    """The same numbers give the same world."""

    def chance(self, percent: int) -> bool:
        return self.randrange(100) < percent

    def text(self) -> str:
        return "".join(self.choices(f"{ODD_CHARACTERS}abcé漢😀", k=self.randrange(6)))

    def json_text(self) -> str:
        values = [self.text(), self.randrange(9), None, {self.text(): self.text()}]
        return json.dumps(self.choice(values), ensure_ascii=self.chance(50))

    def arguments(self) -> str:
        if self.chance(20):
            return self.text()
        given: dict[str, Any] = {self.text(): self.randrange(9) for _ in range(self.randrange(3))}
        if self.chance(10):
            given["bad"] = True
        return json.dumps(given, indent=self.choice([None, 1]))

    def agent(self) -> ResolvedAgent:
        join = self.choice(list(JoinPolicy))
        return an_agent(
            RunLimits(
                max_steps=self.randint(1, 6),
                max_llm_calls=self.choice([50, 50, 50, 4]),
                max_tool_calls=self.choice([200, 200, 200, 9, 3]),
                max_total_tokens=self.choice([None, None, 9000, 2000]),
                max_total_cost_usd=self.choice([None, None, 3.0, 0.1]),
                max_subagent_fanout=self.randint(1, 3),
            ),
            subagents=list(_SUBAGENTS),
            join_policy=join,
            quorum=self.randint(1, 3) if join is JoinPolicy.QUORUM else None,
            model_settings=ModelSettings(max_tokens=self.choice([None, 100])),
            llm_failure_policy=self.choice(list(LlmFailurePolicy)),
            tool_failure_policy=self._seldom_fail(ToolFailurePolicy),
            subagent_failure_policy=self._seldom_fail(SubagentFailurePolicy),
            approval_denial_policy=self._seldom_fail(ApprovalDenialPolicy),
            on_limit=self.choice(list(OnLimit)),
            interaction_mode=InteractionMode.HEADLESS if self.chance(30) else InteractionMode.EXTERNAL,
            approval_fallback=self.choice(list(Fallback)),
            input_fallback=self.choice(["deny", InputFallback(value={"given": True})]),
            policy=PolicySettings(rules=[self._rule(number) for number in range(self.randrange(4))]),
        )

    def _seldom_fail(self, policies: type[_FailurePolicy]) -> _FailurePolicy:
        # A policy that fails runs makes them short.
        return policies("fail") if self.chance(15) else self.choice(list(policies))

    def _rule(self, number: int) -> Rule:
        subject = self.choice([PolicySubject.TOOL_CALL] * 3 + [PolicySubject.SUBAGENT_CALL] * 2 + list(PolicySubject))
        action = self.choice(list(PolicyAction))
        if subject is PolicySubject.MODEL_CALL and action is PolicyAction.DENY and self.chance(80):
            action = PolicyAction.REQUEST_USER_INPUT
        tools = {
            PolicySubject.TOOL_CALL: [None, "read", "s*", "hooked"],
            PolicySubject.SUBAGENT_CALL: [None, "*scout"],
            PolicySubject.MODEL_CALL: [None],
        }
        rewrites = subject is PolicySubject.TOOL_CALL and action is not PolicyAction.DENY and self.chance(30)
        changed = {"arguments": {"q": 2}} if rewrites else {}
        return a_rule(
            action, self.choice(tools[subject]), subject, rule_id=f"r{number}", priority=self.randrange(3), **changed
        )

    def call(self) -> ToolCall:
        identifier = self.choice(_IDS)
        if self.chance(35):
            return a_delegation(self.choice(_SUBAGENTS), identifier, self.choice(["look", "search", " "]))
        return ToolCall(identifier, self.choice([*SPECS, "unknown", "delegate_to_scout"]), self.arguments())

    def response(self) -> ModelResponse:
        calls = () if self.chance(20) else tuple(self.call() for _ in range(self.randrange(1, 6)))
        reason = FinishReason.STOP if self.chance(70) else self.choice(list(FinishReason))
        usage = Usage(1, *(self.randrange(500) for _ in range(4)))
        return ModelResponse(
            "scripted", "answer", self.text(), calls, reason, usage, self.cost(), usage_estimated=self.chance(20)
        )

    def cost(self) -> Decimal | None:
        return None if self.chance(5) else Decimal(self.randrange(10**6)).scaleb(-7)

    def model_error(self) -> ModelError:
        return ModelError(self.choice(list(ModelErrorCode)), self.text())

    def compaction(self) -> Compacted | NotCompacted:
        if self.chance(30):
            return NotCompacted(self.text())
        made = NewCompaction(self.randrange(1, 9), self.text())
        usage = Usage(self.randint(1, 2), *(self.randrange(500) for _ in range(4)))
        return Compacted(made, self.randrange(1, 9), 500, 100, "answer", usage, self.cost())

    def result(self) -> ToolResult:
        if self.chance(15):
            return a_result(False, self.text())
        return ToolResult(True, self.json_text(), None, self.text(), 1.0)

    def deferral(self) -> Deferral:
        return Deferral(f"ticket-{self.randrange(99)}", self.text(), self.choice([None, self.text()]))

    def posted(self) -> tuple[str | None, str | None]:
        """The output and the error of a result from outside."""
        return (None, self.text()) if self.chance(30) else (self.json_text(), None)

    def answer(self) -> Answer:
        edited = self.choice([self.arguments(), orjson.dumps({"task": "look again"}).decode()])
        return Answer(
            Decision.DENY if self.chance(25) else Decision.APPROVE,
            value=self.json_text() if self.chance(25) else None,
            arguments=edited if self.chance(25) else None,
            reason=self.choice([None, self.text()]),
            by=self.choice(["a person", "expiry"]),
        )

    def child_status(self) -> RunStatus:
        return RunStatus.COMPLETED if self.chance(60) else self.choice(_ENDS)

    def child_error(self) -> RunError | None:
        return None if self.chance(50) else RunError("code", self.text())

    def child_usage(self) -> Usage:
        return Usage(self.randrange(5), *(self.randrange(500) for _ in range(4)))
