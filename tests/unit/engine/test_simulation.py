"""What holds of every run, whatever the model answers, tools return, people decide and the machines do."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal

import orjson

from app.engine.agent import InteractionMode
from app.engine.apply import closing_event
from app.engine.effects import ToolEffect
from app.engine.events import TERMINAL_TYPES, EventType, encode
from app.engine.interactions import Decision, InteractionKind
from app.engine.limits import LimitCode
from app.engine.messages import Role
from app.engine.state import Hold, Phase, checkpoint_of, restore
from app.engine.status import RunStatus
from app.engine.usage import Usage, add_cost
from tests.unit.engine.builders import RUN
from tests.unit.engine.event_data import documented_keys
from tests.unit.engine.simulation import Trace, simulated_runs


def of_every_run(promise: Callable[[Trace], None]) -> Callable[[], None]:
    """A test that holds a promise against every simulated run."""

    def test() -> None:
        for trace in simulated_runs():
            try:
                promise(trace)
            except AssertionError as error:
                error.add_note(f"of the run of simulate({trace.seed})")
                raise

    return test


@of_every_run
def test_a_run_ends_with_one_terminal_event_that_agrees_with_its_outcome(trace: Trace) -> None:
    outcome = trace.outcome
    assert outcome.status.terminal
    assert [event.type in TERMINAL_TYPES for event in trace.events] == [False] * (len(trace.events) - 1) + [True]
    last = replace(trace.state, step=trace.events[-2].step if len(trace.events) > 1 else 1)
    assert trace.events[-1] == closing_event(last, outcome.status, outcome.final_text, outcome.error)
    assert trace.events[-1].state is outcome.status
    assert (outcome.error is None) is (outcome.status is RunStatus.COMPLETED)


@of_every_run
def test_a_run_never_goes_over_its_limits(trace: Trace) -> None:
    limits = trace.agent.limits
    steps = {event["step"] for event in trace.data(EventType.STEP_STARTED)}
    assert steps == set(range(1, len(steps) + 1))
    assert len(steps) <= limits.max_steps
    assert sum(charge.of_model for charge in trace.charges) <= limits.max_llm_calls
    begun = {event["tool_call_id"] for event in trace.data(EventType.TOOL_STARTED)}
    assert len(begun) == trace.state.tool_calls <= limits.max_tool_calls
    children = Counter(event.step for event in trace.events if event.type is EventType.SUBAGENT_STARTED)
    assert all(count <= limits.max_subagent_fanout for count in children.values())


@of_every_run
def test_a_call_is_made_only_while_the_budget_is_not_spent(trace: Trace) -> None:
    usage, cost = Usage(), Decimal(0)
    reserve = trace.agent.settings.get("max_tokens", 0)
    for charge in trace.charges:
        tokens, dollars = trace.agent.limits.max_total_tokens, trace.agent.limits.max_total_cost_usd
        if charge.of_model:
            assert tokens is None or usage.total_tokens + max(reserve, 1) <= tokens
            assert dollars is None or cost is None or cost < Decimal(str(dollars))
        usage, cost = usage + charge.usage, add_cost(cost, charge.cost_usd)


@of_every_run
def test_a_batch_over_the_limit_begins_none_of_its_calls_and_asks_nobody(trace: Trace) -> None:
    error = trace.outcome.error
    if error is None or error.code != LimitCode.MAX_TOOL_CALLS:
        return
    last = trace.messages[-1]
    assert last.tool_calls
    touched = {event.data.get("tool_call_id") for event in trace.events}
    assert touched.isdisjoint(call.id for call in last.tool_calls)


@of_every_run
def test_usage_and_cost_are_the_exact_sums_of_the_answers_and_the_child_runs(trace: Trace) -> None:
    costs = [charge.cost_usd for charge in trace.charges]
    known = [cost for cost in costs if cost is not None]
    assert trace.state.usage == sum((charge.usage for charge in trace.charges), Usage())
    assert trace.state.cost_usd == (None if None in costs else sum(known, Decimal(0)))
    assert trace.state.child_llm_calls == sum(end.usage.llm_calls for end in trace.children)


@of_every_run
def test_every_call_gets_exactly_one_result_message_in_the_order_of_the_calls(trace: Trace) -> None:
    messages = trace.messages[1:]
    if messages and messages[-1].tool_calls:  # the run ended before this batch began
        messages.pop()
    while messages:
        message = messages.pop(0)
        if message.role is Role.USER:  # what a person had to say before a model call
            continue
        assert message.role is Role.ASSISTANT
        answers, messages = messages[: len(message.tool_calls)], messages[len(message.tool_calls) :]
        assert [answer.tool_call_id for answer in answers] == [call.id for call in message.tool_calls]
        assert all(answer.role is Role.TOOL for answer in answers)


@of_every_run
def test_call_ids_are_unique_within_a_run(trace: Trace) -> None:
    assert len(set(trace.call_ids)) == len(trace.call_ids)
    assert all(trace.call_ids)


@of_every_run
def test_every_call_ends_once_and_is_begun_once_unless_a_person_lets_a_lost_one_begin_anew(trace: Trace) -> None:
    completed = Counter(event["tool_call_id"] for event in trace.data(EventType.TOOL_COMPLETED))
    started = Counter(event["tool_call_id"] for event in trace.data(EventType.TOOL_STARTED))
    answered = [message.tool_call_id for message in trace.messages if message.role is Role.TOOL]
    anew = _approved_anew(trace)
    assert set(completed.values()) <= {1}
    assert set(answered) <= set(completed) <= set(trace.call_ids)
    assert set(started) <= set(trace.call_ids)
    assert {identifier: count - 1 for identifier, count in started.items() if count > 1} == anew
    for identifier in trace.call_ids:
        history = [one.call for one in trace.records if one.call.call.id == identifier]
        assert not history[0].started
        assert [call.result is not None for call in history] == [False] * (len(history) - 1) + [
            completed[identifier] == 1
        ]
        begun = [after.started for before, after in itertools.pairwise(history) if not before.started]
        assert sum(begun) == started[identifier]


def _approved_anew(trace: Trace) -> dict[str, int]:
    """How often a person has let each call begin anew whose outcome was lost."""
    lost = {
        asked.interaction_id: asked.tool_call_id
        for asked in trace.interactions
        if asked.kind is InteractionKind.TOOL_OUTCOME_UNKNOWN
    }
    started_by = [event.data["tool_call_id"] for event in trace.events if event.type is EventType.TOOL_STARTED]
    approved = Counter(
        lost[end.interaction_id]
        for end in trace.answered
        if end.interaction_id in lost
        and end.answer is not None
        and end.answer.decision is Decision.APPROVE
        and end.answer.value is None
    )
    # Edited arguments may have been refused, and a result may have been posted, before the call began anew.
    return {
        str(identifier): begun
        for identifier, count in approved.items()
        if (begun := min(count, started_by.count(identifier) - 1))
    }


@of_every_run
def test_no_child_run_begins_twice_and_only_those_under_way_are_stopped(trace: Trace) -> None:
    begun = [event["run_id"] for event in trace.data(EventType.SUBAGENT_STARTED)]
    ended = [event["run_id"] for event in trace.data(EventType.SUBAGENT_COMPLETED)]
    assert len(set(begun)) == len(begun)
    assert len(set(ended)) == len(ended)
    assert set(ended) <= set(begun)
    assert set(trace.stops) <= set(begun)
    assert ended == [end.run_id for end in trace.children]


@of_every_run
def test_nobody_is_asked_in_a_headless_run_and_every_question_has_something_waiting_for_it(
    trace: Trace,
) -> None:
    asked = [question.interaction_id for question in trace.interactions]
    assert asked == [event["interaction_id"] for event in trace.data(EventType.INTERACTION_REQUESTED)]
    assert len(set(asked)) == len(asked)
    if trace.agent.interaction_mode is InteractionMode.HEADLESS:
        assert not asked
    waited_for = {hold.id for state in trace.states for hold in state.holds()}
    # A question that was asked with the last write of a run has had no state to wait in.
    assert set(asked) <= waited_for


@of_every_run
def test_a_call_that_policy_has_not_let_pass_does_not_begin(trace: Trace) -> None:
    for one in trace.records:
        assert one.call.judged or not one.call.started
    denied = {one.call.call.id for one in trace.records if one.call.result is not None and one.call.result.denied}
    lost = {question.tool_call_id for question in trace.interactions if question.kind == "tool_outcome_unknown"}
    begun = {event["tool_call_id"] for event in trace.data(EventType.TOOL_STARTED)}
    assert denied & begun <= lost, "only new arguments of a lost call can be denied after it had begun"


@of_every_run
def test_every_state_is_restored_from_its_checkpoint_and_its_calls(trace: Trace) -> None:
    for state in trace.states:
        if state.phase is not Phase.FINISH:
            waits = bool(state.holds()) and all(call.hold is not None for call in state.open_calls())
            kept = checkpoint_of(state, waits=waits)
            kept = replace(kept, state=orjson.loads(orjson.dumps(kept.state)))
            assert restore(kept, state.calls, state.best_text) == state
        for hold in state.holds():
            assert Hold.from_dict(orjson.loads(orjson.dumps(hold.as_dict()))) == hold


@of_every_run
def test_an_attempt_that_takes_over_finds_the_state_that_the_last_one_had(trace: Trace) -> None:
    for state, found in zip(trace.states[:-1], trace.found[:-1], strict=True):
        assert found == state


@of_every_run
def test_an_unsafe_call_is_not_begun_again_after_a_crash_where_there_is_nobody_to_ask(trace: Trace) -> None:
    if trace.agent.interaction_mode is not InteractionMode.HEADLESS:
        return
    unsafe = {one.call.call.id for one in trace.records if one.call.effect is ToolEffect.UNSAFE}
    started = Counter(event["tool_call_id"] for event in trace.data(EventType.TOOL_STARTED))
    assert all(started[identifier] <= 1 for identifier in unsafe)


@of_every_run
def test_every_event_is_one_line_of_valid_json_with_exactly_the_documented_data(trace: Trace) -> None:
    for event in trace.events:
        body = encode(event, RUN)
        assert len(body.splitlines()) == 1
        assert not set(body) & set("\u0085\u2028\u2029\n\r")
        assert orjson.loads(body)["type"] == event.type
        assert set(event.data) == documented_keys(event)
