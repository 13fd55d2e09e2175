"""What an attempt that takes over makes of what the last one left."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import orjson
import pytest

from app.engine.agent import ToolFailurePolicy
from app.engine.apply import apply, begun
from app.engine.decide import decide
from app.engine.errors import ModelError, ModelErrorCode, RunError
from app.engine.events import Event, EventType, StoredEvent, WarningCode, encode
from app.engine.messages import ToolCall
from app.engine.moves import Ended
from app.engine.outcomes import CallsMoved, ModelFailed, ModelResponded
from app.engine.recover import partial_text
from app.engine.state import OpenCall, Phase, RunState, checkpoint_of, finished, restore
from app.engine.status import RunStatus
from tests.unit.engine.builders import RUN, a_call, a_response, a_result, a_scope, an_agent

# --- partial text -------------------------------------------------------------------------------------------


def log(*events: Event) -> list[StoredEvent]:
    return [
        StoredEvent(seq, event.type, datetime(2026, 1, 1, tzinfo=UTC), encode(event, RUN))
        for seq, event in enumerate(events, 1)
    ]


def delta(text: str) -> Event:
    return Event(EventType.TEXT_DELTA, 1, {"delta": text})


RESTARTED = Event(EventType.WARNING, 1, {"code": WarningCode.STEP_RESTARTED, "from_seq": 0})
ESTIMATED = Event(EventType.WARNING, 1, {"code": WarningCode.USAGE_ESTIMATED})
RESUMED = Event(EventType.RUN_RESUMED, 1, {"reason": "crash", "attempt": 2, "from_seq": 0})
GOES_ON = Event(EventType.RUN_RESUMED, 1, {"reason": "interrupt", "attempt": 2, "from_seq": 2})


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
        # An attempt that goes on behind the model's answer takes nothing back of it.
        ([delta("a"), delta("b"), GOES_ON], "ab"),
        ([delta("a"), delta("b"), delta("c"), GOES_ON, delta("d")], "abd"),
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
    asked = apply(RunState(tool_calls=4), ModelResponded(a_response("", *calls), 1.0), a_scope())
    running = begun(asked.state, decide(asked.state, an_agent()))
    assert running.tool_calls == 7
    assert through_json(asked.state, running.calls) == running
    assert through_json(running, running.calls) == running


def test_a_run_whose_model_call_failed_goes_on_with_that_call() -> None:
    error = ModelError(ModelErrorCode.TIMEOUT, "too slow")
    failed = apply(RunState(step=2), ModelFailed(error), a_scope()).state
    assert failed.phase is Phase.FINISH
    assert through_json(failed) == RunState(step=2)


def test_a_run_that_failed_by_a_tool_goes_on_behind_the_batch_without_that_failure() -> None:
    agent = an_agent(tool_failure_policy=ToolFailurePolicy.FAIL)
    asked = apply(RunState(), ModelResponded(a_response("", a_call("read")), 1.0), a_scope(agent))
    running = begun(asked.state, decide(asked.state, agent))
    failed = apply(running, CallsMoved((Ended(0, a_result(False, "no")),)), a_scope(agent)).state
    restored = through_json(failed)
    assert (restored.step, restored.phase, restored.tolerated) == (2, Phase.CALL_MODEL, None)


def test_a_failure_that_was_tolerated_still_degrades_a_run_that_failed_otherwise_and_goes_on() -> None:
    tolerated = RunError("tool_failed", "the tool failed")
    state = RunState(step=3, tolerated=tolerated)
    failed = finished(state, RunStatus.FAILED, "no more", RunError("max_steps", "no more"))
    assert through_json(failed) == state
