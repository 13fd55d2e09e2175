from __future__ import annotations

import pytest

from app.db.database import Database
from app.db.run_store import PostgresRunStore
from tests.contract.stores import postgres_subject


@pytest.fixture
async def store(database: Database) -> PostgresRunStore:
    """The store of a fresh database with one agent."""
    subject = await postgres_subject(database)
    assert isinstance(subject.store, PostgresRunStore)
    return subject.store
