"""Forks are what the OpenAPI document says."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.contract.http.conftest import Fits

ASSISTANT: dict[str, Any] = {"model": "demo/assistant", "tools": ["calculate"]}


@pytest.fixture
def run(http: httpx.Client) -> Iterator[dict[str, Any]]:
    """A run of two steps of a stored agent that nobody else has."""
    name = f"agent-{uuid.uuid4()}"
    http.put(f"/agents/{name}", json=ASSISTANT).raise_for_status()
    yield http.post("/runs/wait", json={"agent": name, "input": "What is 2 * 3?"}).raise_for_status().json()
    http.delete(f"/agents/{name}")


def _forked(http: httpx.Client, fits: Fits, run_id: str, body: dict[str, Any] | None) -> dict[str, Any]:
    answer = http.post(f"/runs/{run_id}/fork", json=body)
    made = fits("fork_run", answer)
    assert (answer.status_code, answer.headers["location"]) == (202, f"/runs/{made['run_id']}")
    done = fits("wait_run", http.get(f"/runs/{made['run_id']}/wait"))
    assert done["status"] == "completed"
    assert fits("get_run", http.get(f"/runs/{made['run_id']}")) == done
    return done


def test_a_run_is_forked_from_each_of_its_checkpoints(http: httpx.Client, fits: Fits, run: dict[str, Any]) -> None:
    checkpoints = fits("list_checkpoints", http.get(f"/runs/{run['run_id']}/checkpoints"))["items"]
    assert {each["step"] for each in checkpoints} == {1, 2}
    for checkpoint in checkpoints:
        body = {"checkpoint_id": checkpoint["checkpoint_id"]}
        if checkpoint["next_action"] == "call_model":
            assert _forked(http, fits, run["run_id"], body)["input"] == []
        else:
            refused = fits("fork_run", http.post(f"/runs/{run['run_id']}/fork", json=body))
            assert (refused["code"], refused["errors"][0]["loc"]) == ("validation_error", ["body", "input"])
        done = _forked(http, fits, run["run_id"], {**body, "input": "What is 3 * 4?", "context": {"a": 1}})
        assert done["forked_from"] == {"run_id": run["run_id"], **body}
        listed = fits("list_runs", http.get("/runs", params={"thread_id": done["thread_id"]}))["items"]
        assert listed == [{**done, "result": None}]
        messages = fits("list_messages", http.get(f"/threads/{done['thread_id']}/messages"))["items"]
        detail = http.get(f"/runs/{run['run_id']}/checkpoints/{checkpoint['checkpoint_id']}")
        taken = fits("get_checkpoint", detail)["messages"]
        assert [each["content"] for each in messages][: len(taken)] == [each["content"] for each in taken]


def test_what_a_fork_is_refused_for(http: httpx.Client, fits: Fits, run: dict[str, Any]) -> None:
    path = f"/runs/{run['run_id']}/fork"

    def code(body: dict[str, Any], path: str = path) -> str:
        return fits("fork_run", http.post(path, json=body))["code"]

    assert code({"input": "x", "thread_id": run["thread_id"]}) == "conflict"
    assert code({"input": "x", "checkpoint_id": "999"}) == "not_found"
    assert code({"input": "x"}, f"/runs/{uuid.uuid4()}/fork") == "not_found"
    assert code({"input": "x", "agent": "nobody"}) == "unknown_agent"
    assert code({"input": "x", "agent": {"name": "a", **ASSISTANT, "tools": ["none"]}}) == "unknown_tool"
    key = {"Idempotency-Key": str(uuid.uuid4())}
    first = fits("fork_run", http.post(path, json={"input": "x"}, headers=key))
    again = http.post(path, json={"input": "x"}, headers=key)
    assert (fits("fork_run", again)["run_id"], again.headers["idempotency-replayed"]) == (first["run_id"], "true")
    mismatch = fits("fork_run", http.post(path, json={"input": "y"}, headers=key))
    assert mismatch["code"] == "idempotency_mismatch"


def test_a_service_that_forks_says_so(http: httpx.Client, fits: Fits) -> None:
    assert "fork" in fits("info", http.get("/info"))["capabilities"]
