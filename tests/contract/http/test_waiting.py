"""Runs that wait for people, for callers and for each other are what the OpenAPI document says."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import orjson
import pytest

from tests.contract.http.conftest import Fits

ASSISTANT: dict[str, Any] = {"model": "demo/assistant", "tools": ["calculate"]}
ASKING: dict[str, Any] = {
    **ASSISTANT,
    "interaction_mode": "external",
    "policy": {
        "rules": [{"rule_id": "ask", "action": "request_approval", "subjects": ["tool_call"], "reason": "who knows"}]
    },
}
EXPRESSION = {"type": "object", "properties": {"expression": {"type": "string"}}, "required": ["expression"]}
CALLING: dict[str, Any] = {
    "model": "demo/assistant",
    "tool_definitions": [{"type": "caller", "name": "calculate", "parameters": EXPRESSION}],
}

Save = Callable[..., str]


@pytest.fixture
def save(http: httpx.Client) -> Iterator[Save]:
    """Saves an agent under a name that nobody else has, unless one is given."""
    names: list[str] = []

    def put(settings: dict[str, Any], name: str | None = None) -> str:
        name = name or f"agent-{uuid.uuid4()}"
        http.put(f"/agents/{name}", json=settings).raise_for_status()
        names.append(name)
        return name

    yield put
    for name in names:
        http.delete(f"/agents/{name}")


def _waiting_run(http: httpx.Client, fits: Fits, agent: str) -> dict[str, Any]:
    run = fits("create_run_and_wait", http.post("/runs/wait", json={"agent": agent, "input": "What is 2 * 3?"}))
    assert run["status"] == "waiting"
    return run


def _ended(http: httpx.Client, fits: Fits, run_id: str) -> dict[str, Any]:
    run = fits("wait_run", http.get(f"/runs/{run_id}/wait"))
    assert run["waiting_for"] == []
    return run


def _events(http: httpx.Client, path: str) -> list[dict[str, Any]]:
    lines = http.get(path).text.split("\n")
    return [orjson.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]


def test_a_call_that_a_person_approves(http: httpx.Client, fits: Fits, save: Save) -> None:
    run = _waiting_run(http, fits, save(ASKING))
    path = f"/runs/{run['run_id']}/interactions"
    (question,) = fits("list_run_interactions", http.get(path))["items"]
    assert run["waiting_for"] == [{"kind": "interaction", "id": question["interaction_id"]}]
    assert (question["kind"], question["tool_name"], question["reason"]) == ("approval", "calculate", "who knows")
    assert question["arguments"] == {"expression": "2 * 3"}
    inbox = fits("list_interactions", http.get("/interactions", params={"status": "pending", "limit": 100}))["items"]
    assert question in inbox
    path = f"{path}/{question['interaction_id']}"

    fits("resolve_interaction", http.post(path, json={"decision": "approve", "value": 6}))
    fits("resolve_interaction", http.post(path, json={"decision": "approve", "arguments": {"formula": "1"}}))
    assert fits("resolve_interaction", http.post(f"{path}0", json={"decision": "deny"}))["code"] == "not_found"
    answer = {"decision": "approve", "arguments": {"expression": "2 * 4"}, "decided_by": "ann"}
    resolved = fits("resolve_interaction", http.post(path, json=answer))
    assert (resolved["status"], resolved["decision"], resolved["decided_by"]) == ("resolved", "approve", "ann")
    done = _ended(http, fits, run["run_id"])
    assert [call["output"] for call in done["result"]["tool_executions"]] == [8]
    assert fits("resolve_interaction", http.post(path, json=answer)) == resolved
    other = http.post(path, json={"decision": "deny"})
    assert other.status_code == 409
    assert fits("resolve_interaction", other)["current_status"] == "completed"

    types = [event["type"] for event in _events(http, f"/runs/{run['run_id']}/events")]
    expected = ["policy_decision", "interaction_requested", "run_waiting", "interaction_resolved", "run_resumed"]
    assert [type_ for type_ in types if type_ in expected] == expected
    fits("list_run_events", http.get(f"/runs/{run['run_id']}/events/list", params={"limit": 100}))


def test_a_call_that_a_person_denies(http: httpx.Client, fits: Fits, save: Save) -> None:
    run = _waiting_run(http, fits, save(ASKING))
    path = f"/runs/{run['run_id']}/interactions/{run['waiting_for'][0]['id']}"
    fits("resolve_interaction", http.post(path, json={"decision": "deny", "reason": "not today"}))
    (call,) = _ended(http, fits, run["run_id"])["result"]["tool_executions"]
    assert call["success"] is False
    assert "not today" in call["error"]


def test_a_call_that_the_caller_runs(http: httpx.Client, fits: Fits, save: Save) -> None:
    run = _waiting_run(http, fits, save(CALLING))
    ((kind, call_id),) = [(each["kind"], each["id"]) for each in run["waiting_for"]]
    assert kind == "tool_result"
    path = f"/runs/{run['run_id']}/tool-calls/{call_id}/result"
    fits("submit_tool_result", http.post(path, json={}))
    assert fits("submit_tool_result", http.post(path.replace(call_id, "x"), json={"output": 1}))["code"] == "not_found"
    receipt = fits("submit_tool_result", http.post(path, json={"output": 6}))
    assert (receipt["accepted"], receipt["run_status"]) == (True, "queued")
    done = _ended(http, fits, run["run_id"])
    assert [call["output"] for call in done["result"]["tool_executions"]] == [6]
    again = fits("submit_tool_result", http.post(path, json={"output": 6}))
    assert (again["accepted"], again["run_status"]) == (False, "completed")
    other = http.post(path, json={"error": "lost"})
    assert other.status_code == 409
    fits("submit_tool_result", other)


def test_a_run_with_child_runs(http: httpx.Client, fits: Fits, save: Save) -> None:
    save(ASSISTANT, "calculator")
    agent = save({"model": "scripted/lead", "subagents": ["calculator"]})
    run = fits("create_run_and_wait", http.post("/runs/wait", json={"agent": agent, "input": "go"}))
    assert run["status"] == "completed"
    delegated = run["result"]["subagent_executions"]
    assert [(each["subagent_name"], each["success"]) for each in delegated] == [("calculator", True)] * 2
    children = fits("list_runs", http.get("/runs", params={"parent_run_id": run["run_id"]}))["items"]
    assert {child["run_id"] for child in children} == {each["run_id"] for each in delegated}
    child = fits("get_run", http.get(f"/runs/{delegated[0]['run_id']}"))
    (call,) = child["result"]["tool_executions"]
    assert (call["agent_depth"], call["agent_path"]) == (1, f"{agent}>calculator")

    merged = http.get(f"/runs/{run['run_id']}/events", params={"subagents": "true"})
    fits("stream_run_events", merged)
    told = _events(http, f"/runs/{run['run_id']}/events?subagents=true")
    for each in (run, *children):
        own = [event for event in told if event["run_id"] == each["run_id"]]
        flat = [event["data"]["event"] if event["type"] == "subagent_event" else event for event in own]
        assert flat == _events(http, f"/runs/{each['run_id']}/events")
    ids = [line.removeprefix("id: ") for line in merged.text.split("\n") if line.startswith("id: ")]
    header = {"Last-Event-ID": ids[-1]}
    path = f"/runs/{run['run_id']}/events"
    assert http.get(path, params={"subagents": "true"}, headers=header).status_code == 204
    fits("stream_run_events", http.get(path, headers=header))

    fits("delete_run", http.delete(f"/runs/{run['run_id']}"))
    assert fits("get_run", http.get(f"/runs/{children[0]['run_id']}"))["code"] == "not_found"


def test_an_agent_that_cannot_be_is_refused_where_it_cannot(http: httpx.Client, fits: Fits, save: Save) -> None:
    name = save(ASSISTANT)
    refused = fits("put_agent", http.put(f"/agents/{name}", json={**ASSISTANT, "subagents": [name]}))
    assert (refused["code"], refused["errors"][0]["loc"]) == ("validation_error", ["body", "subagents", 0])
    http_tool = {"type": "http", "name": "get", "url": "https://example.com"}
    refused = fits("put_agent", http.put(f"/agents/{name}", json={**ASSISTANT, "tool_definitions": [http_tool]}))
    assert refused["errors"][0]["loc"] == ["body", "tool_definitions", 0]
