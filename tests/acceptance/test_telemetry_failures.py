"""Exporters that fail, are slow or are told to write lines: runs do not notice."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import psutil
import pytest

from tests.acceptance.client import Client, an_agent
from tests.acceptance.conftest import Caller, Serve, Settings
from tests.acceptance.model import Model, calls
from tests.acceptance.waiting import holds
from tests.collector import Collector
from tests.model_server import Reply

NOWHERE = "http://127.0.0.1:9"  # the discard port, where nobody listens
RUNS = 60
QUEUE = 20
# What a stop may take beyond that of a service without telemetry: two seconds, and a busy machine's time for the rest.
STOP_S = 2.0 + 6.0


@pytest.fixture(params=["unreachable", "500", "503", "slow"])
def failing(request: pytest.FixtureRequest) -> Iterator[dict[str, str]]:
    """The settings of a service whose collector does not take what it sends."""
    if request.param == "unreachable":
        yield {"TELEMETRY": "otel", "OTEL_EXPORTER_OTLP_ENDPOINT": NOWHERE, "OTEL_BSP_SCHEDULE_DELAY": "50"}
        return
    slow = request.param == "slow"
    with Collector(status=200 if slow else int(request.param), delay_s=3600.0 if slow else 0.0) as collector:
        yield collector.settings


async def completes(client: Client) -> None:
    run = await client.create_and_wait(agent=an_agent(model="openai/echo"), input="Go.")
    assert run["status"] == "completed"


async def test_runs_do_not_notice_a_collector_that_fails(
    failing: dict[str, str], database_url: str, settings: Settings, serve: Serve, caller: Caller, model: Model
) -> None:
    """More spans end than may wait: the others are dropped, which is told in a line, and the stop does not wait.

    The bound of the stop was seen to fail where flushing is awaited to its end.
    """
    few = {"OTEL_BSP_MAX_QUEUE_SIZE": str(QUEUE), "OTEL_METRIC_EXPORT_INTERVAL": "100"}
    service = serve(settings(DATABASE_URL=database_url, **failing, **few)).ready()
    client = caller(service)
    for _ in range(RUNS):
        await completes(client)
    service.terminate()
    asked = time.monotonic()
    assert service.ended() in (0, -15)
    assert time.monotonic() - asked < STOP_S
    told = [line for line in service.stderr().splitlines() if "INFO" not in line and "[info" not in line]
    assert len(told) <= 4, told
    assert not any(word in line for line in told for word in ("Traceback", "HTTPConnectionPool", "Transient error"))


async def test_memory_stays_bounded_while_nobody_takes_the_spans(
    database_url: str, settings: Settings, serve: Serve, caller: Caller, model: Model
) -> None:
    """A megabyte is said in each run; seen to fail where spans carry texts as long as they are."""
    with Collector(delay_s=3600.0) as collector:
        given = {**collector.settings, "TELEMETRY_CONTENT": "on", "OTEL_BSP_MAX_QUEUE_SIZE": "300"}
        service = serve(settings(DATABASE_URL=database_url, **given)).ready()
        client = caller(service)
        process = psutil.Process(service.pid)
        text = "words " * 80_000

        async def run() -> None:
            model.script(Reply(text=[text]))
            done = await client.create_and_wait(agent=an_agent(), input=text)
            assert done["status"] == "completed"

        for _ in range(10):
            await run()
        before = process.memory_info().rss
        for _ in range(60):
            await run()
        assert process.memory_info().rss - before < 60 * 2**20 / 2


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "0"),
        ("OTEL_BSP_SCHEDULE_DELAY", "soon"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4317"),
        ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "collector:4317"),
    ],
)
async def test_a_variable_that_cannot_be_followed_is_told_and_nothing_starts(
    name: str, value: str, database_url: str, settings: Settings, serve: Serve
) -> None:
    service = serve(settings(DATABASE_URL=database_url, TELEMETRY="otel", **{name: value}))
    assert service.ended() == 3
    assert f"{name}: '{value}' cannot be used" in service.stderr()
    assert "Traceback" not in service.stderr()


@pytest.mark.parametrize("telemetry", ["otel", "json"])
async def test_nothing_is_exported_where_opentelemetry_is_told_so(
    telemetry: str, database_url: str, settings: Settings, serve: Serve, caller: Caller, model: Model
) -> None:
    with Collector() as collector:
        off = {"TELEMETRY": telemetry, "OTEL_SDK_DISABLED": "True", "OTEL_METRIC_EXPORT_INTERVAL": "50"}
        service = serve(settings(DATABASE_URL=database_url, **{**collector.settings, **off})).ready()
        client = caller(service)
        await completes(client)
        numbers = await client.http.get("/metrics")
        service.terminate()
        service.ended()
        assert (collector.spans(), collector.metrics()) == ([], {})
    assert "agent_runner_runs_claimed_total" in numbers.text
    assert not any(line.startswith("{") for line in service.stdout().splitlines())
    assert "telemetry_is_off" in service.stderr()


async def test_json_is_one_line_a_span_on_standard_output(
    database_url: str, settings: Settings, serve: Serve, caller: Caller, model: Model
) -> None:
    service = serve(settings(DATABASE_URL=database_url, TELEMETRY="json")).ready()
    model.script(calls(("fail", {"reason": "a secret"})), Reply(text="Oh."))
    agent = an_agent(tool_failure_policy="continue")
    await caller(service).create_and_wait(agent=agent, input="Go.")

    def lines() -> list[str]:
        return [line for line in service.stdout().splitlines() if line.startswith("{")]

    await holds(lambda: len(lines()) == 5, "five spans")
    spans = {span["name"]: span for span in map(json.loads, lines())}
    assert set(spans) == {"POST /runs/wait", "invoke_agent tester", "chat gpt-4o-mini", "execute_tool fail"}
    assert len({span["trace_id"] for span in spans.values()}) == 1
    request, attempt, tool = spans["POST /runs/wait"], spans["invoke_agent tester"], spans["execute_tool fail"]
    assert request["parent_span_id"] is None
    assert attempt["parent_span_id"] == request["span_id"]
    assert (tool["status"], tool["attributes"]["error.type"]) == ("error", "tool_error")
    assert request["start_time"] <= attempt["start_time"] <= attempt["end_time"]
    assert attempt["duration_ms"] > 0
    assert "a secret" not in service.stdout()


async def test_console_is_a_line_a_span_for_people(
    database_url: str, settings: Settings, serve: Serve, caller: Caller, model: Model
) -> None:
    service = serve(settings(DATABASE_URL=database_url, TELEMETRY="console")).ready()
    await completes(caller(service))
    await holds(lambda: "invoke_agent tester" in service.stdout(), "the attempt")
    (line,) = [line for line in service.stdout().splitlines() if "chat echo" in line]
    assert " ms  chat echo  trace=" in line
    assert "gen_ai.usage.output_tokens=" in line


@pytest.mark.parametrize("telemetry", ["none", "json", "otel"])
async def test_only_what_exports_by_otlp_loads_what_that_needs(
    telemetry: str, database_url: str, settings: Settings, serve: Serve, caller: Caller
) -> None:
    given = {"TELEMETRY": telemetry, "OTEL_EXPORTER_OTLP_ENDPOINT": NOWHERE}
    service = serve(settings(DATABASE_URL=database_url, **given)).ready()
    await completes(caller(service))
    loaded = any("google/_upb" in module.path for module in psutil.Process(service.pid).memory_maps())
    assert loaded is (telemetry == "otel")
