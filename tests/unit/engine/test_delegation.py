"""Delegation: who may be asked, what a child run may spend, when a step's delegations are done, and what they cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from app.engine.actions import Await, CallModel, ExecuteTools, Finish
from app.engine.agent import (
    AgentDefinition,
    AgentVersion,
    InteractionMode,
    JoinPolicy,
    SubagentFailurePolicy,
)
from app.engine.delegation import child_runs, delegate_specs
from app.engine.effects import ToolEffect
from app.engine.errors import RunError
from app.engine.events import EventType, RunIdentity
from app.engine.interactions import Answer, Decision, InteractionStatus
from app.engine.limits import RunLimits
from app.engine.messages import Message, Role
from app.engine.moves import Ended, InteractionEnd, PostedResult
from app.engine.status import RunStatus
from app.engine.tools import ToolSource
from app.engine.usage import Usage
from tests.unit.api.records import a_run as a_record
from tests.unit.engine.builders import RUN, a_call, a_delegation, a_result, a_scope, an_agent
from tests.unit.engine.delegating import LOST, WON, a_run, ask_about_some, child_id, delegated, end_of
from tests.unit.engine.driven_run import DrivenRun

# --- who may be asked -------------------------------------------------------------------------------------------------


def test_the_model_sees_a_tool_for_each_subagent_that_is_there() -> None:
    agent = an_agent(subagents=["scout", "critic"])
    scope = a_scope(agent, gone=["critic"])
    described = AgentVersion("v", AgentDefinition(name="scout", model="a/b", description="finds things"))
    (spec,) = delegate_specs(replace(scope, team={"scout": described}))
    assert (spec.name, spec.description) == ("delegate_to_scout", "Delegate a task to the agent scout: finds things")
    assert (spec.effect, spec.source) == (ToolEffect.IDEMPOTENT, ToolSource.SUBAGENT)
    assert spec.parameters["required"] == ["task"]


def test_a_subagent_that_is_not_there_any_more_is_not_asked() -> None:
    run = a_run(scope={"gone": ["scout"]})
    run.ask(a_delegation("scout"))
    assert "not there any more" in (run.result().error or "")
    assert EventType.SUBAGENT_STARTED not in run.event_types()


@pytest.mark.parametrize(("depth", "begins"), [(0, True), (1, True), (2, False), (3, False)])
def test_delegation_goes_as_deep_as_the_limit_and_no_deeper(depth: int, begins: bool) -> None:
    run = a_run(RunLimits(max_subagent_depth=2), scope={"run": replace(RUN, agent_depth=depth)})
    action = run.ask(a_delegation("scout"))
    assert isinstance(action, Await) is begins
    if not begins:
        assert "max_subagent_depth" in (run.result().error or "")


def test_of_six_delegations_in_one_step_four_begin_and_the_model_is_told_of_the_others() -> None:
    run = delegated(6, RunLimits(max_subagent_fanout=4))
    assert [event["tool_call_id"] for event in run.data(EventType.SUBAGENT_STARTED)] == ["d0", "d1", "d2", "d3"]
    for index in (4, 5):
        assert "max_subagent_fanout" in (run.result(index).error or "")
        assert not run.call(index).started
    assert run.state.tool_calls == 4
    run.move(*(end_of(run, index) for index in range(4)))
    assert [message.tool_call_id for message in run.messages[2:]] == [f"d{i}" for i in range(6)]


def test_other_calls_do_not_count_as_delegations_and_every_step_has_its_own_fan_out() -> None:
    run = a_run(RunLimits(max_subagent_fanout=1))
    assert isinstance(run.ask(a_call("read"), a_delegation("scout")), ExecuteTools)
    run.move(Ended(0, a_result()), end_of(run, 1))
    assert isinstance(run.ask(a_delegation("scout", "again")), Await)


def test_a_delegation_begins_with_both_of_its_events() -> None:
    run = delegated(1)
    assert run.event_types()[1:] == ["tool_batch_started", "tool_started", "subagent_started", "run_waiting"]
    child = child_id(run, 0)
    assert run.data(EventType.SUBAGENT_STARTED) == [{"subagent_name": "scout", "run_id": child, "tool_call_id": "d0"}]
    assert run.data(EventType.RUN_WAITING) == [{"waiting_for": [{"kind": "child_run", "id": child}]}]


# --- the child run ----------------------------------------------------------------------------------------------------


def children_of(call_arguments: str = '{"task": "look"}', *, run: RunIdentity = RUN, **record: Any) -> Any:
    """The child runs of a run that has just judged one delegation."""
    agent = an_agent(
        RunLimits(max_total_tokens=1000, max_total_cost_usd=2.0, max_subagent_depth=4),
        subagents=["scout"],
        subagent_timeout_s=33.0,
        interaction_mode=InteractionMode.EXTERNAL,
    )
    scope = a_scope(agent, run=run, context={"user": "ann", "secret": "x"})
    scout = AgentDefinition(name="scout", model="scripted/answer", inherit_context_keys=["user", "absent"])
    scope = replace(scope, team={"scout": AgentVersion("scout-7", scout, 7)})
    driven = DrivenRun(scope)
    driven.ask(replace(a_delegation("scout"), arguments=call_arguments))
    unbegun = replace(driven.state, calls=tuple(replace(call, started=False) for call in driven.state.calls))
    parent = a_record(run_id="run-1", tenant_id="acme", user_id="ann", **record)
    assert child_runs(driven.state, scope, parent) == (), "what has begun does not begin again"
    (child,) = child_runs(unbegun, scope, parent)
    return child


def test_a_child_run_is_told_its_task_and_what_its_agent_inherits() -> None:
    child = children_of()
    assert child.input == (Message(Role.USER, "look"),)
    assert child.context == {"user": "ann"}
    assert (child.agent.version_id, child.tenant_id, child.user_id) == ("scout-7", "acme", "ann")
    assert child.thread_id == child.thread_key == child.run_id
    assert child.overrides.interaction_mode is InteractionMode.EXTERNAL
    limits = child.overrides.limits
    assert (limits.max_total_tokens, limits.max_total_cost_usd, limits.max_subagent_depth) == (1000, 1.99, 4)


@pytest.mark.parametrize(
    ("run", "record", "root", "depth", "path"),
    [
        (RUN, {}, "run-1", 1, "helper>scout"),
        (
            replace(RUN, agent_depth=2, agent_path="a>b>me"),
            {"root_run_id": "run-0"},
            "run-0",
            3,
            "a>b>me>scout",
        ),
    ],
)
def test_a_child_run_knows_where_it_comes_from(
    run: RunIdentity, record: dict[str, Any], root: str, depth: int, path: str
) -> None:
    lineage = children_of(run=run, **record).lineage
    assert (lineage.parent_run_id, lineage.root_run_id) == ("run-1", root)
    assert (lineage.depth, lineage.path, lineage.deadline_s) == (depth, path, 33.0)


# --- the end of a child run -------------------------------------------------------------------------------------------

# Whether a child run that ended so is a success, and what the model reads of it.
ENDS = {
    RunStatus.COMPLETED: (True, '"found"'),
    RunStatus.DEGRADED: (True, '{"state":"degraded","text":"found","error":"why"}'),
    RunStatus.FAILED: (False, None),
    RunStatus.CANCELLED: (False, None),
    RunStatus.INTERRUPTED: (False, None),
}


def test_every_end_of_a_run_is_known() -> None:
    assert set(ENDS) == {status for status in RunStatus if status.terminal}


@pytest.mark.parametrize("status", ENDS)
def test_the_model_reads_how_a_child_run_ended(status: RunStatus) -> None:
    success, output = ENDS[status]
    run = delegated(1)
    end = end_of(run, 0, status, final_text="found", error=None if status is WON else RunError("code", "why"))
    assert run.move(end) == CallModel(2)
    result = run.result()
    assert (result.success, result.output, result.latency_ms) == (success, output, 5.0)
    assert (result.error is None) is success
    if result.error is not None:
        assert status in result.error
        assert result.error.endswith(": why")
    assert run.data(EventType.SUBAGENT_COMPLETED) == [
        {
            "subagent_name": "scout",
            "run_id": end.run_id,
            "tool_call_id": "d0",
            "state": status,
            "success": success,
            "latency_ms": 5.0,
            "error": result.error,
        }
    ]
    assert len(run.data(EventType.TOOL_COMPLETED)) == 1


def test_a_child_run_that_ended_without_a_reason_is_told_by_its_status() -> None:
    run = delegated(1)
    run.move(end_of(run, 0, RunStatus.CANCELLED))
    assert (run.result().error or "").endswith("cancelled")


def test_a_result_that_was_posted_for_a_delegation_stops_its_child_run_and_counts_with_its_end() -> None:
    run = delegated(1)
    child = child_id(run, 0)
    posted = PostedResult(0, '"mine"', None)
    assert isinstance(run.move(posted), Await)
    assert run.stops == [child]
    end = replace(end_of(run, 0, RunStatus.CANCELLED), posted=posted)
    assert run.move(end) == CallModel(2)
    assert (run.result().output, run.state.usage.llm_calls) == ('"mine"', 1 + end.usage.llm_calls)


# --- when they are done -----------------------------------------------------------------------------------------------

JOINS = [
    # join policy, quorum, how the children end (in the order of the calls), whether the policy is satisfied
    (JoinPolicy.ALL_REQUIRED, None, [WON, WON], True),
    (JoinPolicy.ALL_REQUIRED, None, [WON, RunStatus.DEGRADED], True),
    (JoinPolicy.ALL_REQUIRED, None, [WON, LOST], False),
    (JoinPolicy.ALL_REQUIRED, None, [LOST, LOST], False),
    (JoinPolicy.ALLOW_OPTIONAL_FAILURES, None, [LOST, WON], True),
    (JoinPolicy.ALLOW_OPTIONAL_FAILURES, None, [LOST, LOST], False),
    (JoinPolicy.FIRST_SUCCESS, None, [LOST, WON], True),
    (JoinPolicy.FIRST_SUCCESS, None, [LOST, RunStatus.INTERRUPTED], False),
    (JoinPolicy.QUORUM, 2, [WON, LOST, WON], True),
    (JoinPolicy.QUORUM, 2, [WON, LOST, LOST], False),
    (JoinPolicy.QUORUM, 5, [WON, WON], True),  # more than were asked: then all of them
    (JoinPolicy.QUORUM, 5, [WON, LOST], False),
]


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize(("join", "quorum", "ends", "satisfied"), JOINS)
def test_a_step_fails_as_a_whole_only_where_its_join_policy_is_not_satisfied(
    join: JoinPolicy, quorum: int | None, ends: Sequence[RunStatus], satisfied: bool, backwards: bool
) -> None:
    run = delegated(len(ends), join_policy=join, quorum=quorum, subagent_failure_policy=SubagentFailurePolicy.DEGRADE)
    order = list(enumerate(ends))
    for index, status in reversed(order) if backwards else order:
        run.move(end_of(run, index, status))
    assert run.state.step == 2
    assert (run.state.tolerated is None) is satisfied
    assert run.state.tolerated is None or run.state.tolerated.code == "subagent_failed"


STOPS = [
    # join policy, quorum, failure policy, the first ends of five children, whether the others are stopped then
    (JoinPolicy.FIRST_SUCCESS, None, "continue", [LOST, WON], True),
    (JoinPolicy.FIRST_SUCCESS, None, "fail", [LOST, LOST], False),
    (JoinPolicy.QUORUM, 2, "continue", [WON, LOST, WON], True),
    (JoinPolicy.QUORUM, 2, "continue", [WON, LOST], False),
    (JoinPolicy.QUORUM, 9, "continue", [WON, WON, WON], False),
    (JoinPolicy.ALLOW_OPTIONAL_FAILURES, None, "fail", [LOST, WON], False),
    (JoinPolicy.ALL_REQUIRED, None, "continue", [LOST], False),
    (JoinPolicy.ALL_REQUIRED, None, "degrade", [LOST], False),
    (JoinPolicy.ALL_REQUIRED, None, "fail", [WON, LOST], True),
    (JoinPolicy.ALL_REQUIRED, None, "fail", [WON, WON], False),
]


@pytest.mark.parametrize(("join", "quorum", "failure", "ends", "stops"), STOPS)
def test_child_runs_that_the_step_does_not_need_any_more_are_stopped_and_waited_for(
    join: JoinPolicy, quorum: int | None, failure: str, ends: Sequence[RunStatus], stops: bool
) -> None:
    run = delegated(5, join_policy=join, quorum=quorum, subagent_failure_policy=failure)
    for index, status in enumerate(ends):
        assert run.stops == []
        action = run.move(end_of(run, index, status))
        assert isinstance(action, Await)
    left = range(len(ends), 5)
    assert run.stops == ([child_id(run, index) for index in left] if stops else [])
    action = run.move(*(end_of(run, index, RunStatus.CANCELLED, usage=Usage(1, 10, 5)) for index in left))
    assert isinstance(action, CallModel | Finish)
    assert run.state.usage.llm_calls == 1 + len(left), "what the stopped ones have used counts"


def test_a_run_fails_by_the_child_run_that_failed_and_not_by_those_that_were_stopped_for_it() -> None:
    run = delegated(3, subagent_failure_policy=SubagentFailurePolicy.FAIL)
    run.move(end_of(run, 1, LOST))
    action = run.move(end_of(run, 0, RunStatus.CANCELLED), end_of(run, 2, RunStatus.CANCELLED))
    assert isinstance(action, Finish)
    assert action.outcome.error is not None
    assert action.outcome.error.message.endswith("broke 1")
    assert "does not need it" in (run.result(0).error or "")


def test_child_runs_that_begin_with_a_write_are_not_stopped_with_it() -> None:
    """One too many was asked for, so the step has failed as a whole before any of them began."""
    run = delegated(3, RunLimits(max_subagent_fanout=2), subagent_failure_policy=SubagentFailurePolicy.FAIL)
    assert len(run.data(EventType.SUBAGENT_STARTED)) == 2
    assert run.stops == []
    run.move(end_of(run, 0))
    assert run.stops == [child_id(run, 1)]


def test_other_calls_of_the_step_go_on_when_its_delegations_are_done() -> None:
    run = a_run(RunLimits(max_subagent_fanout=9), join_policy=JoinPolicy.FIRST_SUCCESS)
    run.ask(a_delegation("scout", "d0"), a_delegation("scout", "d1"), a_call("read"))
    assert isinstance(run.move(end_of(run, 0)), ExecuteTools)
    assert run.stops == [child_id(run, 1)]
    run.move(end_of(run, 1, RunStatus.CANCELLED))
    assert run.move(Ended(2, a_result())) == CallModel(2)


def test_nobody_is_asked_any_longer_about_a_delegation_that_the_step_does_not_need() -> None:
    run = ask_about_some(join_policy=JoinPolicy.FIRST_SUCCESS)
    assert run.move(end_of(run, 0)) == CallModel(2)
    assert run.closes == [run.interactions[0].interaction_id]
    assert (run.call(1).started, run.result(1).denied, run.state.tolerated) == (False, False, None)
    assert "does not need it" in (run.result(1).error or "")


def test_an_approval_that_comes_together_with_the_end_of_the_need_begins_nothing() -> None:
    run = ask_about_some(join_policy=JoinPolicy.FIRST_SUCCESS)
    (question,) = run.interactions
    approved = InteractionEnd(question.interaction_id, 1, InteractionStatus.RESOLVED, Answer(Decision.APPROVE))
    assert run.move(approved, end_of(run, 0)) == CallModel(2)
    assert not run.call(1).started


def test_a_delegation_that_was_denied_answers_to_the_denial_policy_alone() -> None:
    run = ask_about_some(subagent_failure_policy=SubagentFailurePolicy.FAIL)
    assert isinstance(run.answer(Answer(Decision.DENY)), Await)
    assert run.stops == [], "the other one is still wanted"
    assert run.move(end_of(run, 0)) == CallModel(2)


@pytest.mark.parametrize("join", [join for join in JoinPolicy if join is not JoinPolicy.QUORUM])
def test_a_denied_delegation_is_no_success(join: JoinPolicy) -> None:
    run = ask_about_some(join_policy=join, subagent_failure_policy=SubagentFailurePolicy.DEGRADE)
    run.answer(Answer(Decision.DENY))
    run.move(end_of(run, 0, LOST))
    assert run.state.tolerated is not None
    assert run.state.tolerated.code == "subagent_failed"
