"""`agent-runner doctor`: what the database server says of its own tables and backends is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, TypeAlias

import asyncpg
import pytest

from app.db.diagnosis import Surroundings
from app.services.doctor import Report, examine
from app.services.findings import Finding

Database: TypeAlias = "asyncpg.Connection[Any]"
Connections: TypeAlias = tuple[Database, Database, Database]

LEASE_S = 15.0
AROUND = Surroundings(LEASE_S, step_deadline_s=600.0)


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Connections]:
    """Three connections to an empty database."""
    connections = [await asyncpg.connect(database_url) for _ in range(3)]
    yield connections[0], connections[1], connections[2]
    for connection in connections:
        await connection.close()


def the(kind: str, report: Report) -> Finding:
    """The one finding of a kind."""
    (found,) = [finding for finding in report.findings if finding.kind == kind]
    return found


def words(finding: Finding) -> str:
    return "\n".join((finding.said, *(example.said for example in finding.examples)))


async def test_a_table_made_of_dead_rows_is_told(database: Connections) -> None:
    connection, _, _ = database
    await connection.execute("ALTER TABLE chores SET (autovacuum_enabled = off)")
    await connection.execute("INSERT INTO chores (name) SELECT n::text FROM generate_series(1, 11000) AS n")
    await connection.execute("DELETE FROM chores")
    await connection.execute("SELECT pg_stat_force_next_flush()")
    told = words(the("dead_rows", await examine(connection, AROUND, 10)))
    assert told == "1 table made mostly of dead rows\nchores: 11000 dead, 0 live, vacuumed never"


async def test_locks_and_long_transactions_are_told_with_who_holds_them(database: Connections) -> None:
    looking, holder, waiter = database
    impatient = Surroundings(LEASE_S, 600.0, lock_s=0.0, transaction_s=0.0)
    async with holder.transaction():
        await holder.execute("UPDATE alembic_version SET version_num = version_num")
        waiting = asyncio.create_task(waiter.execute("UPDATE alembic_version SET version_num = version_num"))
        while "locks" not in {finding.kind for finding in (await examine(looking, impatient, 10)).findings}:
            await asyncio.sleep(0.01)
        report = await examine(looking, impatient, 10)
        said = f"backend {waiter.get_server_pid()} () waits for [{holder.get_server_pid()}] since "
        assert said in words(the("locks", report))
        said = f"backend {holder.get_server_pid()} of postgres (): idle in transaction, for "
        assert said in words(the("transactions", report))
        assert "transactions" not in {finding.kind for finding in (await examine(looking, AROUND, 10)).findings}
    await waiting
