from __future__ import annotations

import pytest

from app.telemetry.metrics import Metrics, ToolOutcome
from tests.exposition import Exposition


def read(metrics: Metrics) -> Exposition:
    return Exposition(metrics.exposition())


def test_runs_are_counted_by_status_with_the_time_that_they_were_active() -> None:
    metrics = Metrics()
    metrics.runs_claimed(3)
    metrics.runs_recovered(2)
    metrics.lease_lost()
    for seconds in (0.5, 1.5):
        metrics.run_ended("completed", seconds)
    metrics.run_ended("failed", 4.0)
    assert read(metrics).value("agent_runner_run_duration_seconds_count", status="completed") == 2
    assert read(metrics).value("agent_runner_run_duration_seconds_sum", status="completed") == 2.0
    assert read(metrics).value("agent_runner_run_duration_seconds_count") == 3
    assert read(metrics).value("agent_runner_runs_claimed_total") == 3
    assert read(metrics).value("agent_runner_runs_recovered_total") == 2
    assert read(metrics).value("agent_runner_lease_losses_total") == 1


def test_numbers_are_counted_where_opentelemetry_is_told_to_export_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    metrics = Metrics()
    metrics.lease_lost()
    metrics.run_ended("completed", 0.5)
    assert read(metrics).value("agent_runner_lease_losses_total") == 1
    assert read(metrics).value("agent_runner_run_duration_seconds_count", status="completed") == 1


def test_model_calls_carry_the_conventions_names() -> None:
    metrics = Metrics()
    metrics.model_called("openai/gpt-4o", 0.3)
    metrics.model_called("openai/gpt-4o", 0.1, "rate_limited")
    metrics.model_took("openai/gpt-4o", 100, 20, 0.25)
    whose = {"gen_ai_provider_name": "openai", "gen_ai_request_model": "gpt-4o"}
    calls = {"gen_ai_operation_name": "chat", **whose}
    duration = "gen_ai_client_operation_duration_seconds"
    assert read(metrics).value(f"{duration}_count", **calls, error_type="") == 1
    assert read(metrics).value(f"{duration}_sum", **calls, error_type="rate_limited") == 0.1
    assert read(metrics).value("gen_ai_client_token_usage_sum", **calls, gen_ai_token_type="input") == 100
    assert read(metrics).value("gen_ai_client_token_usage_sum", **calls, gen_ai_token_type="output") == 20
    assert read(metrics).value("agent_runner_model_cost_usd_total", **whose) == 0.25


def test_names_after_the_first_ones_are_counted_as_other() -> None:
    metrics = Metrics(most_names=2)
    for number in range(5):
        for _ in range(2):
            metrics.model_called(f"openai/m{number}", 0.1)
            metrics.model_took(f"openai/m{number}", 1, 1, 0.5)
            metrics.tool_called(f"t{number}", ToolOutcome.SUCCESS, 0.1)
    assert read(metrics).values_of("gen_ai_request_model") == {"m0", "m1", "other"}
    assert read(metrics).values_of("gen_ai_tool_name") == {"t0", "t1", "other"}
    assert read(metrics).value("agent_runner_tool_duration_seconds_count", gen_ai_tool_name="other") == 6
    assert read(metrics).value("agent_runner_model_cost_usd_total", gen_ai_request_model="other") == 3.0


def test_a_gauge_is_read_when_the_metrics_are() -> None:
    metrics = Metrics()
    use = {"used": 1, "idle": 4}
    metrics.gauge("pool", "By state.", lambda: [(count, {"state": state}) for state, count in use.items()])
    assert read(metrics).value("pool", state="idle") == 4
    use["idle"] = 0
    assert (read(metrics).value("pool", state="used"), read(metrics).value("pool", state="idle")) == (1, 0)


def test_two_in_one_process_know_nothing_of_each_other() -> None:
    one, other = Metrics(), Metrics()
    one.runs_claimed(1)
    other.runs_claimed(2)
    assert read(one).value("agent_runner_runs_claimed_total") == 1
    assert read(other).value("agent_runner_runs_claimed_total") == 2


def test_a_name_may_hold_what_the_format_escapes() -> None:
    metrics = Metrics()
    metrics.model_called('openai/a"b\\c\nd', 0.1)
    assert read(metrics).values_of("gen_ai_request_model") == {'a"b\\c\nd'}
