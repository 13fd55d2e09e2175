"""One run from end to end, as callers, readers and the database see it."""

from __future__ import annotations

import re
from typing import Any

import asyncpg
import orjson
import pytest

from tests.acceptance.client import Client, Json, check_log, of_type, sent_events, types_of
from tests.acceptance.model import Model, calls
from tests.model_server import Reply

ENVELOPE = {
    "seq", "type", "run_id", "thread_id", "agent_name", "state", "step", "message", "data", "created_at",
    "schema_version",
}  # fmt: skip
DATA: dict[str, set[str]] = {
    "run_started": {"agent_name", "agent_version"},
    "step_started": {"step"},
    "llm_called": {"model", "provider", "message_count"},
    "text_delta": {"delta"},
    "tool_call_delta": {"tool_call_id", "tool_name", "delta"},
    "llm_completed": {
        "model", "provider", "finish_reason", "text", "reasoning", "tool_call_count", "usage",
        "latency_ms", "cost_usd", "reused",
    },
    "tool_batch_started": {"tool_call_count", "tool_names", "tool_call_ids"},
    "tool_started": {"tool_name", "tool_call_id", "arguments"},
    "tool_completed": {
        "tool_name", "tool_call_id", "success", "output", "error", "latency_ms", "agent_name", "agent_depth",
        "agent_path", "replayed",
    },
    "run_completed": {"state", "final_text", "usage"},
}  # fmt: skip
USAGE = {
    "llm_calls", "input_tokens", "output_tokens", "total_tokens", "cached_input_tokens", "reasoning_tokens",
}  # fmt: skip
RESULT = {
    "final_text", "state", "run_id", "thread_id", "tool_executions", "subagent_executions", "usage_aggregate",
    "total_cost_usd", "final_structured", "requested_model", "model", "provider", "state_snapshot", "error",
}  # fmt: skip
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")

LETTERS = {"word": "durable", "letters": 7}


def script(model: Model) -> None:
    """Three model calls and two tools."""
    model.script(
        calls(("lookup", {"word": "durable"}), text="I look it up. "),
        calls(("calculate", {"expression": "7 * 6"}), text="Now I calculate. ", start=2),
        Reply(text="It has 7 letters, and 42 is the answer."),
    )


async def put_agent(client: Client, name: str) -> None:
    definition = {
        "model": "openai/gpt-4o-mini",
        "instructions": "You serve {{ customer.name }}.",
        "tools": ["lookup", "calculate"],
    }
    answer = await client.http.put(f"/agents/{name}", json=definition)
    assert answer.status_code == 201, answer.text


async def whole_run(client: Client, model: Model, agent_name: str) -> Json:
    script(model)
    await put_agent(client, agent_name)
    return await client.create_and_wait(
        agent=agent_name, input="How long is the word?", context={"customer": {"name": "Ada"}}, metadata={"team": "a"}
    )


async def test_every_fact_of_a_run_is_an_event_in_order_with_all_of_its_fields(
    client: Client, model: Model, agent_name: str
) -> None:
    run = await whole_run(client, model, agent_name)
    events = await client.events(run["run_id"])
    check_log(events, run)
    step = ["step_started", "llm_called", "llm_completed"]
    tools = ["tool_batch_started", "tool_started", "tool_completed"]
    assert types_of(events) == ["run_started", *step, *tools, *step, *tools, *step, "run_completed"]
    for event in events:
        assert set(event) >= ENVELOPE
        assert set(event["data"]) >= DATA[event["type"]], event["type"]
        assert TIME.fullmatch(event["created_at"])
        assert event["schema_version"] == 1
        assert event["agent_name"] == agent_name
        assert event["state"] == ("completed" if event["type"] == "run_completed" else "running")
    assert [event["created_at"] for event in events] == sorted(event["created_at"] for event in events)
    assert [event["step"] for event in events] == sorted(event["step"] for event in events)


