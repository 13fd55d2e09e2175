"""What a run does next, by where it stands."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import pytest

from app.engine.actions import Await, CallModel, ExecuteTools, Finish
from app.engine.agent import OnLimit
from app.engine.decide import decide
from app.engine.effects import ToolEffect
from app.engine.errors import RunError
from app.engine.limits import LimitCode, RunLimits
from app.engine.messages import ToolCall
from app.engine.model_settings import ModelSettings
from app.engine.state import Gate, Hold, HoldKind, OpenCall, Outcome, Phase, RunState, finished
from app.engine.status import RunStatus
from app.engine.usage import Usage
from tests.unit.engine.builders import a_result, an_agent


def a_call(index: int, *, started: bool = False, ended: bool = False) -> OpenCall:
    result = a_result() if ended else None
    return OpenCall(index, ToolCall(f"call-{index}", "read", "{}"), ToolEffect.READ_ONLY, started, result)


def batch(*calls: OpenCall, tool_calls: int = 0) -> RunState:
    return RunState(phase=Phase.EXECUTE_TOOLS, calls=calls, tool_calls=tool_calls)


def a_held_call(index: int, kind: HoldKind, *, started: bool = False) -> OpenCall:
    return replace(a_call(index, started=started), hold=Hold(kind, f"hold-{index}"))


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
    action = decide(state, an_agent(LIMITS, model_settings=ModelSettings(max_tokens=max_tokens)))
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


def test_calls_that_nothing_holds_are_run_and_child_runs_and_the_caller_s_calls_begin_beside_them() -> None:
    state = batch(
        a_held_call(0, HoldKind.INTERACTION),
        a_call(1),
        a_held_call(2, HoldKind.CHILD_RUN),
        a_held_call(3, HoldKind.TOOL_RESULT),
        a_held_call(4, HoldKind.CHILD_RUN, started=True),
        a_call(5, started=True, ended=True),
    )
    assert decide(state, an_agent()) == ExecuteTools(1, state.calls[1:4])


def test_a_run_all_of_whose_open_calls_are_held_waits() -> None:
    state = batch(
        a_call(0, started=True, ended=True),
        a_held_call(1, HoldKind.INTERACTION),
        a_held_call(2, HoldKind.CHILD_RUN),
        a_held_call(3, HoldKind.TOOL_RESULT, started=True),
    )
    assert decide(state, an_agent()) == Await(1, state.calls[1:])


def test_a_run_whose_model_call_is_held_waits_and_one_whose_gate_is_open_does_not() -> None:
    held = RunState(step=2, gate=Gate(2, Hold(HoldKind.INTERACTION, "question")))
    assert decide(held, an_agent()) == Await(2, ())
    assert decide(replace(held, gate=Gate(2)), an_agent()) == CallModel(2)


def test_model_calls_of_child_runs_do_not_count_against_the_run_s_own_limit() -> None:
    state = RunState(usage=Usage(llm_calls=7), child_llm_calls=4)
    assert decide(state, an_agent(LIMITS)) == CallModel(1)
    action = decide(replace(state, child_llm_calls=3), an_agent(LIMITS))
    assert isinstance(action, Finish)
    assert action.outcome.error is not None
    assert action.outcome.error.code == LimitCode.MAX_LLM_CALLS


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
