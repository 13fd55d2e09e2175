"""The embedded Postgres of a service that serves: it dies, and comes back under it."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.db.embedded.postmaster import Postmaster
from tests.acceptance.client import Client, an_agent
from tests.acceptance.conftest import Caller, Serve, Settings
from tests.acceptance.model import Model
from tests.acceptance.service import Service
from tests.acceptance.waiting import eventually, holds
from tests.model_server import Reply


@pytest.fixture
def data_dir() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="agent-runner-kept-", dir="/tmp"))
    yield folder
    server = Postmaster.of(folder / "postgres")
    if server is not None and server.is_running():
        os.kill(server.pid, signal.SIGKILL)
    shutil.rmtree(folder, ignore_errors=True)


def server_of(data_dir: Path) -> int:
    server = Postmaster.of(data_dir / "postgres")
    assert server is not None
    return server.pid


async def killed_and_back(service: Service, client: Client, data_dir: Path, times: int) -> None:
    """Kill the server and wait until the service says for the `times`th time that it is there again, and is ready."""
    server = server_of(data_dir)
    os.kill(server, signal.SIGKILL)
    await holds(lambda: service.stderr().count("database_started") == times, "the database to be started again")
    assert service.stderr().count("database_died") == times
    assert server_of(data_dir) != server

    async def ready() -> bool:
        return (await client.http.get("/readyz")).status_code == 200

    await eventually(ready, "the service to be ready again")


@pytest.mark.parametrize("deep", [False, True], ids=["plain folder", "folder too long for a socket"])
@pytest.mark.parametrize("workers", ["1", "2"])
async def test_a_database_that_is_killed_comes_back_with_all_that_was_in_it(
    workers: str, deep: bool, data_dir: Path, settings: Settings, serve: Serve, caller: Caller, model: Model
) -> None:
    """Again and again, at the address where the workers look for it; the stop at the end is as ever.

    Seen to fail without the keeper; with a new socket folder at each start, in the long folder.
    """
    data_dir = data_dir / ("a folder, " + "with a long name " * 8) if deep else data_dir
    service = serve(settings(DATA_DIR=str(data_dir), WORKERS=workers)).ready()
    client = caller(service)
    model.script(Reply(text="Before."), Reply(text="After."))
    before = await client.create_and_wait(agent=an_agent(), input="Go.")
    for times in (1, 2):
        await killed_and_back(service, client, data_dir, times)
    assert (await client.get(before["run_id"]))["result"]["final_text"] == "Before."
    after = await client.create_and_wait(agent=an_agent(), input="Go on.")
    assert after["result"]["final_text"] == "After."
    service.terminate()
    assert await asyncio.to_thread(service.ended) == 0
    assert "Traceback" not in service.stderr()
    assert service.stderr().count("database_died") == 2
    assert Postmaster.of(data_dir / "postgres") is None


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_a_database_that_cannot_be_started_again_ends_the_service_with_the_reason(
    workers: str, data_dir: Path, settings: Settings, serve: Serve
) -> None:
    """Seen to fail without the keeper's failure raised in place of the exit: the exit code is 0 then."""
    service = serve(settings(DATA_DIR=str(data_dir), WORKERS=workers, SHUTDOWN_GRACE_S="3")).ready()
    with (data_dir / "postgres" / "postgresql.conf").open("a") as file:
        file.write("no_such_setting = on\n")
    os.kill(server_of(data_dir), signal.SIGKILL)
    assert await asyncio.to_thread(service.ended) == 1
    told = service.stderr()
    assert "database_cannot_be_started" in told
    assert "agent-runner: The embedded Postgres" in told
    assert "no_such_setting" in told.rpartition("agent-runner: The embedded Postgres")[2]
    assert "Traceback" not in told
