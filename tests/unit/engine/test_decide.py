"""What a run does next, by where it stands."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import pytest

from app.engine.actions import CallModel, ExecuteTools, Finish
from app.engine.agent import OnLimit
from app.engine.decide import decide
from app.engine.errors import RunError
from app.engine.limits import LimitCode, RunLimits
from app.engine.messages import ToolCall
from app.engine.state import OpenCall, Outcome, Phase, RunState, finished
from app.engine.status import RunStatus
from app.engine.tools import ToolEffect
from app.engine.usage import Usage
from tests.unit.engine.simulation import a_result, an_agent


def a_call(index: int, *, started: bool = False, ended: bool = False) -> OpenCall:
    result = a_result() if ended else None
    return OpenCall(index, ToolCall(f"call-{index}", "read", "{}"), ToolEffect.READ_ONLY, started, result)


def batch(*calls: OpenCall, tool_calls: int = 0) -> RunState:
    return RunState(phase=Phase.EXECUTE_TOOLS, calls=calls, tool_calls=tool_calls)


def test_a_new_run_calls_the_model() -> None:
    assert decide(RunState(), an_agent()) == CallModel(1)


LIMITS = RunLimits(max_steps=3, max_llm_calls=4, max_tool_calls=5, max_total_tokens=100, max_total_cost_usd=0.5)


@pytest.mark.parametrize(
    ("state", "max_tokens", "code"),
    [
        (RunState(step=3), None, None),
        (RunState(step=4), None, LimitCode.MAX_STEPS),
        (RunState(usage=Usage(llm_calls=3)), None, None),
        (RunState(usage=Usage(llm_calls=4)), None, LimitCode.MAX_LLM_CALLS),
        (RunState(usage=Usage(input_tokens=60, output_tokens=39)), None, None),
        (RunState(usage=Usage(input_tokens=60, output_tokens=40)), None, LimitCode.BUDGET_EXCEEDED),
        (RunState(usage=Usage(input_tokens=60)), 40, None),
        (RunState(usage=Usage(input_tokens=60)), 41, LimitCode.BUDGET_EXCEEDED),
        (RunState(cost_usd=Decimal("0.4999")), None, None),
        (RunState(cost_usd=Decimal("0.5")), None, LimitCode.BUDGET_EXCEEDED),
        (RunState(cost_usd=None), None, None),
    ],
)
def test_the_model_is_called_up_to_each_limit_and_not_beyond(
    state: RunState, max_tokens: int | None, code: LimitCode | None
) -> None:
    action = decide(state, an_agent(LIMITS, max_tokens=max_tokens))
    if code is None:
        assert action == CallModel(state.step)
        return
    assert isinstance(action, Finish)
    assert action.outcome.status is RunStatus.FAILED
    assert action.outcome.error is not None
    assert action.outcome.error.code == code
    assert action.outcome.final_text == action.outcome.error.message


def test_a_batch_is_executed_up_to_the_limit() -> None:
    state = batch(a_call(0), a_call(1), tool_calls=3)
    assert decide(state, an_agent(LIMITS)) == ExecuteTools(1, state.calls)


def test_a_batch_that_would_go_over_the_limit_is_not_executed_at_all() -> None:
    action = decide(batch(a_call(0), a_call(1), tool_calls=4), an_agent(LIMITS))
    assert isinstance(action, Finish)
    assert action.outcome.error is not None
    assert action.outcome.error.code == LimitCode.MAX_TOOL_CALLS


def test_a_batch_that_has_begun_goes_on_whatever_the_limit() -> None:
    state = batch(a_call(0, started=True, ended=True), a_call(1, started=True), tool_calls=9)
    assert decide(state, an_agent(LIMITS)) == ExecuteTools(1, (state.calls[1],))


def test_a_limit_degrades_where_the_agent_says_so_with_the_best_text_that_there_was() -> None:
    action = decide(RunState(step=4, best_text="so far"), an_agent(LIMITS, on_limit=OnLimit.DEGRADE))
    assert isinstance(action, Finish)
    assert (action.outcome.status, action.outcome.final_text) == (RunStatus.DEGRADED, "so far")
    assert action.outcome.error is not None
    assert action.outcome.error.code == LimitCode.MAX_STEPS


def test_a_finished_run_finishes_as_it_was_to() -> None:
    outcome = Outcome(RunStatus.FAILED, "no", RunError("code", "no"))
    state = finished(RunState(), outcome.status, outcome.final_text, outcome.error)
    assert decide(state, an_agent()) == Finish(outcome)
    assert decide(replace(state, step=99), an_agent(LIMITS)) == Finish(outcome)
