"""The database of a command: the configured one, or an embedded one for as long as the command lasts."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Generator
from contextlib import contextmanager, nullcontext
from urllib.parse import urlsplit

import asyncpg

from app.cli.refusal import CannotGoOn
from app.db import migrate as migrations
from app.db.embedded import EmbeddedPostgres, Keeper
from app.settings import Settings

_OLDEST_POSTGRES = 15
_CONNECT_TIMEOUT_S = 10


@contextmanager
def ready_database(
    settings: Settings, *, migrate_embedded: bool = True, keep_alive: bool = False
) -> Generator[Settings]:
    """Settings whose database answers.

    Args:
        migrate_embedded: whether an embedded database is brought to the newest revision first.
        keep_alive: whether an embedded server that dies is started again. If that cannot be done, this process gets a
            SIGTERM, and the error below is raised when it leaves.

    Raises:
        CannotGoOn: it does not answer, or is too old.
        EmbeddedPostgresError: the embedded server cannot be started, or not again.
    """
    if settings.database_url:
        with explained(settings.database_url):
            asyncio.run(_check_database(settings.database_url))
        yield settings
        return
    server = EmbeddedPostgres(settings.data_dir)
    try:
        url = server.start()
        with explained(url):
            if migrate_embedded and asyncio.run(migrations.pending(url)) is not None:
                asyncio.run(migrations.upgrade(url))
        with _kept_alive(server) if keep_alive else nullcontext():
            yield settings.model_copy(update={"database_url": url})
    finally:
        server.stop()


@contextmanager
def _kept_alive(server: EmbeddedPostgres) -> Generator[None]:
    keeper = Keeper(server, on_lost=lambda: os.kill(os.getpid(), signal.SIGTERM))
    keeper.start()
    try:
        yield
    finally:
        keeper.stop()
        if keeper.failure is not None:
            raise keeper.failure  # in place of the exit that the signal asked for


def lacking_migrations(url: str) -> bool:
    """Whether the database has to be migrated before the service can work with it. Raises CannotGoOn."""
    with explained(url):
        return asyncio.run(migrations.pending(url)) is not None


@contextmanager
def explained(url: str) -> Generator[None]:
    """What goes wrong between us and a database, in one line and without the password.

    Raises:
        CannotGoOn: in the place of whatever went wrong.
    """
    try:
        yield
    except migrations.MigrationError as error:
        raise CannotGoOn(str(error)) from error
    except (OSError, ValueError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        reason = "no answer in time" if isinstance(error, TimeoutError) else " ".join(str(error).split())
        raise CannotGoOn(f"the database of DATABASE_URL, {place_of(url)}, cannot be used: {reason}") from error


def place_of(url: str) -> str:
    """Where a database is, without who may use it."""
    parts = urlsplit(url)
    return f"{parts.netloc.rpartition('@')[2] or 'a Unix socket'}{parts.path}"


async def _check_database(url: str) -> None:
    connection = await asyncpg.connect(url, timeout=_CONNECT_TIMEOUT_S, statement_cache_size=0)
    try:
        found = connection.get_server_version()
        if found.major < _OLDEST_POSTGRES:
            raise CannotGoOn(f"{place_of(url)} is PostgreSQL {found.major}; {_OLDEST_POSTGRES} or later is needed")
    finally:
        await connection.close()
