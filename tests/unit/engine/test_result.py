from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

import pytest

from app.engine.records import SubagentExecution
from app.engine.result import agent_result, result_of
from app.engine.status import RunStatus
from app.engine.timestamp import timestamp
from app.engine.usage import Usage
from tests.unit.api.records import CALL, a_finished_run, a_run


def test_a_timestamp_is_utc_and_always_has_its_fraction() -> None:
    assert timestamp(datetime(2026, 1, 31, 8, tzinfo=UTC)) == "2026-01-31T08:00:00.000000Z"
    east = timezone(timedelta(hours=2))
    assert timestamp(datetime(2026, 1, 31, 8, 0, 0, 5, tzinfo=east)) == "2026-01-31T06:00:00.000005Z"


@pytest.mark.parametrize("status", [status for status in RunStatus if not status.terminal])
def test_a_run_that_is_not_over_has_no_result(status: RunStatus) -> None:
    assert agent_result(a_run(status=status)) is None


def test_a_run_that_was_stopped_before_it_began_has_an_empty_result() -> None:
    result = agent_result(a_run(status=RunStatus.CANCELLED, started_at=None, cost_usd=None))
    assert result is not None
    assert (result["final_text"], result["model"], result["provider"]) == ("", None, None)
    assert (result["total_cost_usd"], result["state_snapshot"]["started_at"]) == (None, None)


def test_every_tool_call_is_told_with_what_became_of_it() -> None:
    failed = replace(CALL, success=False, output=None, error="no such city")
    unfinished = replace(CALL, success=None, output=None, finished_at=None, latency_ms=None)
    unbegun = replace(unfinished, started_at=None)
    replayed = replace(CALL, replayed=True)
    result = agent_result(a_finished_run(tool_executions=(CALL, failed, unfinished, unbegun, replayed)))
    assert result is not None
    records = result["tool_executions"]
    assert [record["success"] for record in records] == [True, False, False, False, True]
    assert [record["error"] for record in records] == [
        None,
        "no such city",
        "the run ended before the call did",
        "the run ended before the call was begun",
        None,
    ]
    assert (result["state_snapshot"]["tool_calls"], result["state_snapshot"]["replayed_effects"]) == (4, 1)
    assert {record["agent_path"] for record in records} == {"helper"}


def test_every_child_run_is_told_with_how_it_ended() -> None:
    done = SubagentExecution("researcher", "c1", RunStatus.COMPLETED, "found", None, 12.5, Usage(1, 20, 3))
    tolerated = SubagentExecution("writer", "c2", RunStatus.DEGRADED, "half", "cut off", 3.0, Usage(1, 2, 3))
    late = SubagentExecution("reviewer", "c3", RunStatus.INTERRUPTED, None, "out of time", 99.0, Usage())
    result = agent_result(a_finished_run(subagent_executions=(done, tolerated, late)))
    assert result is not None
    assert result["subagent_executions"][0] == {
        "subagent_name": "researcher",
        "run_id": "c1",
        "success": True,
        "state": "completed",
        "output_text": "found",
        "error": None,
        "latency_ms": 12.5,
        "usage": Usage(1, 20, 3).as_dict(),
    }
    assert [each["success"] for each in result["subagent_executions"]] == [True, True, False]


def test_a_child_runs_result_says_where_in_its_family_it_stands() -> None:
    result = agent_result(a_finished_run(tool_executions=(CALL,), agent_depth=2, agent_path="a>b>helper"))
    assert result is not None
    (record,) = result["tool_executions"]
    assert (record["agent_name"], record["agent_depth"], record["agent_path"]) == ("helper", 2, "a>b>helper")


def test_python_callers_get_records() -> None:
    done = SubagentExecution("researcher", "c1", RunStatus.COMPLETED, "found", None, 12.5, Usage(1, 20, 3))
    result = result_of(a_finished_run(tool_executions=(CALL,), subagent_executions=(done,)))
    (delegated,) = result.subagent_executions
    assert (delegated.state, delegated.output_text, delegated.usage["input_tokens"]) == (
        RunStatus.COMPLETED,
        "found",
        20,
    )
    assert result.tool_executions[0].output == {"sum": 3.0}
