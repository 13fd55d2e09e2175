"""How `agent-runner doctor` ends: without a database, beside an embedded one, on a service that is killed."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from pathlib import Path

import asyncpg

from app.db.embedded import EmbeddedPostgres
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
            assert at in ended.stdout
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


def test_a_setting_that_cannot_be_used_is_code_2() -> None:
    ended = doctor(LEASE_S="often")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == "agent-runner: LEASE_S: 'often' cannot be used: should be a number\n"


def test_an_embedded_database_is_used_beside_its_service_and_never_made() -> None:
    folder = Path(tempfile.mkdtemp(prefix="doctor-", dir="/tmp"))
    try:
        none = doctor(folder=folder)
        assert none.returncode == 1
        assert "there is no embedded database in .data" in none.stdout
        assert list(folder.iterdir()) == []
        service = EmbeddedPostgres(folder / ".data")
        url = service.start()
        asyncio.run(upgrade(url))
        beside = doctor(folder=folder)
        asyncio.run(execute(url, "SELECT 1"))  # the service's server goes on
        service.stop()
        alone = doctor(folder=folder)
        assert (beside.returncode, alone.returncode) == (0, 0), beside.stdout + alone.stdout
        assert alone.stdout.endswith("Verdict: nothing is wrong; 1 note.\n")
        assert not (folder / ".data" / "postgres" / "postmaster.pid").exists()
    finally:
        shutil.rmtree(folder)


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
        }
    )
    try:
        gate = gates.new()
        async with Client(service.ready().url) as client:
            run = await client.create(agent={"name": "reader", **WORKER}, input=through(gate))
            await gate.entered()
        well = doctor(DATABASE_URL=database_url, LEASE_S="3600")
        assert well.returncode == 0, well.stdout
        assert f"pid {service.pid}): at work, last beat " in well.stdout
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