async def test_the_events_tell_what_happened(client: Client, model: Model, agent_name: str) -> None:
    run = await whole_run(client, model, agent_name)
    events = await client.events(run["run_id"])
    started, completed = events[0], events[-1]
    assert started["data"] == {"agent_name": agent_name, "agent_version": 1}
    assert [event["data"]["message_count"] for event in of_type(events, "llm_called")] == [2, 4, 6]
    answers = [event["data"] for event in of_type(events, "llm_completed")]
    assert [answer["finish_reason"] for answer in answers] == ["tool_calls", "tool_calls", "stop"]
    assert [answer["tool_call_count"] for answer in answers] == [1, 1, 0]
    for step, answer in enumerate(answers, 1):
        deltas = [event["data"]["delta"] for event in of_type(events, "text_delta") if event["step"] == step]
        assert "".join(deltas) == answer["text"]
        assert answer["usage"] == {
            "llm_calls": 1, "input_tokens": 11, "output_tokens": 7, "total_tokens": 18, "cached_input_tokens": 0,
            "reasoning_tokens": 0,
        }  # fmt: skip
        assert answer["cost_usd"] > 0
        assert answer["latency_ms"] > 0
    tools = [event["data"] for event in of_type(events, "tool_completed")]
    assert [(tool["tool_call_id"], tool["output"], tool["error"]) for tool in tools] == [
        ("call_1", LETTERS, None),
        ("call_2", 42, None),
    ]
    assert all((tool["agent_depth"], tool["agent_path"]) == (0, agent_name) for tool in tools)
    assert completed["data"]["final_text"] == run["result"]["final_text"]
    assert completed["data"]["usage"] == run["result"]["usage_aggregate"]


async def test_the_result_has_every_field_and_each_is_true(client: Client, model: Model, agent_name: str) -> None:
    run = await whole_run(client, model, agent_name)
    result = run["result"]
    assert set(result) >= RESULT
    assert (result["run_id"], result["thread_id"]) == (run["run_id"], run["thread_id"])
    assert (result["state"], result["error"], run["error"]) == ("completed", None, None)
    assert result["final_text"] == "It has 7 letters, and 42 is the answer."
    assert (result["requested_model"], result["model"]) == ("openai/gpt-4o-mini", "gpt-4o-mini")
    assert result["provider"] == "openai"
    assert (result["subagent_executions"], result["final_structured"]) == ([], None)
    assert result["usage_aggregate"] == {
        "llm_calls": 3, "input_tokens": 33, "output_tokens": 21, "total_tokens": 54, "cached_input_tokens": 0,
        "reasoning_tokens": 0,
    }  # fmt: skip
    spent = sum(event["data"]["cost_usd"] for event in of_type(await client.events(run["run_id"]), "llm_completed"))
    assert 0 < spent == pytest.approx(result["total_cost_usd"])
    assert [tool["output"] for tool in result["tool_executions"]] == [LETTERS, 42]
    for tool in result["tool_executions"]:
        assert (tool["success"], tool["error"]) == (True, None)
        assert 0 < tool["latency_ms"] < 10_000
        assert (tool["agent_name"], tool["agent_depth"], tool["agent_path"]) == (agent_name, 0, agent_name)
    snapshot = result["state_snapshot"]
    assert (snapshot["step"], snapshot["llm_calls"], snapshot["tool_calls"]) == (3, 3, 2)
    assert (snapshot["attempts"], snapshot["replayed_effects"]) == (1, 0)
    assert TIME.fullmatch(snapshot["started_at"])
    assert 0 < snapshot["elapsed_s"] < 30
    assert (run["step"], run["attempt"], run["agent_version"]) == (3, 1, 1)
    assert (run["waiting_for"], run["pause_requested"], run["metadata"]) == ([], False, {"team": "a"})


async def test_a_run_is_rows_that_others_can_read(
    client: Client, model: Model, agent_name: str, shared_database: asyncpg.Connection[Any]
) -> None:
    run = await whole_run(client, model, agent_name)
    run_id = run["run_id"]
    row = await shared_database.fetchrow("SELECT * FROM runs WHERE run_id = $1::uuid", run_id)
    assert row is not None
    assert (row["status"], row["owner"], row["attempt"]) == ("completed", None, 1)
    assert (row["llm_calls"], row["input_tokens"], row["last_seq"]) == (3, 33, run["last_event_seq"])
    assert "tool_executions" not in orjson.loads(row["result"])  # scalars only; the lists are read from rows

    seqs = await shared_database.fetch("SELECT seq FROM run_events WHERE run_id = $1::uuid ORDER BY seq", run_id)
    assert [record["seq"] for record in seqs] == list(range(1, run["last_event_seq"] + 1))

    messages = await shared_database.fetch(
        "SELECT role, seq FROM messages WHERE run_id = $1::uuid AND NOT voided ORDER BY seq", run_id
    )
    assert [record["role"] for record in messages] == ["user", "assistant", "tool", "assistant", "tool", "assistant"]

    checkpoints = await shared_database.fetch(
        "SELECT step, phase, message_seq FROM checkpoints WHERE run_id = $1::uuid ORDER BY seq", run_id
    )
    assert [(record["step"], record["phase"]) for record in checkpoints] == [
        (1, "call_model"), (1, "execute_tools"), (2, "call_model"), (2, "execute_tools"), (3, "call_model"),
        (3, "finish"),
    ]  # fmt: skip
    assert checkpoints[-1]["message_seq"] == messages[-1]["seq"]

    executions = await shared_database.fetch(
        "SELECT * FROM tool_executions WHERE run_id = $1::uuid ORDER BY step, call_index", run_id
    )
    assert [(record["step"], record["tool_call_id"], record["effect"]) for record in executions] == [
        (1, "call_1", "read_only"),
        (2, "call_2", "read_only"),
    ]
    assert all(record["started_at"] <= record["finished_at"] for record in executions)


