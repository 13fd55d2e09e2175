"""How much a run may do, and which bound it would break next."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, Field

from app.engine.usage import Usage


class Limits(BaseModel):
    """Limits as an agent or a request states them; what is absent is not stated."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    max_steps: int | None = Field(default=None, ge=1, le=1_000_000, description="Turns of the loop.")
    max_llm_calls: int | None = Field(default=None, ge=1, le=1_000_000, description="Model calls.")
    max_tool_calls: int | None = Field(
        default=None,
        ge=1,
        le=1_000_000,
        description="Tool calls; a batch that would go over executes none of its calls.",
    )
    max_wall_time_s: float | None = Field(
        default=None,
        gt=0,
        le=31_536_000,
        description="Seconds of active time; queued, paused and waiting time is free.",
    )
    max_total_tokens: int | None = Field(default=None, ge=1, le=10**12, description="Input and output tokens together.")
    max_total_cost_usd: float | None = Field(default=None, gt=0, le=1e9, description="Cost in US dollars.")
    max_subagent_depth: int | None = Field(
        default=None, ge=1, le=100, description="Generations of child runs below the first run."
    )
    max_subagent_fanout: int | None = Field(default=None, ge=1, le=100, description="Child runs of one step.")


@dataclass(frozen=True, slots=True)
class RunLimits:
    """The limits that hold for a run, resolved. Time in seconds of active time, cost in US dollars."""

    max_steps: int = 20
    max_llm_calls: int = 50
    max_tool_calls: int = 200
    max_wall_time_s: float = 300.0
    max_total_tokens: int | None = None
    max_total_cost_usd: float | None = None
    max_subagent_depth: int = 3
    max_subagent_fanout: int = 4

    def replaced(self, stated: Limits) -> RunLimits:
        """These limits with the stated ones in their place, higher or lower."""
        return RunLimits(
            stated.max_steps or self.max_steps,
            stated.max_llm_calls or self.max_llm_calls,
            stated.max_tool_calls or self.max_tool_calls,
            stated.max_wall_time_s or self.max_wall_time_s,
            stated.max_total_tokens or self.max_total_tokens,
            stated.max_total_cost_usd or self.max_total_cost_usd,
            stated.max_subagent_depth or self.max_subagent_depth,
            stated.max_subagent_fanout or self.max_subagent_fanout,
        )

    def lowered(self, stated: Limits) -> RunLimits:
        """These limits, lowered where a request states less; a request never raises one."""
        return RunLimits(
            min(self.max_steps, stated.max_steps or self.max_steps),
            min(self.max_llm_calls, stated.max_llm_calls or self.max_llm_calls),
            min(self.max_tool_calls, stated.max_tool_calls or self.max_tool_calls),
            min(self.max_wall_time_s, stated.max_wall_time_s or self.max_wall_time_s),
            _least(self.max_total_tokens, stated.max_total_tokens),
            _least(self.max_total_cost_usd, stated.max_total_cost_usd),
            min(self.max_subagent_depth, stated.max_subagent_depth or self.max_subagent_depth),
            min(self.max_subagent_fanout, stated.max_subagent_fanout or self.max_subagent_fanout),
        )


SERVICE_LIMITS = RunLimits()


_N = TypeVar("_N", int, float)


def _least(a: _N | None, b: _N | None) -> _N | None:
    if a is None or b is None:
        return a if b is None else b
    return min(a, b)


class LimitCode(StrEnum):
    """Which limit a run met; the code of its error."""

    MAX_STEPS = "max_steps"
    MAX_LLM_CALLS = "max_llm_calls"
    MAX_TOOL_CALLS = "max_tool_calls"
    BUDGET_EXCEEDED = "budget_exceeded"
    WALL_TIME = "wall_time"


@dataclass(frozen=True, slots=True)
class Breach:
    """A limit that stands in the way of the next action."""

    code: LimitCode
    message: str


def breach_before_model_call(
    limits: RunLimits,
    *,
    step: int,
    usage: Usage,
    own_llm_calls: int,
    cost_usd: Decimal | None,
    reserve_tokens: int = 0,
) -> Breach | None:
    """The limit that calling the model in `step` (counted from 1) would break, or None.

    Args:
        usage: of the run and its child runs.
        own_llm_calls: without those of child runs, which have limits of their own.
        reserve_tokens: the most output tokens that the call may use, held back from the token budget beforehand.
    """
    if step > limits.max_steps:
        return Breach(LimitCode.MAX_STEPS, f"the run reached its limit of {limits.max_steps} steps (max_steps)")
    if own_llm_calls >= limits.max_llm_calls:
        return Breach(
            LimitCode.MAX_LLM_CALLS,
            f"the run reached its limit of {limits.max_llm_calls} model calls (max_llm_calls)",
        )
    tokens = limits.max_total_tokens
    if tokens is not None and usage.total_tokens + reserve_tokens >= tokens + (1 if reserve_tokens else 0):
        return Breach(
            LimitCode.BUDGET_EXCEEDED,
            f"the run has used {usage.total_tokens} of its {tokens} tokens (max_total_tokens) "
            "and cannot pay for another call",
        )
    dollars = limits.max_total_cost_usd
    if dollars is not None and cost_usd is not None and cost_usd >= Decimal(str(dollars)):
        return Breach(
            LimitCode.BUDGET_EXCEEDED, f"the run has spent ${cost_usd} of its ${dollars} (max_total_cost_usd)"
        )
    return None


def breach_before_tool_calls(limits: RunLimits, *, made: int, asked: int) -> Breach | None:
    """The limit that `asked` more tool calls after `made` would break, or None."""
    if made + asked <= limits.max_tool_calls:
        return None
    return Breach(
        LimitCode.MAX_TOOL_CALLS,
        f"{asked} more tool calls after {made} would go over the limit of {limits.max_tool_calls} (max_tool_calls); "
        "none of them was executed",
    )
