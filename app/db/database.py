"""The way to Postgres: one pool of plain connections for the hot path, ORM sessions for everything else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import asyncpg
from sqlalchemy.exc import DBAPIError, InterfaceError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.pool import QueuePool

from app.db.conflicts import CONFLICTS, TransactionUndone
from app.engine.store_errors import StoreUnavailable

if TYPE_CHECKING:
    from asyncpg.pool import PoolConnectionProxy

# Strings, because asyncpg's classes take parameters only in its stubs.
Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record] | PoolConnectionProxy[asyncpg.Record]"
Pool: TypeAlias = "asyncpg.Pool[asyncpg.Record]"

# What asyncpg raises when the server, the way to it, or its readiness is the trouble, and not the statement.
UNAVAILABLE = (
    OSError,
    TimeoutError,
    asyncpg.InterfaceError,
    asyncpg.PostgresConnectionError,
    asyncpg.CannotConnectNowError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.TooManyConnectionsError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.QueryCanceledError,
    asyncpg.LockNotAvailableError,
    asyncpg.InsufficientResourcesError,
    asyncpg.InternalClientError,
)

_NO_TABLES = "the database has no tables yet; run `agent-runner migrate`"
_NO_ANSWER = "the database does not answer; try again"

ACQUIRE_TIMEOUT_S = 10.0
STATEMENT_TIMEOUT_S = 30.0


async def _keep(_connection: Connection) -> None:
    """Nothing to undo when a connection goes back: no code here leaves session state, so no round trip is spent."""


@dataclass(frozen=True, slots=True)
class PoolUse:
    """How many connections of a pool are in use, and how many are open and wait for use."""

    pool: str
    used: int
    idle: int


class Database:
    """Two pools over one database. `pool` is for the statements that every run pays for, `sessions` for the rest."""

    def __init__(self, pool: Pool, engine: AsyncEngine) -> None:
        self.pool = pool
        self._engine = engine
        self._sessions = async_sessionmaker(engine, expire_on_commit=False)

    @classmethod
    async def connect(cls, url: str, *, prepared: bool = True, pool_size: int = 10) -> Database:
        """Open the pools.

        Args:
            url: `postgresql://…`, as asyncpg understands it.
            prepared: False behind a pooler in transaction mode, which cannot keep prepared statements.
            pool_size: the most connections of each pool.

        Raises:
            StoreUnavailable: the database cannot be reached.
        """
        cached = 100 if prepared else 0

        async def connect() -> asyncpg.Connection[asyncpg.Record]:
            return await asyncpg.connect(
                url, timeout=ACQUIRE_TIMEOUT_S, command_timeout=STATEMENT_TIMEOUT_S, statement_cache_size=cached
            )

        try:
            pool = await asyncpg.create_pool(
                url,
                min_size=1,
                max_size=pool_size,
                timeout=ACQUIRE_TIMEOUT_S,
                command_timeout=STATEMENT_TIMEOUT_S,
                max_inactive_connection_lifetime=0,
                reset=_keep,
                statement_cache_size=cached,
            )
        except (*UNAVAILABLE, asyncpg.PostgresError) as error:
            raise StoreUnavailable(_NO_ANSWER, error) from error
        engine = create_async_engine(
            "postgresql+asyncpg://",
            async_creator=connect,
            pool_size=pool_size,
            max_overflow=0,
            pool_timeout=10,
            pool_pre_ping=True,  # a server that was restarted is nobody's error
        )
        return cls(pool, engine)

    def pool_use(self) -> tuple[PoolUse, PoolUse]:
        """The use of both pools at this moment."""
        idle = self.pool.get_idle_size()
        sessions = self._engine.pool
        assert isinstance(sessions, QueuePool)
        return (
            PoolUse("plain", self.pool.get_size() - idle, idle),
            PoolUse("sessions", sessions.checkedout(), sessions.checkedin()),
        )

    async def close(self) -> None:
        await self._engine.dispose()
        try:
            async with asyncio.timeout(5):
                await self.pool.close()
        except TimeoutError:
            self.pool.terminate()

    @asynccontextmanager
    async def connection(self) -> AsyncGenerator[Connection]:
        """A plain connection, each statement its own transaction.

        Raises:
            StoreUnavailable: no connection within the time, or it broke.
            TransactionUndone: another transaction was in the way.
        """
        try:
            async with self.pool.acquire(timeout=ACQUIRE_TIMEOUT_S) as connection:
                yield connection
        except CONFLICTS as error:
            raise TransactionUndone(error) from error
        except asyncpg.UndefinedTableError as error:
            raise StoreUnavailable(_NO_TABLES) from error
        except UNAVAILABLE as error:
            raise StoreUnavailable(_NO_ANSWER, error) from error

    @asynccontextmanager
    async def transaction(self) -> AsyncGenerator[Connection]:
        """A plain connection inside one READ COMMITTED transaction; raises as `connection` does."""
        async with self.connection() as connection, connection.transaction():
            yield connection

    @asynccontextmanager
    async def session(self) -> AsyncGenerator[AsyncSession]:
        """An ORM session inside one transaction, committed at the end.

        Raises:
            StoreUnavailable: the database cannot be reached or broke off.
            TransactionUndone: another transaction was in the way.
        """
        try:
            async with self._sessions() as session, session.begin():
                yield session
        except (OSError, PoolTimeout, InterfaceError) as error:
            raise StoreUnavailable(_NO_ANSWER, error) from error
        except DBAPIError as error:
            cause = error.orig.__cause__ if error.orig else None
            if isinstance(cause, CONFLICTS):
                raise TransactionUndone(cause) from error
            if isinstance(cause, asyncpg.UndefinedTableError):
                raise StoreUnavailable(_NO_TABLES) from error
            if error.connection_invalidated or isinstance(cause, UNAVAILABLE):
                raise StoreUnavailable(_NO_ANSWER, error.orig) from error
            raise