async def test_every_step_of_a_run_can_be_looked_at_as_it_was(client: Client, model: Model, agent_name: str) -> None:
    url = f"/runs/{(await whole_run(client, model, agent_name))['run_id']}/checkpoints"
    checkpoints = (await client.http.get(url)).json()["items"]
    assert [(checkpoint["step"], checkpoint["next_action"]) for checkpoint in checkpoints] == [
        (1, "call_model"), (1, "execute_tools"), (2, "call_model"), (2, "execute_tools"), (3, "call_model"),
        (3, "finish"),
    ]  # fmt: skip
    seen: list[list[str]] = []
    for checkpoint in checkpoints:
        detail = (await client.http.get(f"{url}/{checkpoint['checkpoint_id']}")).json()
        assert {key: detail[key] for key in checkpoint} == checkpoint
        assert detail["state"]
        seen.append([message["role"] for message in detail["messages"]])
    whole = ["user", "assistant", "tool", "assistant", "tool", "assistant"]
    assert seen == [whole[:count] for count in (1, 2, 3, 4, 5, 6)]


async def test_the_model_is_sent_the_conversation_with_its_tool_calls(
    client: Client, model: Model, agent_name: str
) -> None:
    await whole_run(client, model, agent_name)
    first, _, last = model.requests()
    assert [message["role"] for message in first["messages"]] == ["system", "user"]
    assert "You serve Ada." in first["messages"][0]["content"]
    assert [tool["function"]["name"] for tool in first["tools"]] == ["lookup", "calculate"]
    roles = ["system", "user", "assistant", "tool", "assistant", "tool"]
    assert [message["role"] for message in last["messages"]] == roles
    assert last["messages"][2]["tool_calls"][0]["id"] == last["messages"][3]["tool_call_id"] == "call_1"
    assert last["messages"][4]["tool_calls"][0]["id"] == last["messages"][5]["tool_call_id"] == "call_2"


async def test_polling_waiting_and_streaming_give_the_same_run(client: Client, model: Model, agent_name: str) -> None:
    await put_agent(client, agent_name)
    body = {"agent": agent_name, "input": "How long is the word?"}
    script(model)
    created = await client.create(**body)
    assert created["status"] in ("queued", "running")
    polled = await client.until(created["run_id"], "completed")
    script(model)
    waited = await client.create_and_wait(**body)
    script(model)
    async with client.http.stream("POST", "/runs/stream", json=body) as response:
        sent = [event async for event in sent_events(response)]
        run_id = response.headers["run-id"]
    streamed = await client.get(run_id)
    assert {event.event["run_id"] for event in sent} == {run_id}
    assert [event.event for event in sent] == await client.events(run_id)

    assert await client.get(waited["run_id"]) == waited
    runs = (polled, waited, streamed)
    assert _same(polled) == _same(waited) == _same(streamed)
    logs = [[_same_event(e) for e in await client.events(r["run_id"]) if "_delta" not in e["type"]] for r in runs]
    assert logs[0] == logs[1] == logs[2]


def _same(run: Json) -> Json:
    """A run without what differs between two runs that did the same."""
    changing = {"run_id", "thread_id", "created_at", "started_at", "finished_at", "last_event_seq", "result"}
    kept = {key: value for key, value in run.items() if key not in changing}
    result = {key: value for key, value in run["result"].items() if key not in changing}
    snapshot = {key: value for key, value in result["state_snapshot"].items() if key not in ("started_at", "elapsed_s")}
    tools = [{**tool, "latency_ms": 0} for tool in result["tool_executions"]]
    return {**kept, "result": {**result, "state_snapshot": snapshot, "tool_executions": tools}}


def _same_event(event: Json) -> Json:
    changing = {"seq", "created_at", "run_id", "thread_id"}
    kept = {key: value for key, value in event.items() if key not in changing}
    return {**kept, "data": {key: value for key, value in event["data"].items() if key != "latency_ms"}}
