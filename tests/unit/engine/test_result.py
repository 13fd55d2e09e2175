from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

import pytest

from app.engine.result import agent_result, timestamp
from app.engine.status import RunStatus
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
