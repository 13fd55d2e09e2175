"""Background work of a replica that ends though nobody asked it to: the replica must not look ready without it."""

from __future__ import annotations

import asyncio
import ctypes
import os
import shutil
import threading
from pathlib import Path

import httpx
import pytest

from app.db.embedded import EmbeddedPostgres
from app.db.migrate import upgrade
from app.replica.lifespan import MIGRATIONS_LOOK_S, running_replica
from app.settings import Settings
from tests.integration.serving import serving

TASKS = ["claim-loop", "lease-guard", "owned-runs", "read-runs", "due-runs", "recovery", "sweep", "delta-gatherer"]
TASKS += ["event-bus"]
SLOW = {"name": "slow", "model": "scripted/slow"}


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "slow.yaml").write_text("- {text: too late, delay_s: 600}\n")
    return Settings.load(database_url=database_url, agents_dir=tmp_path, lease_s=5)


async def unready(client: httpx.AsyncClient, name: str) -> None:
    """Wait until the replica says that it cannot do its work without the task."""
    async with asyncio.timeout(20):
        while (answer := await client.get("/readyz")).status_code == 200 or name not in answer.json()["detail"]:
            await asyncio.sleep(0.02)
    assert answer.status_code == 503
    assert "Retry-After" in answer.headers


async def queued_again(client: httpx.AsyncClient, run_id: str) -> None:
    async with asyncio.timeout(20):
        while (await client.get(f"/runs/{run_id}")).json()["status"] != "queued":
            await asyncio.sleep(0.02)


def task_named(name: str) -> asyncio.Task[object]:
    (task,) = [task for task in asyncio.all_tasks() if task.get_name() == name]
    return task


@pytest.mark.parametrize("name", TASKS)
async def test_a_replica_without_one_of_its_tasks_is_not_ready_and_names_it(settings: Settings, name: str) -> None:
    async with serving(settings) as client:
        assert (await client.get("/readyz")).status_code == 200
        task_named(name).cancel()
        await unready(client, f"'{name}'")


async def test_a_replica_that_stops_names_no_task(settings: Settings) -> None:
    async with running_replica(settings) as replica:
        await replica.drain()
        assert "shutting down" in str(await replica.services.health.unready_reason())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_a_replica_without_its_heartbeat_lets_go_of_its_runs(settings: Settings) -> None:
    async with serving(settings) as client:
        run_id = (await client.post("/runs", json={"agent": SLOW, "input": "Go."})).json()["run_id"]
        (heartbeat,) = [thread for thread in threading.enumerate() if thread.name == "heartbeat"]
        # What a defect of the interpreter, or of a library in C, would do to it: SystemExit passes every handler.
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(heartbeat.ident or 0), ctypes.py_object(SystemExit))
        await unready(client, "'heartbeat'")
        await queued_again(client, run_id)


async def test_a_replica_whose_lease_nobody_guards_lets_go_of_its_runs(settings: Settings) -> None:
    async with serving(settings) as client:
        run_id = (await client.post("/runs", json={"agent": SLOW, "input": "Go."})).json()["run_id"]
        task_named("lease-guard").cancel()
        await queued_again(client, run_id)
        assert (await client.post("/runs", json={"agent": SLOW, "input": "Go."})).json()["status"] == "queued"


async def test_a_replica_that_waits_for_its_tables_outlasts_an_outage(tmp_path: Path) -> None:
    folder = Path(f"/tmp/agent-runner-outage-{os.getpid()}")  # a name that its socket can have, time after time
    folder.mkdir()
    server = EmbeddedPostgres(folder)
    url = server.start()
    async with serving(Settings.load(database_url=url, agents_dir=tmp_path)) as client:
        assert "migrat" in (await client.get("/readyz")).json()["detail"]
        server.stop()
        await asyncio.sleep(2 * MIGRATIONS_LOOK_S)  # it looks in between
        assert server.start() == url
        await upgrade(url)
        async with asyncio.timeout(20):
            while (await client.get("/readyz")).status_code != 200:
                await asyncio.sleep(0.02)
    server.stop()
    shutil.rmtree(folder)
