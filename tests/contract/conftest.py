"""Every test of the contract runs against every store."""

from __future__ import annotations

import pytest

from app.db.database import Database
from app.engine.ports import RunStore
from tests.contract.stores import Subject, memory_subject, postgres_subject


@pytest.fixture
def memory() -> Subject:
    return memory_subject()


@pytest.fixture
async def postgres(database: Database) -> Subject:
    return await postgres_subject(database)


@pytest.fixture(params=["memory", "postgres"])
def subject(request: pytest.FixtureRequest) -> Subject:
    return request.getfixturevalue(request.param)


@pytest.fixture
def store(subject: Subject) -> RunStore:
    return subject.store
