"""Traces, as a collector sees them: one for each request, over replicas, attempts, tools and child runs."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.acceptance.client import an_agent
from tests.acceptance.conftest import Caller, Serve, Settings
from tests.acceptance.gates import Gate
from tests.acceptance.model import SILENT, Model, calls
from tests.acceptance.teams import WORKER, at_once, family_is_done, put_team
from tests.acceptance.waiting import holds
from tests.collector import Collector, ReceivedSpan
from tests.model_server import Reply

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
CALLER = {"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01", "tracestate": "vendor=opaque,other=1"}
SERVER, CLIENT, INTERNAL = 2, 3, 1


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as collector:
        yield collector


async def trace_of(collector: Collector, trace_id: str, *names: str) -> list[ReceivedSpan]:
    """The spans of a trace once there are all of these, by when they began."""

    def found() -> list[ReceivedSpan]:
        return [span for span in collector.spans() if span.trace_id == trace_id]

    await holds(lambda: sorted(names) == sorted(span.name for span in found()), f"{names} in one trace")
    return found()


def named(spans: list[ReceivedSpan], name: str) -> list[ReceivedSpan]:
    return [span for span in spans if span.name == name]


def below(spans: list[ReceivedSpan], parent: ReceivedSpan) -> list[str]:
    """The names of a span's children."""
    return [span.name for span in spans if span.parent_id == parent.span_id]


async def test_a_request_is_one_trace_with_its_attempt_model_calls_and_tools(
    database_url: str, settings: Settings, serve: Serve, caller: Caller, model: Model, collector: Collector
) -> None:
    client = caller(serve(settings(DATABASE_URL=database_url, **collector.settings)).ready())
    model.script(calls(("lookup", {"word": "tree"})), Reply(text="Four letters."))
    run = (await client.http.post("/runs/wait", json={"agent": an_agent(), "input": "Go."}, headers=CALLER)).json()
    assert run["status"] == "completed"
    spans = await trace_of(
        collector,
        TRACE,
        "POST /runs/wait",
        "invoke_agent tester",
        "chat gpt-4o-mini",
        "execute_tool lookup",
        "chat gpt-4o-mini",
    )
    (request,) = named(spans, "POST /runs/wait")
    assert (request.parent_id, request.state, request.kind) == ("00f067aa0ba902b7", CALLER["tracestate"], SERVER)
    assert request.attributes == {
        "http.request.method": "POST",
        "http.route": "/runs/wait",
        "http.response.status_code": 200,
        "url.path": "/runs/wait",
        "url.scheme": "http",
    }
    assert request.resource["service.name"] == "agent-runner"
    assert below(spans, request) == ["invoke_agent tester"]
    (attempt,) = named(spans, "invoke_agent tester")
    assert below(spans, attempt) == ["chat gpt-4o-mini", "execute_tool lookup", "chat gpt-4o-mini"]
    assert attempt.kind == INTERNAL
    assert attempt.attributes == {
        "gen_ai.operation.name": "invoke_agent",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "gpt-4o-mini",
        "gen_ai.agent.name": "tester",
        "gen_ai.conversation.id": run["thread_id"],
        "gen_ai.usage.input_tokens": 22,
        "gen_ai.usage.output_tokens": 14,
        "agent_runner.run.id": run["run_id"],
        "agent_runner.run.attempt": 1,
        "agent_runner.run.status": "completed",
    }
    first, last = named(spans, "chat gpt-4o-mini")
    assert first.kind == CLIENT
    assert first.attributes["gen_ai.response.finish_reasons"] == ["tool_calls"]
    assert last.attributes.pop("gen_ai.response.time_to_first_chunk") > 0
    assert last.attributes.pop("agent_runner.cost_usd") > 0
    assert last.attributes == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "gpt-4o-mini",
        "gen_ai.request.stream": True,
        "gen_ai.response.model": "gpt-4o-mini",
        "gen_ai.response.finish_reasons": ["stop"],
        "gen_ai.usage.input_tokens": 11,
        "gen_ai.usage.output_tokens": 7,
    }
    (tool,) = named(spans, "execute_tool lookup")
    assert tool.attributes == {
        "gen_ai.operation.name": "execute_tool",
        "gen_ai.tool.name": "lookup",
        "gen_ai.tool.type": "function",
        "gen_ai.tool.call.id": "call_1",
    }
    assert not any(span.failed for span in spans)
    for span in spans:
        parent = next((each for each in spans if each.span_id == span.parent_id), None)
        assert span.start <= span.end
        assert parent is None or parent.start <= span.start


