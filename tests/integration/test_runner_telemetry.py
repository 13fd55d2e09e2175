"""`Runner(telemetry=...)`, in programs of their own: what is set for traces is set for a process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.collector import Collector

ROOT = Path(__file__).parents[2]
SETUP = """
import asyncio
from app import Agent, Runner, tool
from app.llm.scripted import ScriptedModel

@tool(effect="read_only")
def add(a: int, b: int) -> int:
    "Add."
    return a + b

calls = {"tool_calls": [{"name": "add", "arguments": {"a": 2, "b": 3}}]}
agent = Agent("adder", "scripted/sums", tools=[add])
"""
ONE_RUN = f"""{SETUP}
runner = Runner(model_client=ScriptedModel([calls, {{"text": "5"}}]), telemetry=TELEMETRY)
assert runner.run_sync(agent, user_message="add them").final_text == "5"
"""
NAMES = ["run adder", "invoke_agent adder", "chat sums", "execute_tool add", "chat sums"]


def output_of(program: str, telemetry: str | None, **environment: str) -> str:
    ended = subprocess.run(
        [sys.executable, "-c", f"TELEMETRY = {telemetry!r}\n{program}"],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **environment},
        cwd="/tmp",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_json_writes_a_line_for_each_span_before_the_program_goes_on() -> None:
    spans = [json.loads(line) for line in output_of(ONE_RUN, "json").splitlines()]
    assert sorted(span["name"] for span in spans) == sorted(NAMES)
    assert len({span["trace_id"] for span in spans}) == 1


def test_console_writes_lines_for_people() -> None:
    lines = output_of(ONE_RUN, "console").splitlines()
    assert len(lines) == len(NAMES)
    assert any(" ms  execute_tool add  trace=" in line for line in lines)


def test_none_writes_nothing_and_loads_no_traces_of_the_sdk() -> None:
    program = f"{ONE_RUN}\nimport sys\nassert 'opentelemetry.sdk.trace' not in sys.modules, 'loaded'"
    assert output_of(program, None) == ""


def test_nothing_is_exported_where_opentelemetry_is_told_so() -> None:
    with Collector() as collector:
        output_of(ONE_RUN, "otel", OTEL_SDK_DISABLED="true", **collector.settings)
        assert (collector.spans(), collector.metrics()) == ([], {})


def test_otel_exports_spans_and_numbers_for_each_run_of_the_program() -> None:
    with Collector() as collector:
        twice = f"{ONE_RUN}\nasyncio.run(Runner(model_client=ScriptedModel([calls, {{'text': '5'}}]), "
        twice += "telemetry='otel').run(agent, user_message='again'))"
        output_of(twice, "otel", **collector.settings)
        spans = collector.spans()
        assert [span.name for span in spans].count("invoke_agent adder") == 2
        assert sorted(span.name for span in spans) == sorted(NAMES * 2)
        assert len({span.trace_id for span in spans}) == 2
        assert collector.metrics()["agent_runner.tool.duration"] == 1  # of the last runner


def test_a_program_with_a_provider_of_its_own_gets_the_spans_in_its_own_trace() -> None:
    program = f"""
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
kept = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(kept))
trace.set_tracer_provider(provider)
with trace.get_tracer("program").start_as_current_span("the program"):
    {ONE_RUN.strip().replace(chr(10), chr(10) + "    ")}
spans = kept.get_finished_spans()
print(sorted(span.name for span in spans), len({{span.context.trace_id for span in spans}}))
"""
    expected = sorted(["the program", *NAMES[1:]])
    assert output_of(program, "otel", OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9") == f"{expected} 1\n"


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:9", "slow"])
def test_a_collector_that_does_not_answer_holds_a_program_up_for_seconds_only(endpoint: str) -> None:
    with Collector(delay_s=3600.0) as collector:
        settings = collector.settings if endpoint == "slow" else {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint}
        timed = f"import time\nbegun = time.monotonic()\n{ONE_RUN}\nassert time.monotonic() - begun < 15"
        assert output_of(timed, "otel", **settings) == ""
