"""Real answers are what the OpenAPI document says."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import httpx
import orjson
import pytest

from tests.contract.http.conftest import Fits

AGENT: dict[str, Any] = {"model": "demo/assistant", "tools": ["calculate"], "limits": {"max_steps": 3}}


@pytest.fixture
def agent(http: httpx.Client) -> Iterator[str]:
    name = f"agent-{uuid.uuid4()}"
    http.put(f"/agents/{name}", json=AGENT).raise_for_status()
    yield name
    http.delete(f"/agents/{name}")


def test_agents(http: httpx.Client, fits: Fits) -> None:
    path = f"/agents/agent-{uuid.uuid4()}"
    assert fits("put_agent", http.put(path, json=AGENT))["version"] == 1
    again = http.put(path, json=fits("get_agent", http.get(path))["definition"])
    assert again.status_code == 200
    assert fits("put_agent", again)["version"] == 1
    assert fits("put_agent", http.put(path, json={**AGENT, "instructions": "Be brief."}))["version"] == 2
    assert fits("get_agent", http.get(path, params={"version": 1}))["definition"]["instructions"] == ""
    assert [each["version"] for each in fits("list_agent_versions", http.get(f"{path}/versions"))["items"]] == [2, 1]
    assert fits("list_agents", http.get("/agents", params={"limit": 1}))["items"]
    fits("put_agent", http.put(path, json={**AGENT, "tools": ["none"]}))
    fits("delete_agent", http.delete(path))
    assert fits("get_agent", http.get(path))["code"] == "unknown_agent"
    assert fits("list_tools", http.get("/tools"))["items"]


def test_a_run_from_its_creation_to_its_deletion(http: httpx.Client, fits: Fits, agent: str) -> None:
    body = {"agent": agent, "input": "What is 2 * 3?", "metadata": {"test": agent}}
    answer = http.post("/runs", json=body)
    run_id = fits("create_run", answer)["run_id"]
    assert answer.headers["location"] == f"/runs/{run_id}"
    run = fits("wait_run", http.get(f"/runs/{run_id}/wait"))
    assert run["status"] == run["result"]["state"] == "completed"
    assert fits("get_run", http.get(f"/runs/{run_id}")) == run
    listed = fits("list_runs", http.get("/runs", params={"metadata": f"test:{agent}"}))["items"]
    assert listed == [{**run, "result": None}]
    assert fits("list_thread_runs", http.get(f"/threads/{run['thread_id']}/runs"))["items"] == listed

    checkpoints = fits("list_checkpoints", http.get(f"/runs/{run_id}/checkpoints"))["items"]
    assert checkpoints
    last = checkpoints[-1]
    found = fits("get_checkpoint", http.get(f"/runs/{run_id}/checkpoints/{last['checkpoint_id']}"))
    assert found.items() >= last.items()
    assert found["messages"] == fits("list_messages", http.get(f"/threads/{run['thread_id']}/messages"))["items"]

    assert fits("cancel_run", http.post(f"/runs/{run_id}/cancel")) == run
    assert fits("interrupt_run", http.post(f"/runs/{run_id}/interrupt")) == run
    assert fits("resume_run", http.post(f"/runs/{run_id}/resume")) == run
    assert fits("pause_run", http.post(f"/runs/{run_id}/pause"))["current_status"] == "completed"
    fits("delete_run", http.delete(f"/runs/{run_id}"))
    assert fits("get_run", http.get(f"/runs/{run_id}"))["code"] == "not_found"


def test_every_way_to_create_runs(http: httpx.Client, fits: Fits, agent: str) -> None:
    body = {"agent": agent, "input": [{"role": "user", "content": "hello"}]}
    key = {"Idempotency-Key": str(uuid.uuid4())}
    waited = http.post("/runs/wait", json=body, headers=key)
    run = fits("create_run_and_wait", waited)
    again = http.post("/runs", json=body, headers=key)
    assert (fits("create_run", again), again.headers["idempotency-replayed"]) == (run, "true")
    streamed = http.post("/runs/stream", json=body, headers=key)
    fits("create_run_and_stream", streamed)
    assert streamed.headers["run-id"] == run["run_id"]
    fits("create_run", http.post("/runs", json={**body, "user_id": "u"}, headers=key))
    made = fits("create_runs", http.post("/runs/batch", json={"items": [body, body]}))["items"]
    for each in made:
        fits("wait_run", http.get(f"/runs/{each['run_id']}/wait"))


def test_events_are_the_same_in_the_stream_and_in_the_list(http: httpx.Client, fits: Fits, agent: str) -> None:
    run = http.post("/runs/wait", json={"agent": agent, "input": "What is 2 * 3?"}).json()
    path = f"/runs/{run['run_id']}/events"
    stream = http.get(path)
    fits("stream_run_events", stream)
    lines = [line.removeprefix("data: ") for line in stream.text.split("\n") if line.startswith("data: ")]
    listed: list[str] = []
    after: int | None = 0
    while after is not None:
        answer = http.get(f"{path}/list", params={"after": after, "limit": 4})
        page = fits("list_run_events", answer)
        listed += [orjson.dumps(event).decode() for event in page["items"]]
        after = page["next_cursor"]
    assert [orjson.dumps(orjson.loads(line)).decode() for line in lines] == listed
    assert len(lines) == run["last_event_seq"]
    last = {"Last-Event-ID": str(len(lines))}
    assert http.get(path, headers=last).status_code == 204
    fits("stream_run_events", http.get(path, headers={"Last-Event-ID": str(len(lines) + 1)}))


def test_threads(http: httpx.Client, fits: Fits) -> None:
    thread_id = f"thread-{uuid.uuid4()}"
    path = f"/threads/{thread_id}"
    made = fits("create_thread", http.post("/threads", json={"thread_id": thread_id, "metadata": {"t": thread_id}}))
    assert fits("get_thread", http.get(path)) == {**made, "compaction": None}
    assert fits("create_thread", http.post("/threads", json={"thread_id": thread_id}))["code"] == "conflict"
    assert fits("list_threads", http.get("/threads", params={"metadata.t": thread_id}))["items"] == [made]
    changed = fits("update_thread", http.patch(path, json={"metadata": {"more": "x"}}))
    assert changed["metadata"] == {"t": thread_id, "more": "x"}
    for role in ("user", "assistant", "system"):
        fits("append_message", http.post(f"{path}/messages", json={"role": role, "content": "hello"}))
    copied = fits("copy_thread", http.post(f"{path}/copy", json={"up_to_seq": 2}))
    messages = fits("list_messages", http.get(f"/threads/{copied['thread_id']}/messages"))["items"]
    assert [(each["seq"], each["role"]) for each in messages] == [(1, "user"), (2, "assistant")]
    page = fits("list_messages", http.get(f"{path}/messages", params={"limit": 1, "after": 1}))
    assert (page["items"][0]["seq"], page["next_cursor"]) == (2, 2)
    fits("delete_thread", http.delete(path))
    assert fits("get_thread", http.get(path))["code"] == "not_found"


def test_the_service_itself(http: httpx.Client, fits: Fits) -> None:
    for operation_id in ("healthz", "readyz", "info"):
        fits(operation_id, http.get(f"/{operation_id}"))


def test_a_body_that_never_ends_is_refused_before_it_does(http: httpx.Client, fits: Fits) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(64):
            yield b" " * 65536

    answer = http.post("/threads", content=chunks(), headers={"Content-Type": "application/json"})
    assert fits("create_thread", answer)["code"] == "payload_too_large"
