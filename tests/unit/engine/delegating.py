"""Runs that delegate, and the ends of their child runs."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import Any

from app.engine.agent import InteractionMode, PolicySettings
from app.engine.deed import PolicySubject
from app.engine.errors import RunError
from app.engine.limits import RunLimits
from app.engine.moves import ChildEnd
from app.engine.policy import PolicyAction
from app.engine.status import RunStatus
from app.engine.usage import Usage
from tests.unit.engine.builders import a_delegation, a_rule, a_scope, an_agent
from tests.unit.engine.driven_run import DrivenRun

WON, LOST = RunStatus.COMPLETED, RunStatus.FAILED


def a_run(limits: RunLimits | None = None, *, scope: dict[str, Any] | None = None, **settings: Any) -> DrivenRun:
    agent = an_agent(limits, **{"subagents": ["scout"], **settings})
    return DrivenRun(a_scope(agent, **(scope or {})))


def delegated(count: int, limits: RunLimits | None = None, **settings: Any) -> DrivenRun:
    """A run whose model has just delegated so often in one step."""
    run = a_run(limits or RunLimits(max_subagent_fanout=10), **settings)
    run.ask(*(a_delegation("scout", f"d{i}") for i in range(count)))
    return run


def child_id(run: DrivenRun, index: int) -> str:
    child = run.call(index).child_run_id
    assert child is not None
    return child


def end_of(run: DrivenRun, index: int, status: RunStatus = WON, **fields: Any) -> ChildEnd:
    error = RunError("code", f"broke {index}") if status is LOST else None
    end = ChildEnd(index, child_id(run, index), status, f"text {index}", error, Usage(), Decimal(0), 5.0)
    return replace(end, **fields)


def ask_about_some(limits: RunLimits | None = None, **settings: Any) -> DrivenRun:
    """One delegation has begun; about another a person is asked."""
    rule = a_rule(PolicyAction.REQUEST_APPROVAL, "*critic", PolicySubject.SUBAGENT_CALL)
    run = a_run(
        limits,
        subagents=["scout", "critic"],
        policy=PolicySettings(rules=[rule]),
        interaction_mode=InteractionMode.EXTERNAL,
        **settings,
    )
    run.ask(a_delegation("scout"), a_delegation("critic"))
    return run
