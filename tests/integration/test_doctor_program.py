"""How `agent-runner doctor` ends: without a database, beside an embedded one, on a service that is killed."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import asyncpg

from app.db.embedded import EmbeddedPostgres
from app.db.embedded.postmaster import Postmaster
from app.db.migrate import upgrade
from tests.acceptance.client import Client
from tests.acceptance.gates import Gates
from tests.acceptance.model import Model
from tests.acceptance.service import Service
from tests.acceptance.teams import WORKER, through
from tests.conftest import database_of
from tests.integration.doctor_program import doctor
from tests.integration.varied_runs import execute


async def test_a_database_that_is_not_migrated_is_told_and_left_as_it_is(postgres_server: str) -> None:
    name = f"unmigrated_{os.getpid()}"
    await execute(postgres_server, f"CREATE DATABASE {name}")
    url = database_of(postgres_server, name)
    try:
        for at in ("has no tables yet", "is at revision 0001"):
            ended = doctor(DATABASE_URL=url)
            assert ended.returncode == 1
            assert re.search(rf"^PROBLEM: migrations missing: the database {at}[^;]*$", ended.stdout, re.MULTILINE)
            assert "  fix: run `agent-runner migrate`" in ended.stdout
            await upgrade(url, "0001")
    finally:
        await execute(postgres_server, f"DROP DATABASE {name} WITH (FORCE)")


def test_a_database_that_cannot_be_reached_is_a_problem_and_its_password_is_not_told() -> None:
    url = "postgresql://user:secret@127.0.0.1:1/name"
    ended = doctor(DATABASE_URL=url)
    assert (ended.returncode, ended.stderr) == (1, "")
    assert "PROBLEM: the database of DATABASE_URL, 127.0.0.1:1/name, cannot be used" in ended.stdout
    assert "secret" not in ended.stdout + doctor("--json", DATABASE_URL=url).stdout


def test_a_database_that_does_not_exist_is_told_with_how_it_is_made(postgres_server: str) -> None:
    ended = doctor(DATABASE_URL=database_of(postgres_server, "no%20such"))
    assert (ended.returncode, ended.stderr) == (1, "")
    assert 'database "no such" does not exist' in ended.stdout
    assert '  fix: make it on that server: CREATE DATABASE "no such"; then run `agent-runner migrate`' in ended.stdout


def test_a_setting_that_cannot_be_used_is_code_2() -> None:
    said = "LEASE_S: 'often' cannot be used: should be a number"
    ended = doctor(LEASE_S="often")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == f"agent-runner: {said}\n"
    as_json = doctor("--json", LEASE_S="often")
    assert as_json.returncode == 2
    report = json.loads(as_json.stdout)
    assert (report["problems"], [finding["kind"] for finding in report["findings"]]) == (1, ["settings"])
    assert report["findings"][0]["said"] == said


def test_help_says_what_the_exit_codes_mean() -> None:
    said = " ".join(re.sub(r"[│╭╮╰╯─]", " ", doctor("--help").stdout).split())
    assert "Exit codes: 0 nothing is wrong, 1 there are problems, 2 a setting or an argument cannot be used." in said


def test_an_embedded_database_is_used_while_it_runs_and_neither_made_nor_started() -> None:
    """Seen to fail with the program's own way to a database, which starts it."""
    folder = Path(tempfile.mkdtemp(prefix="doctor-", dir="/tmp"))
    service = None
    try:
        none = doctor(folder=folder)
        assert none.returncode == 1
        assert "there is no embedded database in .data" in none.stdout
        assert list(folder.iterdir()) == []
        service = Service({}, folder).ready()
        beside = doctor(folder=folder)
        assert beside.returncode == 0, beside.stdout
        assert beside.stdout.endswith("Verdict: nothing is wrong.\n")
        server = Postmaster.of(folder / ".data" / "postgres")
        assert server is not None
        assert server.accepts_connections()  # it goes on

        service.kill()  # nobody starts its server again from now on
        pid_file = Postmaster.pid_file(server.cluster)
        ready = pid_file.read_text()
        pid_file.write_text(ready.replace("ready   ", "starting"))  # as it stands there during a recovery
        busy = said_of_database(doctor("--json", folder=folder))
        assert "the embedded database in .data is starting, recovering or stopping" in busy["said"]
        pid_file.write_text(ready)

        os.kill(server.pid, signal.SIGKILL)
        while server.is_running() or server.accepts_connections():
            time.sleep(0.01)
        killed = said_of_database(doctor("--json", folder=folder))
        assert "the embedded database in .data is not running: its server died" in killed["said"]
        assert "start the service: `agent-runner serve`" in killed["fix"]
        assert Postmaster.of(server.cluster) == server  # none was started

        database = EmbeddedPostgres(folder / ".data")
        database.start()
        database.stop()
        before = sorted((folder / ".data").rglob("*"))
        stopped = said_of_database(doctor("--json", folder=folder))
        assert "the embedded database in .data is not running: its service is stopped" in stopped["said"]
        assert "start the service" in stopped["fix"]
        assert sorted((folder / ".data").rglob("*")) == before
    finally:
        if service is not None:
            service.stop()
        shutil.rmtree(folder)


