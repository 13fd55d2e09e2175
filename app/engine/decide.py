"""decide(state) -> Action: the whole of a run's judgement, and pure."""

from __future__ import annotations

from typing import assert_never

from app.engine.actions import Action, Await, CallModel, Compact, ExecuteTools, Finish
from app.engine.agent import OnLimit, ResolvedAgent
from app.engine.errors import RunError
from app.engine.limits import Breach, breach_before_model_call, breach_before_tool_calls
from app.engine.state import HoldKind, OpenCall, Outcome, Phase, RunState
from app.engine.status import RunStatus


def decide(state: RunState, agent: ResolvedAgent) -> Action:
    """What the run does next. Recovery is no special path: it loads the state and asks again."""
    match state.phase:
        case Phase.CALL_MODEL:
            breach = model_call_breach(state, agent)
            if breach is not None:
                return Finish(_breached(state, agent, breach))
            if state.holds():
                return Await(state.step, ())
            return Compact(state.step) if state.compacts else CallModel(state.step)
        case Phase.EXECUTE_TOOLS:
            breach = batch_breach(state, agent)
            if breach is not None:
                return Finish(_breached(state, agent, breach))
            waiting = state.open_calls()
            if all(call.hold is not None for call in waiting):
                return Await(state.step, waiting)
            return ExecuteTools(state.step, tuple(call for call in waiting if call.hold is None or _may_begin(call)))
        case Phase.AWAIT | Phase.FINISH:
            assert state.outcome is not None
            return Finish(state.outcome)
        case _:
            assert_never(state.phase)


def _may_begin(call: OpenCall) -> bool:
    """Whether a held call begins beside the others: its child run, or the wait for its result."""
    return not call.started and call.hold is not None and call.hold.kind is not HoldKind.INTERACTION


def model_call_breach(state: RunState, agent: ResolvedAgent) -> Breach | None:
    """The limit that the next model call would break, or None."""
    return breach_before_model_call(
        agent.limits,
        step=state.step,
        usage=state.usage,
        own_llm_calls=state.usage.llm_calls - state.child_llm_calls,
        cost_usd=state.cost_usd,
        reserve_tokens=agent.settings.get("max_tokens") or 0,
    )


def batch_breach(state: RunState, agent: ResolvedAgent) -> Breach | None:
    """The limit that the open step's calls would break, or None: judged as a whole, before anything of them began."""
    if any(call.judged or call.started or call.result or call.hold for call in state.calls):
        return None
    return breach_before_tool_calls(agent.limits, made=state.tool_calls, asked=len(state.calls))


def _breached(state: RunState, agent: ResolvedAgent, breach: Breach) -> Outcome:
    error = RunError(breach.code.value, breach.message)
    match agent.definition.on_limit:
        case OnLimit.FAIL:
            return Outcome(RunStatus.FAILED, breach.message, error)
        case OnLimit.DEGRADE:
            return Outcome(RunStatus.DEGRADED, state.best_text, error)
        case _:
            assert_never(agent.definition.on_limit)
