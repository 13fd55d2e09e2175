"""decide(state) -> Action: the whole of a run's judgement, and pure."""

from __future__ import annotations

from typing import assert_never

from app.engine.actions import Action, CallModel, ExecuteTools, Finish
from app.engine.agent import OnLimit, ResolvedAgent
from app.engine.errors import RunError
from app.engine.limits import Breach, breach_before_model_call, breach_before_tool_calls
from app.engine.state import Outcome, Phase, RunState
from app.engine.status import RunStatus


def decide(state: RunState, agent: ResolvedAgent) -> Action:
    """What the run does next. Recovery is no special path: it loads the state and asks again."""
    match state.phase:
        case Phase.CALL_MODEL:
            breach = breach_before_model_call(
                agent.limits,
                step=state.step,
                usage=state.usage,
                cost_usd=state.cost_usd,
                reserve_tokens=agent.settings.get("max_tokens") or 0,
            )
            return CallModel(state.step) if breach is None else Finish(_breached(state, agent, breach))
        case Phase.EXECUTE_TOOLS:
            waiting = state.open_calls()
            new = sum(1 for call in waiting if not call.started)
            if new == len(state.calls):  # a batch is judged as a whole, and only before any of it began
                breach = breach_before_tool_calls(agent.limits, made=state.tool_calls, asked=new)
                if breach is not None:
                    return Finish(_breached(state, agent, breach))
            return ExecuteTools(state.step, waiting)
        case Phase.FINISH:
            assert state.outcome is not None
            return Finish(state.outcome)
        case _:
            assert_never(state.phase)


def _breached(state: RunState, agent: ResolvedAgent, breach: Breach) -> Outcome:
    error = RunError(breach.code.value, breach.message)
    match agent.on_limit:
        case OnLimit.FAIL:
            return Outcome(RunStatus.FAILED, breach.message, error)
        case OnLimit.DEGRADE:
            return Outcome(RunStatus.DEGRADED, state.best_text, error)
        case _:
            assert_never(agent.on_limit)
