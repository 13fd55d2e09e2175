"""Migrations against a real database: up, down, two at once, and what a person is told."""

from __future__ import annotations

import asyncio
import secrets
import shutil
import sys
import tempfile
from collections.abc import AsyncGenerator, Generator
from pathlib import Path

import asyncpg
import pytest

from app.db import migrate
from app.db.embedded import EmbeddedPostgres

PENDING = "run `agent-runner migrate`"


@pytest.fixture(scope="module")
def server_url() -> Generator[str]:
    folder = Path(tempfile.mkdtemp(prefix="migrate-", dir="/tmp"))
    server = EmbeddedPostgres(folder)
    yield server.start()
    server.stop()
    shutil.rmtree(folder)


@pytest.fixture
async def url(server_url: str) -> AsyncGenerator[str]:
    """An empty database."""
    name = f"migrate_{secrets.token_hex(4)}"
    admin = await asyncpg.connect(server_url)
    await admin.execute(f"CREATE DATABASE {name}")
    yield server_url.replace("/agent_runner?", f"/{name}?")
    await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
    await admin.close()


async def test_an_empty_database_is_told_to_be_migrated_and_then_is_at_head(url: str) -> None:
    told = await migrate.pending(url)
    assert told is not None
    assert "has no tables yet" in told
    assert PENDING in told

    await migrate.upgrade(url)
    assert await migrate.pending(url) is None


async def test_what_goes_up_comes_down_and_goes_up_again(url: str) -> None:
    await migrate.upgrade(url)
    await migrate.downgrade(url, "base")
    assert await migrate.pending(url) is not None
    await migrate.upgrade(url)
    assert await migrate.pending(url) is None


async def test_processes_that_migrate_at_once_do_not_collide(url: str, tmp_path: Path) -> None:
    program = Path(sys.executable).with_name("agent-runner")
    processes = [
        await asyncio.create_subprocess_exec(
            program, "migrate", env={"DATABASE_URL": url, "LOG_LEVEL": "warning"}, cwd=tmp_path
        )
        for _ in range(3)
    ]
    assert [await process.wait() for process in processes] == [0, 0, 0]
    assert await migrate.pending(url) is None


async def test_an_unknown_revision_is_refused_in_one_line(url: str) -> None:
    with pytest.raises(migrate.MigrationError, match=r"^upgrade to nowhere failed: .*nowhere.*$"):
        await migrate.upgrade(url, "nowhere")


async def test_a_failed_migration_leaves_nothing_behind(url: str) -> None:
    connection = await asyncpg.connect(url)
    await connection.execute("CREATE TABLE runs (in_the_way int)")
    with pytest.raises(migrate.MigrationError, match=r"\"runs\" already exists"):
        await migrate.upgrade(url)
    tables = await connection.fetch("SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace")
    assert [row["relname"] for row in tables] == ["runs"]
    await connection.close()


async def test_summaries_that_have_no_thread_are_removed_and_others_stay(url: str) -> None:
    await migrate.upgrade(url, "0009")
    connection = await asyncpg.connect(url)
    try:
        await connection.execute("""
            INSERT INTO threads (thread_key, thread_id) VALUES (gen_random_uuid(), 'kept');
            INSERT INTO compactions (thread_key, upto_seq, summary)
            SELECT thread_key, 1, 'kept' FROM threads UNION ALL SELECT gen_random_uuid(), 1, 'left'""")
        await migrate.upgrade(url)
        assert [row["summary"] for row in await connection.fetch("SELECT summary FROM compactions")] == ["kept"]
    finally:
        await connection.close()


def test_a_database_of_a_later_version_is_not_pending() -> None:
    assert migrate.missing("of the future") is None
    assert migrate.missing(migrate.head()) is None
    assert migrate.missing(None) is not None


async def test_an_account_that_may_not_create_extensions_migrates_without_pgvector(url: str) -> None:
    account = f"plain_{secrets.token_hex(4)}"
    admin = await asyncpg.connect(url)
    try:
        await admin.execute(f"CREATE ROLE {account} LOGIN; GRANT CREATE ON SCHEMA public TO {account}")
        await migrate.upgrade(url.replace("postgres@", f"{account}@", 1))
        assert await admin.fetchval("SELECT tableowner FROM pg_tables WHERE tablename = 'memories'") == account
        assert await admin.fetchval("SELECT to_regtype('vector')") is None
        await admin.execute("CREATE EXTENSION vector")  # later, and by whoever may
    finally:
        await admin.execute(f"DROP OWNED BY {account}; DROP ROLE {account}")
        await admin.close()
