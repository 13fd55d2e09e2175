"""What a service says and does while its database is not there, or not as it should be."""

from __future__ import annotations

import asyncio
import itertools
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from datetime import datetime
from pathlib import Path

import asyncpg
import httpx
import pytest

from app.db.embedded import EmbeddedPostgres
from app.db.embedded.postmaster import Postmaster
from app.telemetry.recurring import TOLD_EVERY_S
from tests.acceptance.client import Client, Sent, an_agent, check_log, problem
from tests.acceptance.conftest import Caller, Serve, Settings
from tests.acceptance.gates import Gate
from tests.acceptance.model import Model, calls
from tests.acceptance.service import PROGRAM, START_S
from tests.acceptance.waiting import eventually, holds
from tests.conftest import database_of
from tests.model_server import Reply

_numbers = itertools.count(1)
WORK = ("owned-runs", "due-runs", "expiry", "recovery")


@pytest.fixture
async def empty_database_url(postgres_server: str) -> AsyncIterator[str]:
    """A database without tables."""
    name = f"empty_{os.getpid()}_{next(_numbers)}"
    admin = await asyncpg.connect(postgres_server)
    await admin.execute(f"CREATE DATABASE {name}")
    yield database_of(postgres_server, name)
    await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
    await admin.close()


@pytest.fixture
def own_postgres() -> Iterator[Path]:
    """A folder for a Postgres server that the test may kill."""
    folder = Path(tempfile.mkdtemp(prefix="agent-runner-own-", dir="/tmp"))
    yield folder
    server = Postmaster.of(folder / "postgres")
    if server is not None and server.is_running():
        os.kill(server.pid, signal.SIGKILL)
    shutil.rmtree(folder, ignore_errors=True)


def migrate(url: str) -> None:
    """Run the program's `migrate`."""
    migrated = subprocess.run(
        [PROGRAM, "migrate"],
        env={"PATH": os.environ["PATH"], "DATABASE_URL": url},
        capture_output=True,
        text=True,
        timeout=START_S,
        check=False,
    )
    assert migrated.returncode == 0, migrated.stderr


def kill(folder: Path) -> None:
    """End the folder's server as a crash would."""
    server = Postmaster.of(folder / "postgres")
    assert server is not None
    os.kill(server.pid, signal.SIGQUIT)


async def until_ready(client: Client) -> None:
    async def look() -> bool:
        return (await client.http.get("/readyz")).status_code == 200

    await eventually(look, "the service to be ready")


async def test_a_service_without_tables_says_so_and_becomes_ready_by_itself_after_migrate(
    empty_database_url: str, settings: Settings, serve: Serve, caller: Caller, model: Model
) -> None:
    environment = settings(DATABASE_URL=empty_database_url)
    service = serve(environment).listening()
    assert "ready on" not in service.stdout()
    assert "not ready: run `agent-runner migrate`" in service.stdout()
    client = caller(service)
    assert (await client.http.get("/healthz")).status_code == 200
    refused = problem(await client.http.get("/readyz"), 503, "unavailable")
    assert "migrat" in refused["detail"]
    answer = await client.http.post("/runs", json={"agent": an_agent(), "input": "Too early."})
    problem(answer, 503, "unavailable")
    assert int(answer.headers["retry-after"]) > 0

    migrate(empty_database_url)
    await until_ready(client)
    model.script(Reply(text="Now it works."))
    assert (await client.create_and_wait(agent=an_agent(), input="Again."))["status"] == "completed"


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_a_database_that_is_not_there_stops_the_start_with_a_message(
    postgres_server: str, settings: Settings, serve: Serve, workers: str
) -> None:
    service = serve(settings(DATABASE_URL=database_of(postgres_server, "nowhere"), WORKERS=workers))
    assert service.ended() != 0
    told = service.stdout() + service.stderr()
    assert "nowhere" in told
    assert "Traceback" not in told


