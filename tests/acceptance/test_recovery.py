"""Recovery that holds: at once where the process is known to be gone, and without a neighbour paying for a crash."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import TypeAlias

import asyncpg
import psutil
import pytest

from tests.acceptance.client import Client, Json, an_agent, check_log, of_type
from tests.acceptance.conftest import Caller, Serve, Settings
from tests.acceptance.gates import Gate, Gates
from tests.acceptance.model import SILENT, Model, calls
from tests.acceptance.service import Service
from tests.acceptance.waiting import DEADLINE_S, eventually, holds
from tests.exposition import Exposition
from tests.model_server import Reply

# Whoever waits for a lease to run out waits for longer than the tests do.
LONG_LEASE_S = "60"
NEIGHBOURS = 30
READER: Json = {"name": "reader", "model": "openai/obey", "tools": ["read"]}

Database: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


@pytest.fixture
async def look(database_url: str) -> AsyncIterator[Database]:
    connection = await asyncpg.connect(database_url)
    yield connection
    await connection.close()


def through(gate: Gate) -> str:
    return json.dumps([[["read", {"gate": gate.name}]]])


async def gauge(client: Client, name: str) -> float:
    return Exposition((await client.http.get("/metrics")).content).value(name)


def test_a_long_lease_is_longer_than_a_test_waits() -> None:
    assert float(LONG_LEASE_S) > 1.5 * DEADLINE_S


async def test_a_lone_replica_that_was_killed_and_started_again_goes_on_at_once(
    database_url: str, settings: Settings, serve: Serve, caller: Caller, model: Model
) -> None:
    """Seen to fail where a starting replica does not remove the rows of those whose process is gone."""
    environment = settings(DATABASE_URL=database_url, LEASE_S=LONG_LEASE_S)
    first = serve(environment).ready()
    model.script(SILENT, Reply(text="Still here."))
    run_id = (await caller(first).create(agent=an_agent(), input="Go."))["run_id"]
    await model.asked()
    first.kill()
    client = caller(serve(environment).ready())
    done = await client.wait(run_id)
    assert (done["status"], done["result"]["final_text"], done["attempt"]) == ("completed", "Still here.", 2)


async def test_the_worker_that_replaces_a_killed_one_takes_its_runs_over_at_once(
    database_url: str, settings: Settings, serve: Serve, caller: Caller, model: Model, look: Database
) -> None:
    """Seen to fail where a starting replica does not remove the rows of those whose process is gone."""
    service = serve(settings(DATABASE_URL=database_url, LEASE_S=LONG_LEASE_S, WORKERS="2")).ready()
    model.script(SILENT, Reply(text="Still here."))
    run_id = (await caller(service).create(agent=an_agent(), input="Go."))["run_id"]
    await model.asked()
    pid = await look.fetchval(
        "SELECT pid FROM runs JOIN replicas ON incarnation = owner WHERE run_id = $1::uuid", run_id
    )
    psutil.Process(pid).kill()
    async with Client(service.url) as again:  # the first one's connection may have been to that worker
        done = await again.wait(run_id)
    assert (done["status"], done["result"]["final_text"], done["attempt"]) == ("completed", "Still here.", 2)


async def test_a_run_that_takes_its_process_down_ends_alone(
    database_url: str, settings: Settings, serve: Serve, caller: Caller, gates: Gates, look: Database
) -> None:
    """One run kills the process whenever it is under way; the runs beside it complete.

    Seen to fail where a claim takes suspects as it takes any other run: then all of them are under way at once.
    """
    environment = settings(DATABASE_URL=database_url, LEASE_S=LONG_LEASE_S)
    deadly, harmless = gates.new(), gates.new()

    async def start() -> tuple[Service, Client]:
        service = serve(environment).ready()
        return service, caller(service)

    service, client = await start()
    neighbours = [(await client.create(agent=READER, input=through(harmless)))["run_id"] for _ in range(NEIGHBOURS)]
    await harmless.entered(NEIGHBOURS)
    killer = (await client.create(agent=READER, input=through(deadly)))["run_id"]
    for life in (1, 2):
        await deadly.entered(life)
        await harmless.entered(life * NEIGHBOURS)
        service.kill()
        service, client = await start()
    # All have been in two crashes now, and come one by one.
    entered = 2 * (NEIGHBOURS + 1)
    await holds(lambda: len(deadly.calls()) + len(harmless.calls()) > entered, "a suspect to be under way")
    assert await look.fetchval("SELECT count(*) FROM runs WHERE status = 'running'") == 1
    harmless.open()
    await deadly.entered(3)
    service.kill()
    service, client = await start()

    ended = await client.wait(killer)
    assert (ended["status"], ended["error"]["code"], ended["attempt"]) == ("failed", "poisoned", 3)
    for run_id in neighbours:
        assert (await client.wait(run_id))["status"] == "completed"
    assert len(deadly.calls()) == 3


async def test_a_run_without_progress_is_reported_and_goes_on(
    database_url: str, settings: Settings, serve: Serve, caller: Caller, model: Model, gate: Gate
) -> None:
    """Seen to fail without the look at the runs under way."""
    service = serve(settings(DATABASE_URL=database_url, STEP_DEADLINE_S="1")).ready()
    client = caller(service)
    model.script(calls(("read", {"gate": gate.name})), Reply(text="Done."))
    run_id = (await client.create(agent=an_agent(), input="Go."))["run_id"]
    await gate.entered()

    async def warned() -> list[Json]:
        return of_type(await client.events(run_id), "warning")

    (warning,) = await eventually(warned, "a warning")
    assert (warning["data"]["code"], warning["data"]["doing"], warning["step"]) == ("step_stalled", "read", 1)
    assert warning["data"]["seconds"] >= 1
    assert await gauge(client, "agent_runner_runs_stalled") == 1
    gate.open()
    done = await client.wait(run_id)
    assert (done["status"], done["result"]["final_text"]) == ("completed", "Done.")
    events = await client.events(run_id)
    check_log(events, done)
    assert of_type(events, "warning") == [warning]

    async def none_is_left() -> bool:
        return await gauge(client, "agent_runner_runs_stalled") == 0

    await eventually(none_is_left, "no run to be stalled")
    (line,) = [line for line in service.stderr().splitlines() if "run_stalled" in line]
    assert run_id in line
