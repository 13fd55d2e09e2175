"""What holds of every run, whatever the model answers, the tools return and the machines do."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from decimal import Decimal

import orjson
from hypothesis import given, settings
from hypothesis import strategies as st

from app.engine.agent import ResolvedAgent
from app.engine.apply import closing_event
from app.engine.events import TERMINAL_TYPES, EventType, encode
from app.engine.limits import LimitCode
from app.engine.messages import Role
from app.engine.state import Phase, RunState, checkpoint_of, restore
from app.engine.status import RunStatus
from app.engine.tools import ToolEffect
from app.engine.usage import Usage, add_cost
from tests.unit.engine.simulation import AGENTS, RUN, Trace, simulate

runs = settings(max_examples=150)


def of_type(trace: Trace, kind: EventType) -> list[dict[str, object]]:
    return [dict(event.data) for event in trace.events if event.type is kind]


@runs
@given(AGENTS, st.data())
def test_a_run_ends_with_one_terminal_event_that_agrees_with_its_outcome(
    agent: ResolvedAgent, data: st.DataObject
) -> None:
    trace = simulate(agent, data)
    outcome = trace.outcome
    assert outcome.status.terminal
    assert [event.type in TERMINAL_TYPES for event in trace.events] == [False] * (len(trace.events) - 1) + [True]
    last = replace(trace.state, step=trace.events[-2].step if len(trace.events) > 1 else 1)
    assert trace.events[-1] == closing_event(last, outcome.status, outcome.final_text, outcome.error)
    assert trace.events[-1].state is outcome.status
    assert (outcome.error is None) is (outcome.status is RunStatus.COMPLETED)


@runs
@given(AGENTS, st.data())
def test_a_run_never_goes_over_its_limits(agent: ResolvedAgent, data: st.DataObject) -> None:
    trace = simulate(agent, data)
    limits = agent.limits
    steps = {event["step"] for event in of_type(trace, EventType.STEP_STARTED)}
    assert steps == set(range(1, len(steps) + 1))
    assert len(steps) <= limits.max_steps
    assert trace.state.usage.llm_calls <= limits.max_llm_calls
    started = of_type(trace, EventType.TOOL_STARTED)
    assert len(started) == trace.state.tool_calls <= limits.max_tool_calls


@runs
@given(AGENTS, st.data())
def test_a_call_is_made_only_while_the_budget_is_not_spent(agent: ResolvedAgent, data: st.DataObject) -> None:
    trace = simulate(agent, data)
    usage, cost = Usage(), Decimal(0)
    reserve = agent.settings.get("max_tokens", 0)
    for response in trace.responses:
        tokens, dollars = agent.limits.max_total_tokens, agent.limits.max_total_cost_usd
        assert tokens is None or usage.total_tokens + max(reserve, 1) <= tokens
        assert dollars is None or cost is None or cost < Decimal(str(dollars))
        usage, cost = usage + response.usage, add_cost(cost, response.cost_usd)


@runs
@given(AGENTS, st.data())
def test_a_batch_over_the_limit_executes_none_of_its_calls(agent: ResolvedAgent, data: st.DataObject) -> None:
    trace = simulate(agent, data)
    error = trace.outcome.error
    if error is None or error.code != LimitCode.MAX_TOOL_CALLS:
        return
    last = trace.messages[-1]
    assert last.tool_calls
    touched = {event["tool_call_id"] for event in of_type(trace, EventType.TOOL_STARTED)}
    assert touched.isdisjoint(call.id for call in last.tool_calls)


@runs
@given(AGENTS, st.data())
def test_usage_and_cost_are_the_exact_sums_of_the_answers(agent: ResolvedAgent, data: st.DataObject) -> None:
    trace = simulate(agent, data)
    usage = sum((response.usage for response in trace.responses), Usage())
    costs = [response.cost_usd for response in trace.responses]
    known = [cost for cost in costs if cost is not None]
    assert trace.state.usage == usage
    assert trace.state.cost_usd == (None if None in costs else sum(known, Decimal(0)))


@runs
@given(AGENTS, st.data())
def test_every_call_gets_exactly_one_result_message_in_the_order_of_the_calls(
    agent: ResolvedAgent, data: st.DataObject
) -> None:
    trace = simulate(agent, data)
    messages = trace.messages[1:]
    if messages and messages[-1].tool_calls:  # the run ended before this batch began
        messages.pop()
    while messages:
        message = messages.pop(0)
        assert message.role is Role.ASSISTANT
        answers, messages = messages[: len(message.tool_calls)], messages[len(message.tool_calls) :]
        assert [answer.tool_call_id for answer in answers] == [call.id for call in message.tool_calls]
        assert all(answer.role is Role.TOOL for answer in answers)


@runs
@given(AGENTS, st.data())
def test_call_ids_are_unique_within_a_run(agent: ResolvedAgent, data: st.DataObject) -> None:
    trace = simulate(agent, data)
    assert len(set(trace.call_ids)) == len(trace.call_ids)
    assert all(trace.call_ids)


@runs
@given(AGENTS, st.data())
def test_every_call_is_asked_for_started_and_ended_at_most_once_and_in_that_order(
    agent: ResolvedAgent, data: st.DataObject
) -> None:
    trace = simulate(agent, data)
    completed = Counter(event["tool_call_id"] for event in of_type(trace, EventType.TOOL_COMPLETED))
    started = Counter(event["tool_call_id"] for event in of_type(trace, EventType.TOOL_STARTED))
    answered = [message.tool_call_id for message in trace.messages if message.role is Role.TOOL]
    assert set(completed.values()) | set(started.values()) <= {1}
    assert set(answered) <= set(completed) <= set(started) <= set(trace.call_ids)
    for identifier in trace.call_ids:
        history = [one.call for one in trace.records if one.call.call.id == identifier]
        assert [(one.started, one.result is not None) for one in history] in (
            [(False, False)],
            [(False, False), (True, False)],
            [(False, False), (True, False), (True, True)],
        )


@runs
@given(AGENTS, st.data())
def test_every_state_is_restored_from_its_checkpoint_and_its_calls(agent: ResolvedAgent, data: st.DataObject) -> None:
    trace = simulate(agent, data, crashes=False)
    for state in trace.states:
        if state.phase is not Phase.FINISH:
            assert restore(checkpoint_of(state), state.calls, state.best_text) == state


@runs
@given(AGENTS, st.data())
def test_an_attempt_that_takes_over_finds_the_state_that_the_last_one_had(
    agent: ResolvedAgent, data: st.DataObject
) -> None:
    """A batch that fails the run is judged when it closes, so a failure in it is found again."""
    trace = simulate(agent, data, crashes=False)
    before: RunState = trace.states[-2] if len(trace.states) > 1 else RunState()
    if trace.checkpoint.step == before.step and trace.checkpoint.phase is before.phase:
        restored = trace.restored()
        assert restored.tool_calls == before.tool_calls
        assert (restored.usage, restored.cost_usd, restored.best_text) == (
            before.usage,
            before.cost_usd,
            trace.best_text(),
        )


@runs
@given(AGENTS, st.data())
def test_an_unsafe_call_is_not_started_again_after_a_crash(agent: ResolvedAgent, data: st.DataObject) -> None:
    trace = simulate(agent, data)
    unsafe = {one.call.call.id for one in trace.records if one.call.effect is ToolEffect.UNSAFE}
    started = Counter(event["tool_call_id"] for event in of_type(trace, EventType.TOOL_STARTED))
    assert all(started[identifier] <= 1 for identifier in unsafe)


@runs
@given(AGENTS, st.data())
def test_every_event_is_one_line_of_valid_json(agent: ResolvedAgent, data: st.DataObject) -> None:
    for event in simulate(agent, data).events:
        body = encode(event, RUN)
        assert len(body.splitlines()) == 1
        assert not set(body) & set("\u0085\u2028\u2029\n\r")
        assert orjson.loads(body)["type"] == event.type