async def test_a_reader_is_let_go_when_the_database_dies_and_comes_back_for_the_rest(
    own_postgres: Path, settings: Settings, serve: Serve, caller: Caller, model: Model, gate: Gate
) -> None:
    first = EmbeddedPostgres(own_postgres)
    url = first.start()
    migrate(url)
    service = serve(settings(DATABASE_URL=url, LEASE_S="3")).ready()
    client = caller(service)
    model.script(calls(("put", {"gate": gate.name})), Reply(text="Survived."), Reply(text="Survived."))
    run_id = (await client.create(agent=an_agent(), input="Go."))["run_id"]
    await gate.entered()
    seen: list[Sent] = []

    async def read() -> None:
        async with client.stream(run_id) as events:
            async for sent in events:
                seen.append(sent)

    reader = asyncio.create_task(read())
    await holds(lambda: any(sent.type == "tool_started" for sent in seen), "the events so far")
    kill(own_postgres)
    # The readers have been told to look at the rows by then.
    await holds(lambda: "event_bus_disconnected" in service.stderr(), "the event bus to notice")
    second = EmbeddedPostgres(own_postgres)
    second.start()
    gate.open()
    await until_ready(client)
    done = await client.wait(run_id)
    await reader  # it may have ended early, but not in the middle of an answer
    if seen[-1].event["seq"] < done["last_event_seq"]:
        seen += await client.streamed(run_id, last_id=seen[-1].id)
    check_log([sent.event for sent in seen], done)
    first.stop()
    second.stop()
    assert "request_failed" not in service.stderr()


async def test_a_database_that_dies_is_told_and_the_service_recovers_with_its_runs(
    own_postgres: Path, settings: Settings, serve: Serve, caller: Caller, model: Model, gate: Gate
) -> None:
    first = EmbeddedPostgres(own_postgres)
    url = first.start()
    migrate(url)
    with_password = url.replace("postgres@", "postgres:very-secret@")
    service = serve(settings(DATABASE_URL=with_password, LEASE_S="3")).ready()
    client = caller(service)
    model.script(calls(("put", {"gate": gate.name})), Reply(text="Survived."), Reply(text="Survived."))
    run_id = (await client.create(agent=an_agent(), input="Go."))["run_id"]
    await gate.entered()
    before = await client.events(run_id)

    kill(own_postgres)

    async def told() -> httpx.Response | None:
        answer = await client.http.get("/readyz")
        return answer if answer.status_code == 503 else None

    assert "database" in problem(await eventually(told, "a 503"), 503, "unavailable")["detail"]
    for answer in (
        await client.http.get(f"/runs/{run_id}"),
        await client.http.get("/threads/any"),
        await client.http.post("/runs", json={"agent": an_agent(), "input": "Now?"}),
    ):
        assert int(answer.headers["retry-after"]) > 0
        problem(answer, 503, "unavailable")
    assert (await client.http.get("/healthz")).status_code == 200

    second = EmbeddedPostgres(own_postgres)
    assert second.start() == url
    gate.open()
    await until_ready(client)
    done = await client.wait(run_id)
    assert (done["status"], done["result"]["final_text"]) == ("completed", "Survived.")
    events = await client.events(run_id)
    check_log(events, done)
    assert events[: len(before)] == before
    first.stop()
    second.stop()
    assert "very-secret" not in service.stdout() + service.stderr()


def times_of(log: str, kind: str) -> list[float]:
    """When lines of that kind were logged, in seconds."""
    lines = [line for line in log.splitlines() if re.search(kind, line)]
    return [datetime.fromisoformat(line.split()[0]).timestamp() for line in lines]


async def test_a_database_that_is_away_is_told_once_and_now_and_then_and_once_when_it_is_back(
    own_postgres: Path, settings: Settings, serve: Serve, caller: Caller
) -> None:
    """What the log leaves out at its usual level are the lines at debug level.

    Seen to fail without the look at the clock in `Recurring`, without the filter of the pools' lines, and without the
    branch of the heartbeat for what it has told.
    """
    first = EmbeddedPostgres(own_postgres)
    url = first.start()
    migrate(url)
    service = serve(settings(DATABASE_URL=url, LEASE_S="3", LOG_LEVEL="debug")).ready()
    kill(own_postgres)
    for kind in ("due-runs", "owned-runs"):
        kind = rf"background_work_failed.*work={kind}"
        await holds(lambda kind=kind: len(times_of(service.stderr(), kind)) >= 5, f"five failures of {kind}")
    await holds(lambda: "heartbeat_failed" in service.stderr(), "the heartbeat to fail again")
    second = EmbeddedPostgres(own_postgres)
    second.start()
    await until_ready(caller(service))
    log = service.stderr()
    assert log.count("database_lost") == log.count("database_back") == 1
    assert "Traceback" not in log
    assert "cannot switch to state" not in log
    for kind in ("claim_failed", "event_bus_disconnected", *(f"work={work}" for work in WORK)):
        told = times_of(log, rf"\[warning\s*\].*{kind}")
        assert all(later - sooner > TOLD_EVERY_S - 1 for sooner, later in itertools.pairwise(told)), kind
    first.stop()
    second.stop()