async def test_a_trace_goes_on_after_its_replica_was_killed_on_another_one(
    database_url: str, settings: Settings, serve: Serve, caller: Caller, model: Model, collector: Collector
) -> None:
    """Seen to fail without the trace in the run's row."""
    environment = settings(DATABASE_URL=database_url, LEASE_S="2", **collector.settings)
    doomed = serve(environment).ready()
    model.script(calls(("lookup", {"word": "tree"})), SILENT)
    created = await caller(doomed).http.post("/runs", json={"agent": an_agent(), "input": "Go."}, headers=CALLER)
    run_id = created.json()["run_id"]
    await model.asked(2)
    await trace_of(collector, TRACE, "POST /runs", "chat gpt-4o-mini", "execute_tool lookup")
    survivor = serve(environment).ready()
    doomed.kill()
    model.script(Reply(text="Taken over."))
    done = await caller(survivor).wait(run_id)
    assert (done["status"], done["attempt"]) == ("completed", 2)
    spans = await trace_of(
        collector,
        TRACE,
        "POST /runs",
        "chat gpt-4o-mini",
        "execute_tool lookup",
        "invoke_agent tester",  # of the first attempt it died with its process
        "chat gpt-4o-mini",
    )
    (request,), (attempt,) = named(spans, "POST /runs"), named(spans, "invoke_agent tester")
    assert attempt.parent_id == request.span_id
    assert attempt.attributes["agent_runner.run.attempt"] == 2
    assert attempt.resource["service.instance.id"] != request.resource["service.instance.id"]
    before, after = named(spans, "chat gpt-4o-mini")
    assert after.parent_id == attempt.span_id
    assert before.parent_id == named(spans, "execute_tool lookup")[0].parent_id != attempt.span_id


async def test_a_pause_and_a_resume_stay_in_the_trace(
    database_url: str, settings: Settings, serve: Serve, caller: Caller, model: Model, collector: Collector, gate: Gate
) -> None:
    client = caller(serve(settings(DATABASE_URL=database_url, **collector.settings)).ready())
    model.script(calls(("read", {"gate": gate.name})), Reply(text="Done."))
    created = await client.http.post("/runs", json={"agent": an_agent(), "input": "Go."}, headers=CALLER)
    run_id = created.json()["run_id"]
    await gate.entered()
    await client.steer("pause", run_id)
    gate.open()
    await client.until(run_id, "paused")
    await client.steer("resume", run_id)
    await client.until(run_id, "completed")
    attempts = ["invoke_agent tester"] * 2
    chats = ["chat gpt-4o-mini"] * 2
    spans = await trace_of(collector, TRACE, "POST /runs", *attempts, *chats, "execute_tool read")
    paused, completed = named(spans, "invoke_agent tester")
    assert paused.attributes["agent_runner.run.status"] == "paused"
    assert completed.attributes["agent_runner.run.status"] == "completed"
    assert paused.parent_id == completed.parent_id == named(spans, "POST /runs")[0].span_id


async def test_child_runs_are_below_the_attempt_that_made_them(
    database_url: str,
    settings: Settings,
    serve: Serve,
    caller: Caller,
    model: Model,
    collector: Collector,
    agent_name: str,
) -> None:
    """Seen to fail where a child run takes over what its parent is part of."""
    client = caller(serve(settings(DATABASE_URL=database_url, **collector.settings)).ready())
    team = await put_team(client, agent_name, helper=WORKER)
    task = at_once(team.ask("helper", at_once(("lookup", {"word": "tree"}))))
    created = await client.http.post("/runs", json={"agent": team.parent(), "input": task}, headers=CALLER)
    await family_is_done(client, created.json()["run_id"])
    parent, child = f"invoke_agent {team.name}", f"invoke_agent {team.agent('helper')}"
    spans = await trace_of(
        collector, TRACE, "POST /runs", parent, child, parent, *["chat obey"] * 4, "execute_tool lookup"
    )
    asking, going_on = named(spans, parent)
    (helping,) = named(spans, child)
    assert asking.attributes["agent_runner.run.status"] == "waiting"
    assert helping.parent_id == asking.span_id
    assert sorted(below(spans, helping)) == ["chat obey", "chat obey", "execute_tool lookup"]
    assert below(spans, going_on) == ["chat obey"]


