"""The migrations make exactly the tables that the ORM models declare."""

from __future__ import annotations

import asyncpg
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import create_async_engine

from app.db.models import Base


async def test_the_migrated_database_and_the_models_agree(database_url: str) -> None:
    async def connect() -> asyncpg.Connection[asyncpg.Record]:
        return await asyncpg.connect(database_url)

    def differences(connection: Connection) -> list[object]:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        return compare_metadata(context, Base.metadata)

    engine = create_async_engine("postgresql+asyncpg://", async_creator=connect)
    async with engine.connect() as connection:
        assert await connection.run_sync(differences) == []
    await engine.dispose()
