"""What an attempt that takes over makes of what the last one left."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import orjson
import pytest

from app.engine.agent import ToolFailurePolicy
from app.engine.apply import ModelFailed, ModelResponded, ToolsFinished, apply, begun
from app.engine.decide import decide
from app.engine.errors import ModelError, ModelErrorCode, RunError
from app.engine.events import Event, EventType, StoredEvent, WarningCode, encode
from app.engine.messages import ToolCall
from app.engine.recover import partial_text, unknown_outcome_warnings, unknown_outcomes
from app.engine.state import OpenCall, Phase, RunState, checkpoint_of, finished, restore
from app.engine.status import RunStatus
from app.engine.tools import ToolEffect
from tests.unit.engine.simulation import RUN, TOOLS, a_response, a_result, an_agent


def a_call(index: int, effect: ToolEffect, *, started: bool = True, ended: bool = False) -> OpenCall:
    call = ToolCall(f"call-{index}", "tool", "{}")
    return OpenCall(index, call, effect, started, a_result() if ended else None)


LEFT = RunState(
    phase=Phase.EXECUTE_TOOLS,
    calls=(
        a_call(0, ToolEffect.READ_ONLY),
        a_call(1, ToolEffect.IDEMPOTENT),
        a_call(2, ToolEffect.UNSAFE),
        a_call(3, ToolEffect.UNSAFE, ended=True),
        a_call(4, ToolEffect.UNSAFE, started=False),
    ),
)


def test_only_a_started_unsafe_call_without_a_result_is_of_unknown_outcome() -> None:
    ((index, result),) = unknown_outcomes(LEFT)
    assert (index, result.success, result.output) == (2, False, None)
    assert result.error == result.content
    assert "unknown" in result.content


def test_each_unknown_outcome_is_warned_of() -> None:
    (warning,) = unknown_outcome_warnings(LEFT, {2})
    assert warning.data == {"code": "tool_outcome_unknown", "tool_name": "tool", "tool_call_id": "call-2"}


def test_the_other_calls_are_run_and_the_unknown_one_is_not() -> None:
    known = apply(LEFT, ToolsFinished(unknown_outcomes(LEFT)), an_agent(), RUN, TOOLS, set())
    action = decide(known.state, an_agent())
    assert [call.index for call in getattr(action, "calls", ())] == [0, 1, 4]


# --- partial text -------------------------------------------------------------------------------------------


def log(*events: Event) -> list[StoredEvent]:
    return [
        StoredEvent(seq, event.type, datetime(2026, 1, 1, tzinfo=UTC), encode(event, RUN))
        for seq, event in enumerate(events, 1)
    ]


def delta(text: str) -> Event:
    return Event(EventType.TEXT_DELTA, 1, {"delta": text})


RESTARTED = Event(EventType.WARNING, 1, {"code": WarningCode.STEP_RESTARTED, "from_seq": 1})
ESTIMATED = Event(EventType.WARNING, 1, {"code": WarningCode.USAGE_ESTIMATED})
RESUMED = Event(EventType.RUN_RESUMED, 1, {"reason": "crash", "attempt": 2, "from_seq": 1})


@pytest.mark.parametrize(
    ("events", "text"),
    [
        ([], ""),
        ([delta("a"), delta("ü\u2028"), delta("c")], "aü\u2028c"),
        ([delta("a"), Event(EventType.REASONING_DELTA, 1, {"delta": "hm"}), delta("b")], "ab"),
        ([delta("a"), RESTARTED, delta("b")], "b"),
        ([delta("a"), ESTIMATED, delta("b")], "ab"),
        ([delta("a"), RESUMED, delta("b")], "b"),
        ([delta("a"), RESUMED], ""),
    ],
)
def test_partial_text_is_what_readers_saw_of_the_open_step_and_is_not_void(events: list[Event], text: str) -> None:
    assert partial_text(log(*events)) == text


# --- checkpoints --------------------------------------------------------------------------------------------


def through_json(state: RunState, calls: tuple[OpenCall, ...] = (), best_text: str = "") -> RunState:
    kept = checkpoint_of(state)
    kept = replace(kept, state=orjson.loads(orjson.dumps(kept.state)))
    return restore(kept, calls, best_text)


def test_calls_started_after_the_checkpoint_are_counted_when_the_run_goes_on() -> None:
    calls = tuple(ToolCall(f"c{i}", "read", "{}") for i in range(3))
    asked = apply(RunState(tool_calls=4), ModelResponded(a_response("", *calls), 1.0), an_agent(), RUN, TOOLS, set())
    running = begun(asked.state, decide(asked.state, an_agent()))
    assert running.tool_calls == 7
    assert through_json(asked.state, running.calls) == running
    assert through_json(running, running.calls) == running


def test_a_run_whose_model_call_failed_goes_on_with_that_call() -> None:
    error = ModelError(ModelErrorCode.TIMEOUT, "too slow")
    failed = apply(RunState(step=2), ModelFailed(error), an_agent(), RUN, TOOLS, set()).state
    assert failed.phase is Phase.FINISH
    assert through_json(failed) == RunState(step=2)


def test_a_run_that_failed_by_a_tool_goes_on_behind_the_batch_without_that_failure() -> None:
    agent = an_agent(tool_failure=ToolFailurePolicy.FAIL)
    asked = apply(
        RunState(), ModelResponded(a_response("", ToolCall("a", "read", "{}")), 1.0), agent, RUN, TOOLS, set()
    )
    running = begun(asked.state, decide(asked.state, agent))
    failed = apply(running, ToolsFinished(((0, a_result(False, "no")),)), agent, RUN, TOOLS, set()).state
    restored = through_json(failed)
    assert (restored.step, restored.phase, restored.tolerated) == (2, Phase.CALL_MODEL, None)


def test_a_failure_that_was_tolerated_still_degrades_a_run_that_failed_otherwise_and_goes_on() -> None:
    tolerated = RunError("tool_failed", "the tool failed")
    state = RunState(step=3, tolerated=tolerated)
    failed = finished(state, RunStatus.FAILED, "no more", RunError("max_steps", "no more"))
    assert through_json(failed) == state