async def test_each_try_of_a_model_call_is_a_span_and_failures_are_marked(
    database_url: str, settings: Settings, serve: Serve, caller: Caller, model: Model, collector: Collector
) -> None:
    client = caller(serve(settings(DATABASE_URL=database_url, **collector.settings)).ready())
    model.script(Reply.error(503, "quite busy"), calls(("fail", {"reason": "of a secret kind"})), Reply(text="Oh."))
    agent = an_agent(tool_failure_policy="continue")
    await client.http.post("/runs/wait", json={"agent": agent, "input": "Go."}, headers=CALLER)
    chats = ["chat gpt-4o-mini"] * 3
    names = ["POST /runs/wait", "invoke_agent tester", "execute_tool fail"]
    spans = await trace_of(collector, TRACE, *names, *chats)
    tries = named(spans, "chat gpt-4o-mini")
    assert [span.failed for span in tries] == [True, False, False]
    assert tries[0].attributes["error.type"] == "provider_error"
    (tool,) = named(spans, "execute_tool fail")
    assert (tool.failed, tool.attributes["error.type"]) == (True, "tool_error")
    # What is said is not in them, texts of errors included.
    assert not any(span.said for span in spans)
    assert not any(b"secret kind" in body or b"quite busy" in body for body in collector.requests)


async def test_a_run_that_fails_marks_its_attempt(
    database_url: str, settings: Settings, serve: Serve, caller: Caller, model: Model, collector: Collector
) -> None:
    client = caller(serve(settings(DATABASE_URL=database_url, **collector.settings)).ready())
    model.script(Reply.error(400, "no"))
    await client.http.post("/runs/wait", json={"agent": an_agent(), "input": "Go."}, headers=CALLER)
    spans = await trace_of(collector, TRACE, "POST /runs/wait", "invoke_agent tester", "chat gpt-4o-mini")
    (attempt,) = named(spans, "invoke_agent tester")
    assert (attempt.failed, attempt.attributes["error.type"]) == (True, "invalid_model_request")
    assert attempt.attributes["agent_runner.run.status"] == "failed"


@pytest.mark.parametrize("content", ["off", "on"])
async def test_what_is_said_is_in_traces_only_where_that_is_switched_on(
    content: str,
    database_url: str,
    settings: Settings,
    serve: Serve,
    caller: Caller,
    model: Model,
    collector: Collector,
) -> None:
    given = collector.settings if content == "off" else {**collector.settings, "TELEMETRY_CONTENT": "on"}
    client = caller(serve(settings(DATABASE_URL=database_url, **given)).ready())
    model.script(calls(("lookup", {"word": "sesame"})), Reply(text="Open it."))
    agent = an_agent(instructions="Be discreet.")
    await client.http.post("/runs/wait", json={"agent": agent, "input": "Confidential."}, headers=CALLER)
    names = ["POST /runs/wait", "invoke_agent tester", "execute_tool lookup"]
    spans = await trace_of(collector, TRACE, *names, *["chat gpt-4o-mini"] * 2)
    told = b"".join(collector.requests)
    if content == "off":
        assert not any(text in told for text in (b"sesame", b"Open it", b"discreet", b"Confidential", b"letters"))
        return
    first, last = named(spans, "chat gpt-4o-mini")
    (instructions,) = json.loads(first.attributes["gen_ai.system_instructions"])
    assert instructions["content"].endswith("Be discreet.")
    assert json.loads(first.attributes["gen_ai.input.messages"]) == [
        {"role": "user", "parts": [{"type": "text", "content": "Confidential."}]}
    ]
    call = {"type": "tool_call", "id": "call_1", "name": "lookup", "arguments": {"word": "sesame"}}
    assert json.loads(first.attributes["gen_ai.output.messages"]) == [
        {"role": "assistant", "parts": [call], "finish_reason": "tool_calls"}
    ]
    _, asked, answered = json.loads(last.attributes["gen_ai.input.messages"])
    assert asked == {"role": "assistant", "parts": [call]}
    assert (answered["role"], answered["parts"][0]["type"]) == ("tool", "tool_call_response")
    (tool,) = named(spans, "execute_tool lookup")
    assert json.loads(tool.attributes["gen_ai.tool.call.arguments"]) == {"word": "sesame"}
    assert json.loads(tool.attributes["gen_ai.tool.call.result"]) == {"word": "sesame", "letters": 6}


