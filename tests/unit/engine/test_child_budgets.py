"""What child runs may spend of their parent's budget, and what they add to its usage and cost."""

from __future__ import annotations

from decimal import Decimal

import pytest

from app.engine.actions import CallModel, ExecuteTools, Finish
from app.engine.interactions import Answer, Decision
from app.engine.limits import RunLimits
from app.engine.moves import Ended
from app.engine.state import RunState
from app.engine.usage import Usage
from tests.unit.engine.builders import a_call, a_delegation, a_result
from tests.unit.engine.delegating import LOST, a_run, ask_about_some, delegated, end_of
from tests.unit.engine.driven_run import DrivenRun

# --- what they may spend ----------------------------------------------------------------------------------------------


def budgets(run: DrivenRun) -> list[tuple[int | None, float | None]]:
    holds = [call.hold for call in run.state.open_calls()]
    return [(hold.tokens, hold.cost_usd) for hold in holds if hold is not None]


def test_without_a_budget_a_child_run_has_none() -> None:
    assert budgets(delegated(2)) == [(None, None)] * 2


@pytest.mark.parametrize(
    ("tokens", "spent", "count", "share"), [(100, 0, 1, 100), (100, 10, 3, 30), (100, 1, 2, 49), (100, 99, 4, 1)]
)
def test_what_is_left_of_the_budget_is_split_evenly(tokens: int, spent: int, count: int, share: int) -> None:
    run = a_run(RunLimits(max_total_tokens=tokens, max_total_cost_usd=1.0, max_subagent_fanout=9))
    run.state = RunState(usage=Usage(1, spent), cost_usd=Decimal("0.19"))
    run.ask(*(a_delegation("scout", f"d{i}") for i in range(count)))  # the answer costs $0.01
    assert budgets(run) == [(share, pytest.approx(0.8 / count))] * count


def test_a_child_run_may_always_spend_something() -> None:
    run = a_run(RunLimits(max_total_tokens=100, max_total_cost_usd=0.01))
    run.state = RunState(usage=Usage(1, 99, 50), cost_usd=Decimal(5))
    run.ask(a_delegation("scout"))
    ((tokens, dollars),) = budgets(run)
    assert tokens == 1
    assert dollars is not None
    assert dollars > 0


def test_a_share_is_kept_for_a_delegation_that_a_person_is_asked_about() -> None:
    run = ask_about_some(RunLimits(max_total_tokens=100, max_total_cost_usd=1.01))
    assert budgets(run)[0] == (50, pytest.approx(0.5))
    run.answer(Answer(Decision.APPROVE))
    assert budgets(run)[1] == (50, pytest.approx(0.5)), "what is promised to the one under way is not given twice"


def test_what_a_child_run_has_left_over_goes_to_those_that_begin_later() -> None:
    run = ask_about_some(RunLimits(max_total_tokens=100))
    run.move(end_of(run, 0, usage=Usage(1, 8, 2)))
    run.answer(Answer(Decision.APPROVE))
    assert budgets(run) == [(90, None)]


# --- what they cost ---------------------------------------------------------------------------------------------------


def test_a_run_s_usage_and_cost_are_its_own_and_those_of_its_child_runs() -> None:
    run = delegated(2)
    run.move(end_of(run, 0, usage=Usage(3, 10, 20, 5, 6), cost_usd=Decimal("0.02")))
    run.move(end_of(run, 1, LOST, usage=Usage(1, 1, 1), cost_usd=Decimal("0.04")))
    assert run.state.usage == Usage(5, 11, 21, 5, 6)
    assert (run.state.cost_usd, run.state.child_llm_calls) == (Decimal("0.07"), 4)
    assert run.restored() == run.state


def test_a_child_run_of_unknown_cost_makes_the_cost_unknown() -> None:
    run = delegated(2)
    run.move(end_of(run, 0, cost_usd=None))
    run.move(end_of(run, 1, cost_usd=Decimal("0.04")))
    assert run.state.cost_usd is None


def test_model_calls_of_child_runs_do_not_use_up_the_run_s_own() -> None:
    run = delegated(1, RunLimits(max_llm_calls=2))
    assert run.move(end_of(run, 0, usage=Usage(50))) == CallModel(2)
    assert isinstance(run.ask(a_call("read")), ExecuteTools)
    action = run.move(Ended(0, a_result()))
    assert isinstance(action, Finish)
    assert action.outcome.error is not None
    assert action.outcome.error.code == "max_llm_calls"


def test_tokens_of_child_runs_use_up_the_run_s_budget() -> None:
    run = delegated(1, RunLimits(max_total_tokens=100))
    action = run.move(end_of(run, 0, usage=Usage(1, 60, 40)))
    assert isinstance(action, Finish)
    assert action.outcome.error is not None
    assert action.outcome.error.code == "budget_exceeded"