def test_an_embedded_database_that_cannot_be_looked_into_is_told() -> None:
    folder = Path(tempfile.mkdtemp(prefix="doctor-", dir="/tmp"))
    try:
        cluster = folder / ".data" / "postgres"
        (cluster / "postmaster.pid").mkdir(parents=True)
        (cluster / "PG_VERSION").touch()
        found = said_of_database(doctor("--json", folder=folder))
        assert "The embedded Postgres in .data cannot be seen" in found["said"]
    finally:
        shutil.rmtree(folder)


def said_of_database(ended: subprocess.CompletedProcess[str]) -> dict[str, str]:
    """The one finding of a look that got no database."""
    assert ended.returncode == 1, ended.stdout
    (finding,) = json.loads(ended.stdout)["findings"]
    assert (finding["kind"], finding["severity"]) == ("database", "problem")
    return finding


async def test_a_service_that_is_well_is_code_0_and_one_that_was_killed_code_1(database_url: str) -> None:
    model, gates = Model(), Gates(Path(tempfile.mkdtemp(prefix="agent-runner-gates-", dir="/tmp")))
    service = Service(
        {
            "DATABASE_URL": database_url,
            "OPENAI_BASE_URL": model.base_url,
            "OPENAI_API_KEY": "a-key",
            "TOOL_MODULES": "tests.acceptance.tools",
            "GATES_DIR": str(gates.folder),
            "LEASE_S": "2",
            "MAX_CONCURRENT_RUNS": "1",
        }
    )
    try:
        gate = gates.new()
        async with Client(service.ready().url) as client:
            run = await client.create(agent={"name": "reader", **WORKER}, input=through(gate))
            await gate.entered()
            await client.create(agent={"name": "reader", **WORKER}, input=through(gate))
        await execute(
            database_url,
            "UPDATE runs SET available_at = available_at - interval '39 seconds' WHERE status = 'queued'",
        )
        well = doctor(DATABASE_URL=database_url, LEASE_S="3600", MAX_CONCURRENT_RUNS="1")
        assert well.returncode == 0, well.stdout
        assert re.search(rf"pid {service.pid}\): at work, last beat \d+ s ago, 1 run$", well.stdout, re.MULTILINE)
        assert "NOTE: 1 run waits for a slot: all of the live replicas are taken (1 run on 1 replica" in well.stdout
        service.kill()
        connection = await asyncpg.connect(database_url)
        await connection.execute("UPDATE replicas SET heartbeat_at = heartbeat_at - interval '2 seconds'")
        await connection.close()
        killed = doctor(DATABASE_URL=database_url, LEASE_S="2")
        assert killed.returncode == 1
        assert f"run {run['run_id']} of reader: " in killed.stdout
        assert "start one: `agent-runner serve`" in killed.stdout
    finally:
        service.stop()
        model.close()
        gates.remove()
