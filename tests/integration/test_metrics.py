"""What a replica tells Prometheus about the runs that it executes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from app.api import build_api
from app.db.database import Database
from app.replica.description import MAX_BODY_BYTES
from app.replica.lifespan import running_replica
from app.settings import Settings
from tests.contract.stores import create_started, postgres_subject
from tests.exposition import Exposition

AGENT = {"name": "helper", "model": "demo/assistant", "tools": ["calculate"]}


@asynccontextmanager
async def serving(settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    """A caller of a replica that is at work."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield

    async with running_replica(settings) as replica:
        app = build_api(lifespan=lifespan, max_body_bytes=MAX_BODY_BYTES)
        app.state.services = replica.services
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://replica") as client:
            yield client


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    return Settings.load(database_url=database_url, agents_dir=tmp_path)


async def metrics_of(client: httpx.AsyncClient) -> Exposition:
    answer = await client.get("/metrics")
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    return Exposition(answer.content)


async def test_a_run_is_seen_in_the_numbers(settings: Settings) -> None:
    async with serving(settings) as client:
        run = await client.post("/runs/wait", json={"agent": AGENT, "input": "What is 17 * 23?"})
        assert run.json()["status"] == "completed", run.text
        seen = await metrics_of(client)
    usage = run.json()["result"]["usage_aggregate"]
    whose = {"gen_ai_provider_name": "demo", "gen_ai_request_model": "assistant"}
    assert seen.value("agent_runner_run_duration_seconds_count", status="completed") == 1
    assert seen.value("agent_runner_runs_claimed_total") == 1
    assert seen.value("gen_ai_client_operation_duration_seconds_count", **whose) == 2
    assert seen.value("gen_ai_client_token_usage_sum", gen_ai_token_type="input") == usage["input_tokens"]
    assert seen.value("gen_ai_client_token_usage_sum", gen_ai_token_type="output") == usage["output_tokens"]
    called = {"gen_ai_tool_name": "calculate", "outcome": "success"}
    assert seen.value("agent_runner_tool_duration_seconds_count", **called) == 1
    assert seen.value("agent_runner_runs_under_way") == 0
    assert seen.value("agent_runner_db_connections", pool="execution") >= 1


async def test_a_run_that_its_caller_ends_is_counted_once(settings: Settings) -> None:
    async with serving(settings) as client:
        waiting = {"agent": AGENT, "input": "hello", "start_after": "2100-01-01T00:00:00Z"}
        run_id = (await client.post("/runs", json=waiting)).json()["run_id"]
        for _ in range(2):
            assert (await client.post(f"/runs/{run_id}/cancel")).json()["status"] == "cancelled"
        seen = await metrics_of(client)
    assert seen.value("agent_runner_run_duration_seconds_count") == 1
    assert seen.value("agent_runner_run_duration_seconds_count", status="cancelled") == 1
    assert seen.value("agent_runner_runs_claimed_total") == 0


async def test_a_run_of_a_dead_replica_is_counted_as_recovered(settings: Settings, database: Database) -> None:
    subject = await postgres_subject(database)
    orphan = await create_started(subject.store)
    async with serving(settings) as client:
        run = await client.get(f"/runs/{orphan.run_id}/wait")
        seen = await metrics_of(client)
    assert seen.value("agent_runner_runs_recovered_total") == 1
    assert seen.value("agent_runner_runs_claimed_total") == 1
    assert seen.value("agent_runner_run_duration_seconds_count", status=run.json()["status"]) == 1


async def test_two_replicas_count_apart(settings: Settings) -> None:
    async with serving(settings) as one, serving(settings) as other:
        await one.post("/runs/wait", json={"agent": AGENT, "input": "hello"})
        ends = "agent_runner_run_duration_seconds_count"
        counts = [(await metrics_of(client)).value(ends) for client in (one, other)]
    assert sum(counts) == 1
