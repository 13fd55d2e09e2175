"""How Alembic runs the migrations: on the connection that it is handed, or by itself on DATABASE_URL."""

from __future__ import annotations

import asyncio

import asyncpg
from alembic import context
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from app.db.models import Base
from app.settings import Settings

# Any number will do, as long as nothing else in the database uses it.
MIGRATION_LOCK = 4_716_204_593


def migrate(connection: Connection) -> None:
    """Run what the command asks for, inside the transaction that the connection is in."""
    # First come, first served: whoever waits here finds the work done. The lock ends with the transaction and
    # so needs no session of its own, which a pooler would not give.
    connection.execute(text("SET LOCAL lock_timeout = '5min'"))
    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": MIGRATION_LOCK})
    # A migration that cannot have its table soon gives up, instead of standing in line with every query of
    # the running service behind it.
    connection.execute(text("SET LOCAL lock_timeout = '5s'"))
    connection.execute(text("SET LOCAL statement_timeout = '10min'"))
    context.configure(connection=connection, target_metadata=Base.metadata, compare_server_default=True)
    with context.begin_transaction():
        context.run_migrations()


async def migrate_configured_database() -> None:
    settings = Settings.load()
    url = settings.database_direct_url or settings.database_url
    if not url:
        raise SystemExit("alembic needs DATABASE_URL")

    async def connect() -> asyncpg.Connection[asyncpg.Record]:
        return await asyncpg.connect(url)

    engine = create_async_engine("postgresql+asyncpg://", async_creator=connect, poolclass=NullPool)
    async with engine.begin() as connection:
        await connection.run_sync(migrate)
    await engine.dispose()


if context.is_offline_mode():
    raise SystemExit("migrations look at the database that they change: --sql is not supported")
handed = context.config.attributes.get("connection")
if handed is None:
    asyncio.run(migrate_configured_database())
else:
    migrate(handed)
