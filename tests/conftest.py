"""Real Postgres for every test that asks: one server for the session, one migrated database for each test."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import asyncpg
import pytest
import structlog

from app.db.database import Database
from app.db.embedded import EmbeddedPostgres
from app.db.migrate import upgrade

_numbers = itertools.count(1)

# Tests read what is logged at every level; by itself the package only speaks from warning on.
structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG))


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("chaos")
    group.addoption("--chaos-full", action="store_true", help="all scenarios of failure, in full size")
    group.addoption("--chaos-seed", type=int, default=1, help="what the scenarios throw their dice with")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """What became of the scenarios of failure, one line each."""
    if not config.getoption("--chaos-full"):
        return
    reports = [
        report
        for listed in terminalreporter.stats.values()
        for report in listed
        if isinstance(report, pytest.TestReport) and report.when == "teardown"
    ]
    told = [(name, value) for report in reports for name, value in report.user_properties]
    terminalreporter.section(f"chaos, seed {config.getoption('--chaos-seed')}")
    terminalreporter.line(f"{'#':>3} {'scenario':90} {'runs':>6} {'kills':>6} {'time':>8} {'violations':>10}")
    for row in sorted(str(value) for name, value in told if name == "scenario"):
        terminalreporter.line(row)
    for line in sorted(str(value) for name, value in told if name == "measured"):
        terminalreporter.line(line)


@contextmanager
def server_with_template(bin_dir: Path | None = None) -> Iterator[str]:
    """A server for a session; the URL of its own database. Its `template_runs` is migrated, ready to be copied."""
    # Not below pytest's own folder: every new session shuts that for the account that Postgres runs under.
    folder = tempfile.mkdtemp(prefix="agent-runner-tests-")
    server = EmbeddedPostgres(Path(folder), bin_dir=bin_dir)
    url = server.start()

    async def prepare() -> None:
        connection = await asyncpg.connect(url)
        try:
            # Tests lose nothing by a crash of the machine.
            await connection.execute("ALTER SYSTEM SET fsync = off")
            await connection.execute("SELECT pg_reload_conf()")
            await connection.execute("CREATE DATABASE template_runs")
        finally:
            await connection.close()
        await upgrade(database_of(url, "template_runs"))

    asyncio.run(prepare())
    yield url
    server.stop()
    shutil.rmtree(folder)


@asynccontextmanager
async def fresh_database(server_url: str) -> AsyncIterator[str]:
    """The URL of a database of its own on that server, migrated and empty."""
    name = f"test_{os.getpid()}_{next(_numbers)}"
    admin = await asyncpg.connect(server_url)
    await admin.execute(f"CREATE DATABASE {name} TEMPLATE template_runs STRATEGY file_copy")
    yield database_of(server_url, name)
    await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
    await admin.close()


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    with server_with_template() as url:
        yield url


@pytest.fixture
async def database_url(postgres_server: str) -> AsyncIterator[str]:
    async with fresh_database(postgres_server) as url:
        yield url


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    database = await Database.connect(database_url)
    yield database
    await database.close()


def database_of(url: str, name: str) -> str:
    """The same server's other database."""
    head, query = url.split("?", 1) if "?" in url else (url, "")
    return f"{head.rpartition('/')[0]}/{name}" + (f"?{query}" if query else "")
