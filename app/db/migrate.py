"""Migrations: bring a database to a revision, and tell cheaply whether it is there.

Alembic is imported only when a migration is to run, because importing it takes longer than the rest of a warm
start; to tell whether anything is missing, the revisions are read from the heads of the files.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

if TYPE_CHECKING:
    from alembic.config import Config

    from app.db.database import Connection as Reader

_PACKAGE = Path(__file__).resolve().parent.parent
_REVISION = re.compile(r"^(revision|down_revision)\b[^=\n]*=\s*(?:[\"']([^\"']+)[\"']|None)", re.MULTILINE)


class MigrationError(RuntimeError):
    """A migration did not run; the database is as it was. The text says why in one line."""


async def upgrade(url: str, revision: str = "head") -> None:
    """Bring the database at `url` (postgresql://…) up to `revision`, in one transaction.

    Of several processes at once one works and the others wait for it, and then find nothing to do. Within a
    process it is for one caller at a time, because Alembic keeps the migration at hand in a global.

    Raises:
        MigrationError: The revision is unknown, or a statement failed or waited too long for a lock.
        OSError: The database cannot be reached.
        asyncpg.PostgresError: The database refuses the connection.
    """
    await _run("upgrade", url, revision)


async def downgrade(url: str, revision: str) -> None:
    """Bring the database at `url` back to `revision` (`base`: to nothing); raises as `upgrade` does."""
    await _run("downgrade", url, revision)


async def pending(url: str) -> str | None:
    """What a person has to do before the service can use the database at `url`; None when it is at head.

    A database of a later version than this program's is not pending: old and new replicas run side by side
    while a new version is rolled out.

    Raises:
        OSError: The database cannot be reached.
        asyncpg.PostgresError: The database refuses the connection.
    """
    connection = await asyncpg.connect(url, timeout=10, statement_cache_size=0)
    try:
        found = await current(connection)
    finally:
        await connection.close()
    return missing(found)


async def current(connection: Reader) -> str | None:
    """The revision of the database behind `connection`; None when nothing was ever migrated there."""
    try:
        return await connection.fetchval("SELECT version_num FROM alembic_version")
    except asyncpg.UndefinedTableError:
        return None


def missing(found: str | None) -> str | None:
    """The same as `pending`, for the revision that a database was found at."""
    lack = shortfall(found)
    return None if lack is None else f"{lack}; run `agent-runner migrate`"


def shortfall(found: str | None) -> str | None:
    """What `missing` says, without what to do about it."""
    if found == head() or (found is not None and found not in _revisions()):
        return None
    at = "has no tables yet" if found is None else f"is at revision {found} and not at {head()}"
    return f"migrations missing: the database {at}"


@cache
def head() -> str:
    """The revision that this version of the program needs.

    Raises:
        MigrationError: The migrations of this installation are missing or do not form one line.
    """
    revisions = _revisions()
    heads = revisions.keys() - set(revisions.values())
    if len(heads) != 1:
        raise MigrationError(f"{_folder()} has {len(heads)} last revisions instead of one")
    return heads.pop()


@cache
def _revisions() -> dict[str, str | None]:
    """Each revision and the one that it follows."""
    revisions: dict[str, str | None] = {}
    for path in _folder().glob("versions/*.py"):
        named = {key: value or None for key, value in _REVISION.findall(path.read_text(encoding="utf-8"))}
        if (revision := named.get("revision")) is not None:
            revisions[revision] = named.get("down_revision")
    return revisions


def _folder() -> Path:
    """An installed wheel carries the migrations inside the package; a checkout has them at its root."""
    packaged = _PACKAGE / "migrations"
    return packaged if packaged.is_dir() else _PACKAGE.parent / "migrations"


async def _run(direction: str, url: str, revision: str) -> None:
    async def connect() -> asyncpg.Connection[asyncpg.Record]:
        # asyncpg reads the URL itself: SQLAlchemy would not take sslmode or a socket's folder as libpq does.
        # Without prepared statements it also works through a pooler.
        return await asyncpg.connect(url, timeout=10, statement_cache_size=0)

    engine = create_async_engine("postgresql+asyncpg://", async_creator=connect, poolclass=NullPool)
    try:
        async with engine.begin() as connection:
            await connection.run_sync(_run_alembic, direction, revision)
    except DBAPIError as error:
        raise MigrationError(f"{direction} to {revision} failed: {str(error.orig).splitlines()[0]}") from error
    finally:
        await engine.dispose()


def _run_alembic(connection: Connection, direction: str, revision: str) -> None:
    from alembic import command
    from alembic.util.exc import CommandError

    try:
        match direction:
            case "upgrade":
                command.upgrade(_config(connection), revision)
            case _:
                command.downgrade(_config(connection), revision)
    except CommandError as error:
        raise MigrationError(f"{direction} to {revision} failed: {error}") from error


def _config(connection: Connection) -> Config:
    from alembic.config import Config

    config = Config()
    # ConfigParser reads % as the start of an interpolation.
    config.set_main_option("script_location", str(_folder()).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config
