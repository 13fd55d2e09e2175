"""Answers that must fit a schema: corrected twice at most, and told apart from refusals and answers cut off."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from app.engine.actions import CallModel, Finish
from app.engine.agent import ResolvedAgent
from app.engine.apply import apply
from app.engine.decide import decide
from app.engine.limits import RunLimits
from app.engine.messages import Message, Role
from app.engine.model import FinishReason, ModelResponse
from app.engine.model_request import build_request
from app.engine.outcomes import ModelResponded
from app.engine.state import Phase, RunState, checkpoint_of, restore
from app.engine.status import RunStatus
from app.engine.structured_output import MAX_REPAIRS, Repair
from app.engine.transition import Transition
from app.tools.answer_schema import answers_of
from tests.unit.engine.builders import a_call, a_response, a_scope, an_agent

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"n": {"type": "integer"}},
    "required": ["n"],
    "additionalProperties": False,
}


def agent(**settings: Any) -> ResolvedAgent:
    return an_agent(response_schema=SCHEMA, **settings)


def answered(
    response: ModelResponse | str, state: RunState | None = None, of: ResolvedAgent | None = None
) -> Transition:
    response = a_response(response) if isinstance(response, str) else response
    scope = replace(a_scope(of or agent()), answers=answers_of(SCHEMA))
    return apply(state or RunState(), ModelResponded(response, 1.0), scope)


def codes(transition: Transition) -> list[str]:
    return [event.data["code"] for event in transition.events if event.type == "warning"]


def test_an_answer_that_fits_completes_the_run_with_its_value() -> None:
    done = answered('{"n": 3}')
    assert done.state.outcome is not None
    assert (done.state.outcome.status, done.state.outcome.structured) == (RunStatus.COMPLETED, {"n": 3})
    assert (done.state.outcome.final_text, codes(done)) == ('{"n": 3}', [])
    assert done.messages == (Message(Role.ASSISTANT, '{"n": 3}'),)


def test_an_answer_that_does_not_fit_is_shown_to_the_model_again() -> None:
    done = answered('{"n": "three"}')
    assert decide(done.state, agent()) == CallModel(2)
    assert codes(done) == ["structured_output_invalid"]
    assert done.messages == (), "the thread is not told of it"
    request = build_request(agent(), {}, [Message(Role.USER, "How many?")], (), repair=done.state.repair)
    question, wrong, told = request.messages
    assert (question.text(), wrong) == ("How many?", Message(Role.ASSISTANT, '{"n": "three"}'))
    assert told.role is Role.USER
    assert "n: should be integer" in told.text()
    assert request.response_schema == SCHEMA


def test_the_correction_survives_in_the_checkpoint() -> None:
    state = answered("nonsense").state
    again = restore(checkpoint_of(state), (), "")
    assert again.repair is not None
    assert again.repair == state.repair
    assert (again.step, again.phase) == (2, Phase.CALL_MODEL)


@pytest.mark.parametrize(
    ("policy", "status", "text"), [("fail", RunStatus.FAILED, None), ("degrade", RunStatus.DEGRADED, "still wrong")]
)
def test_after_two_corrections_it_is_over(policy: str, status: RunStatus, text: str | None) -> None:
    settings = agent(llm_failure_policy=policy)
    done = answered("wrong", of=settings)
    for _ in range(MAX_REPAIRS):
        assert decide(done.state, settings) == CallModel(done.state.step)
        done = answered("still wrong", done.state, settings)
    outcome = done.state.outcome
    assert outcome is not None
    assert outcome.error is not None
    assert (outcome.status, outcome.error.code) == (status, "invalid_structured_output")
    assert outcome.final_text == (text or outcome.error.message)
    assert outcome.structured is None


def test_corrections_are_counted_over_tool_calls_in_between() -> None:
    state = answered(a_response("", a_call("read")), answered("wrong").state).state
    assert state.repair == Repair(1)
    assert Repair(1).messages() == (), "the calls' results stand there now"
    repair = answered("wrong", state).state.repair
    assert repair is not None
    assert (repair.turn, repair.text) == (2, "wrong")


@pytest.mark.parametrize(
    ("reason", "code"),
    [
        (FinishReason.LENGTH, "truncated_response"),
        (FinishReason.CONTENT_FILTER, "content_filtered"),
        (FinishReason.REFUSAL, "model_refused"),
    ],
)
@pytest.mark.parametrize(("policy", "status"), [("fail", RunStatus.FAILED), ("degrade", RunStatus.DEGRADED)])
def test_what_cannot_be_corrected_is_told_apart_and_not_tried_again(
    reason: FinishReason, code: str, policy: str, status: RunStatus
) -> None:
    settings = agent(llm_failure_policy=policy)
    done = answered(a_response('{"n": ', finish_reason=reason), of=settings)
    action = decide(done.state, settings)
    assert isinstance(action, Finish)
    assert action.outcome.error is not None
    assert (action.outcome.status, action.outcome.error.code) == (status, code)
    assert codes(done) == [code]


def test_a_limit_is_met_by_corrections_too() -> None:
    settings = an_agent(RunLimits(max_steps=1), response_schema=SCHEMA)
    action = decide(answered("wrong", of=settings).state, settings)
    assert isinstance(action, Finish)
    assert action.outcome.error is not None
    assert action.outcome.error.code == "max_steps"


def test_a_refusal_without_a_schema_is_the_answer_and_is_said_to_be_one() -> None:
    done = apply(
        RunState(), ModelResponded(a_response("I will not.", finish_reason=FinishReason.REFUSAL), 1.0), a_scope()
    )
    assert done.state.outcome is not None
    assert (done.state.outcome.status, done.state.outcome.final_text) == (RunStatus.COMPLETED, "I will not.")
    assert codes(done) == ["model_refused"]