async def test_tools_log_and_trace_inside_of_their_span(
    database_url: str, settings: Settings, serve: Serve, caller: Caller, model: Model, collector: Collector
) -> None:
    tools = "tests.acceptance.tools,tests.acceptance.telling_tools"
    environment = settings(DATABASE_URL=database_url, LOG_FORMAT="json", **collector.settings)
    service = serve({**environment, "TOOL_MODULES": tools, "LOG_LEVEL": "debug"}).ready()
    client = caller(service)
    model.script(calls(("tell", {"word": "a"}), ("tell_on_the_loop", {"word": "b"})), Reply(text="Told."))
    agent = an_agent(tools=["tell", "tell_on_the_loop"])
    run = (await client.http.post("/runs/wait", json={"agent": agent, "input": "Go."}, headers=CALLER)).json()
    names = ["POST /runs/wait", "invoke_agent tester", "execute_tool tell", "execute_tool tell_on_the_loop"]
    inside = ["inside a thread", "inside the loop"]
    spans = await trace_of(collector, TRACE, *names, *inside, *["chat gpt-4o-mini"] * 2)
    (threaded,), (looped,) = named(spans, names[2]), named(spans, names[3])
    assert (below(spans, threaded), below(spans, looped)) == (inside[:1], inside[1:])
    assert threaded.attributes["told"] == "a"
    assert [span.scope for span in spans if span.name in inside] == ["somebody"] * 2
    assert named(spans, "inside the loop")[0].events == ("happened",)

    lines = [json.loads(line) for line in service.stderr().splitlines()]
    by_event = {line["event"]: line for line in lines if line.get("run_id") == run["run_id"]}
    whose = {"run_id": run["run_id"], "trace_id": TRACE}
    for event, span in [
        ("told by the standard library", threaded),
        ("told in a thread", threaded),
        ("told on the loop", looped),
        ("run_left", named(spans, "invoke_agent tester")[0]),
    ]:
        told = {name: by_event[event][name] for name in ("run_id", "trace_id", "span_id")}
        assert told == {**whose, "span_id": span.span_id}, event


@pytest.mark.parametrize(
    "given",
    [{"OTEL_TRACES_SAMPLER": "always_off"}, {"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0"}],
    ids=lambda given: given["OTEL_TRACES_SAMPLER"],
)
async def test_traces_that_are_not_sampled_are_not_exported(
    given: dict[str, str],
    database_url: str,
    settings: Settings,
    serve: Serve,
    caller: Caller,
    model: Model,
    collector: Collector,
) -> None:
    service = serve(settings(DATABASE_URL=database_url, **collector.settings, **given)).ready()
    assert (await caller(service).create_and_wait(agent=an_agent(), input="Go."))["status"] == "completed"
    service.terminate()
    assert service.ended() in (0, -15)
    assert collector.spans() == []


async def test_a_callers_trace_that_is_not_sampled_is_followed_in_that(
    database_url: str, settings: Settings, serve: Serve, caller: Caller, model: Model, collector: Collector
) -> None:
    client = caller(serve(settings(DATABASE_URL=database_url, **collector.settings)).ready())
    body = {"agent": an_agent(), "input": "Go."}
    unsampled = {"traceparent": CALLER["traceparent"][:-2] + "00"}
    assert (await client.http.post("/runs/wait", json=body, headers=unsampled)).json()["status"] == "completed"
    other = TRACE.replace("4", "5")
    headers = {"traceparent": CALLER["traceparent"].replace(TRACE, other)}
    assert (await client.http.post("/runs/wait", json=body, headers=headers)).json()["status"] == "completed"
    await trace_of(collector, other, "POST /runs/wait", "invoke_agent tester", "chat gpt-4o-mini")
    assert {span.trace_id for span in collector.spans()} == {other}


async def test_metrics_go_to_the_collector_as_well(
    database_url: str, settings: Settings, serve: Serve, caller: Caller, model: Model, collector: Collector
) -> None:
    environment = settings(DATABASE_URL=database_url, OTEL_METRIC_EXPORT_INTERVAL="100", **collector.settings)
    client = caller(serve(environment).ready())
    model.script(calls(("lookup", {"word": "tree"})), Reply(text="Four."))
    assert (await client.create_and_wait(agent=an_agent(), input="Go."))["status"] == "completed"
    counts = {
        "agent_runner.run.duration": 1,
        "agent_runner.runs.claimed": 1,
        "agent_runner.step.duration": 2,
        "agent_runner.tool.duration": 1,
        "gen_ai.client.operation.duration": 2,
        "gen_ai.client.token.usage": 4,
    }

    def arrived() -> bool:
        values = collector.metrics()
        return {name: values.get(name) for name in counts} == counts

    await holds(arrived, "the numbers of one run")
