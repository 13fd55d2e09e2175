from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from app.db.run_store import PostgresRunStore
from tests.contract.stores import postgres_subject
from tests.integration.breaking import Breaking


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Breaking]:
    """A fresh database. Its connections break only where a test says so."""
    database = await Breaking.connect(database_url)
    assert isinstance(database, Breaking)
    yield database
    await database.close()


@pytest.fixture
async def store(database: Breaking) -> PostgresRunStore:
    """The store of a fresh database with one agent."""
    subject = await postgres_subject(database)
    assert isinstance(subject.store, PostgresRunStore)
    return subject.store
