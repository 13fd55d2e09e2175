"""Every test of the contract runs against every store."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from app.db.database import Database
from app.db.memories import PostgresMemoryRows
from app.db.memory import InMemoryRows
from app.engine.memories import MemoryRows
from app.engine.ports import RunStore, ThreadStore
from tests.conftest import fresh_database, server_with_template
from tests.contract.stores import Subject, memory_subject, postgres_subject

OLDEST_POSTGRES = Path("/usr/lib/postgresql/15/bin")


@pytest.fixture
def memory() -> Subject:
    return memory_subject()


@pytest.fixture
async def postgres(database: Database) -> Subject:
    return await postgres_subject(database)


@pytest.fixture(scope="session")
def oldest_server() -> Iterator[str]:
    with server_with_template(OLDEST_POSTGRES) as url:
        yield url


@pytest.fixture
async def oldest_postgres(oldest_server: str) -> AsyncIterator[Subject]:
    """The oldest supported server, where Debian has installed it."""
    async with fresh_database(oldest_server) as url:
        database = await Database.connect(url)
        yield await postgres_subject(database)
        await database.close()


@pytest.fixture(params=["memory", "postgres", *(["oldest_postgres"] if OLDEST_POSTGRES.exists() else [])])
def subject(request: pytest.FixtureRequest) -> Subject:
    return request.getfixturevalue(request.param)


@pytest.fixture
def store(subject: Subject) -> RunStore:
    return subject.store


@pytest.fixture
def threads(subject: Subject) -> ThreadStore:
    return subject.threads


@pytest.fixture
def in_memory() -> MemoryRows:
    return InMemoryRows()


@pytest.fixture
def in_postgres(database: Database) -> MemoryRows:
    return PostgresMemoryRows(database)


@pytest.fixture
async def in_oldest_postgres(oldest_server: str) -> AsyncIterator[MemoryRows]:
    async with fresh_database(oldest_server) as url:
        database = await Database.connect(url)
        yield PostgresMemoryRows(database)
        await database.close()


@pytest.fixture(params=["in_memory", "in_postgres", *(["in_oldest_postgres"] if OLDEST_POSTGRES.exists() else [])])
def rows(request: pytest.FixtureRequest) -> MemoryRows:
    return request.getfixturevalue(request.param)


@pytest.fixture(params=["in_memory", "in_postgres"])
def comparing(request: pytest.FixtureRequest) -> MemoryRows:
    """Those that compare vectors on every machine."""
    return request.getfixturevalue(request.param)
