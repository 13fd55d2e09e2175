"""From what was loaded to a state to go on from, and whether going on makes sense."""

from __future__ import annotations

from app.engine.actions import Finish
from app.engine.agent import AgentOverrides, ResolvedAgent, resolve
from app.engine.decide import decide
from app.engine.limits import Limits, RunLimits
from app.engine.messages import Role, ThreadMessage
from app.engine.ownership import Loaded
from app.engine.state import RunState, restore
from app.engine.status import RunStatus
from app.engine.store_errors import DamagedCheckpoint, RunConflict


def state_of(loaded: Loaded) -> RunState:
    """The state of a run as its rows tell it; a new run's if it never started.

    Raises:
        DamagedCheckpoint: the checkpoint lacks what every checkpoint has.
    """
    if loaded.checkpoint is None:
        return RunState()
    run_id = loaded.run.run_id
    try:
        asked = _last_asked(loaded.messages, run_id)
        # Where no call is to be seen a summary stands for the response: the records alone tell of its calls.
        calls = tuple(call for call in loaded.calls if not asked or call.call.id in asked)
        return restore(loaded.checkpoint, calls, best_text(loaded.messages, run_id))
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        raise DamagedCheckpoint(run_id) from error


def _last_asked(messages: tuple[ThreadMessage, ...], run_id: str) -> set[str]:
    """The ids of the calls that the model asked for last; a step that was asked anew leaves records of older ones."""
    for entry in reversed(messages):
        if entry.run_id == run_id and entry.message.tool_calls:
            return {call.id for call in entry.message.tool_calls}
    return set()


def best_text(messages: tuple[ThreadMessage, ...], run_id: str) -> str:
    """The last text that the model gave in this run, or ""."""
    for entry in reversed(messages):
        if entry.run_id == run_id and entry.message.role is Role.ASSISTANT and entry.message.text():
            return entry.message.text()
    return ""


def refuse_new_limits(status: RunStatus, overrides: AgentOverrides, limits: Limits | None) -> None:
    """A run that is queued, runs or waits goes on with the limits that it began with.

    Raises:
        RunConflict: `limits` would change them.
    """
    if overrides.resumed_with(limits) != overrides:
        message = f"the run is {status}: `limits` can be stated once it is paused, failed or interrupted"
        raise RunConflict(message, status)


def limit_on_resume(loaded: Loaded, limits: Limits | None, defaults: RunLimits) -> str | None:
    """Why a resume would end at once at a limit, or None if it would not."""
    overrides: AgentOverrides = loaded.run.overrides.resumed_with(limits)
    agent: ResolvedAgent = resolve(loaded.agent, overrides, defaults)
    action = decide(state_of(loaded), agent)
    if not isinstance(action, Finish) or action.outcome.error is None:
        return None
    return f"{action.outcome.error.message}; resume with higher `limits` to go on"
