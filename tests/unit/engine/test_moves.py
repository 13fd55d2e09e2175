"""What others have stored, and what a run makes of it: nothing twice, and nothing that it did not wait for."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal

import orjson
import pytest

from app.engine.effects import ToolEffect
from app.engine.errors import RunError
from app.engine.interactions import Answer, Decision, InteractionKind, InteractionStatus
from app.engine.moves import ChildEnd, InteractionEnd, PostedResult, Stimuli, moves_of, waiting_for, waits_outside
from app.engine.state import Gate, Hold, HoldKind, OpenCall, Phase, RunState, checkpoint_of, finished, restore
from app.engine.status import RunStatus
from app.engine.usage import Usage
from tests.unit.engine.builders import a_call, a_result

ANSWER = Answer(Decision.APPROVE)
QUESTION = Hold(HoldKind.INTERACTION, "question", question=InteractionKind.APPROVAL)
CHILD = Hold(HoldKind.CHILD_RUN, "child", tokens=10, cost_usd=0.5)
RESULT = Hold(HoldKind.TOOL_RESULT, "c2", datetime(2026, 1, 31, 8, 0, 0, 5, UTC), "ticket-1")


def a_step(*calls: OpenCall) -> RunState:
    return RunState(step=2, phase=Phase.EXECUTE_TOOLS, calls=calls, tool_calls=sum(call.started for call in calls))


def an_open_call(index: int, hold: Hold | None = None, *, started: bool = False) -> OpenCall:
    call = a_call("send", f"c{index}")
    return OpenCall(index, call, ToolEffect.UNSAFE, started, judged=started, hold=hold)


def ended(call: OpenCall) -> OpenCall:
    return replace(call, hold=None, judged=True, result=a_result())


WAITING = a_step(an_open_call(0, QUESTION), an_open_call(1, CHILD, started=True), an_open_call(2, RESULT, started=True))


def an_answer(interaction: str = "question", index: int | None = 0) -> InteractionEnd:
    return InteractionEnd(interaction, index, InteractionStatus.RESOLVED, ANSWER)


def a_child_end(index: int = 1, run_id: str = "child") -> ChildEnd:
    return ChildEnd(index, run_id, RunStatus.COMPLETED, "found", None, Usage(), Decimal(0), 1.0)


# --- what is a move ---------------------------------------------------------------------------------------------------


def test_everything_that_a_run_waits_for_moves_it() -> None:
    posted = PostedResult(2, "1", None)
    stimuli = Stimuli(3, (an_answer(),), (posted,), (a_child_end(),))
    assert moves_of(WAITING, stimuli) == (posted, an_answer(), a_child_end())


@pytest.mark.parametrize(
    "stimuli",
    [
        Stimuli(1, interactions=(an_answer("an earlier question"),)),
        Stimuli(1, interactions=(an_answer("of another call", 1),)),
        Stimuli(1, interactions=(an_answer("of the model call", None),)),
        Stimuli(1, posted=(PostedResult(7, "1", None),)),
        Stimuli(1, children=(a_child_end(run_id="an earlier child"),)),
        Stimuli(1, children=(a_child_end(index=7),)),
        Stimuli(1, children=(a_child_end(index=2),)),
        Stimuli(9),
    ],
)
def test_what_a_run_does_not_wait_for_does_not_move_it(stimuli: Stimuli) -> None:
    assert moves_of(WAITING, stimuli) == ()


def test_what_was_acted_upon_is_not_acted_upon_again() -> None:
    over = replace(WAITING, calls=tuple(ended(call) for call in WAITING.calls))
    stimuli = Stimuli(3, (an_answer(),), (PostedResult(2, "1", None),), (a_child_end(),))
    assert moves_of(over, stimuli) == ()
    approved = a_step(an_open_call(0, started=True))
    assert moves_of(approved, Stimuli(1, (an_answer(),))) == ()


def test_a_posted_result_counts_before_an_answer_and_the_end_of_a_child_run() -> None:
    posted = (PostedResult(0, "1", None), PostedResult(1, None, "no"))
    end = a_child_end()
    assert moves_of(WAITING, Stimuli(4, (an_answer(),), posted)) == posted
    moves = moves_of(WAITING, Stimuli(4, (an_answer(),), posted, (end,)))
    assert moves == (posted[0], replace(end, posted=posted[1]))


@pytest.mark.parametrize("hold", [None, QUESTION, CHILD, RESULT])
@pytest.mark.parametrize("started", [False, True])
def test_a_result_may_be_posted_for_any_open_call(hold: Hold | None, started: bool) -> None:
    posted = PostedResult(0, "1", None)
    assert moves_of(a_step(an_open_call(0, hold, started=started)), Stimuli(1, posted=(posted,))) == (posted,)


def test_an_answer_about_the_model_call_moves_only_the_run_that_waits_for_it() -> None:
    stimuli = Stimuli(1, (an_answer(index=None),))
    held = RunState(gate=Gate(1, QUESTION))
    assert moves_of(held, stimuli) == (an_answer(index=None),)
    assert moves_of(replace(held, gate=Gate(1)), stimuli) == ()
    assert moves_of(RunState(), stimuli) == ()
    assert moves_of(replace(WAITING, gate=Gate(2, QUESTION), calls=WAITING.calls[1:]), stimuli) == ()


def test_a_run_that_is_over_is_not_moved() -> None:
    over = finished(WAITING, RunStatus.COMPLETED, "42")
    assert moves_of(over, Stimuli(3, (an_answer(),), (PostedResult(2, "1", None),), (a_child_end(),))) == ()


# --- what callers read ------------------------------------------------------------------------------------------------


def test_a_waiting_run_names_all_that_it_waits_for() -> None:
    assert waiting_for(WAITING) == (
        {"kind": "interaction", "id": "question"},
        {"kind": "child_run", "id": "child"},
        {"kind": "tool_result", "id": "c2"},
    )
    assert waiting_for(RunState(gate=Gate(1, QUESTION))) == ({"kind": "interaction", "id": "question"},)
    assert waiting_for(RunState(gate=Gate(1))) == ()
    assert waiting_for(replace(WAITING, calls=tuple(ended(call) for call in WAITING.calls))) == ()


@pytest.mark.parametrize(
    ("holds", "outside"),
    [([CHILD], False), ([CHILD, CHILD], False), ([CHILD, QUESTION], True), ([RESULT], True), ([QUESTION], True)],
)
def test_a_caller_is_told_of_a_wait_only_where_somebody_outside_has_to_act(holds: list[Hold], outside: bool) -> None:
    calls = tuple(an_open_call(index, hold) for index, hold in enumerate(holds))
    assert waits_outside(waiting_for(a_step(*calls))) is outside


# --- checkpoints ------------------------------------------------------------------------------------------------------

COUNTED = RunState(
    step=2,
    usage=Usage(5, 100, 50, 7, 8),
    cost_usd=Decimal("0.0000001"),
    tool_calls=9,
    best_text="so far",
    tolerated=RunError("tool_failed", "no", retryable=True),
    model="answer",
    provider="scripted",
    child_llm_calls=3,
)

KEPT = {
    "before a model call": (COUNTED, False),
    "of unknown cost": (replace(COUNTED, cost_usd=None), False),
    "its model call may be made": (replace(COUNTED, gate=Gate(2)), False),
    "its model call is held": (replace(COUNTED, gate=Gate(2, QUESTION)), True),
    "in a step": (replace(COUNTED, phase=Phase.EXECUTE_TOOLS, calls=(an_open_call(0), *WAITING.calls[1:])), False),
    "in a step that waits": (replace(COUNTED, phase=Phase.EXECUTE_TOOLS, calls=WAITING.calls), True),
    "in a step with ends": (
        replace(COUNTED, phase=Phase.EXECUTE_TOOLS, calls=(ended(an_open_call(0)), *WAITING.calls[1:])),
        True,
    ),
}


@pytest.mark.parametrize(("state", "waits"), KEPT.values(), ids=KEPT.keys())
def test_a_state_comes_back_from_its_checkpoint_and_its_calls(state: RunState, waits: bool) -> None:
    kept = checkpoint_of(state, waits=waits)
    assert (kept.phase is Phase.AWAIT) is waits
    through_json = replace(kept, state=orjson.loads(orjson.dumps(kept.state)))
    assert restore(through_json, state.calls, state.best_text) == state


def test_a_checkpoint_names_the_calls_that_are_pending() -> None:
    state = replace(WAITING, calls=(ended(WAITING.calls[0]), *WAITING.calls[1:]))
    assert checkpoint_of(state).state["pending_tool_calls"] == ["c1", "c2"]


@pytest.mark.parametrize("hold", [QUESTION, CHILD, RESULT])
def test_a_hold_comes_back_from_json(hold: Hold) -> None:
    assert Hold.from_dict(orjson.loads(orjson.dumps(hold.as_dict()))) == hold


def test_a_checkpoint_from_before_there_were_gates_and_child_runs_is_understood() -> None:
    kept = checkpoint_of(replace(COUNTED, child_llm_calls=0))
    older = {key: value for key, value in kept.state.items() if key not in ("gate", "child_llm_calls")}
    assert restore(replace(kept, state=older), (), "so far") == replace(COUNTED, child_llm_calls=0)
