"""The way to Postgres: a pool of plain connections for one use, and ORM sessions for what no run pays for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Self

from sqlalchemy.ext.asyncio import AsyncSession

from app.db.connecting import FAILURES, NO_ANSWER, Bounds, Connection, Lent, Pool, failure, open_pool
from app.db.pool_use import PoolUse
from app.db.sessions import Sessions
from app.engine.store_errors import StoreUnavailable

# How long a connection whose statement was cancelled may take to say so; then it is given up.
RELEASE_S = 1.0
CLOSE_S = 5.0
ALONE = Bounds("plain", "the database", None, most=10, acquire_s=10, statement_s=30)


class Database:
    """Plain connections of one use, within its bounds, and the sessions.

    The databases of a replica (`app.db.pools.Pools`) are one database, each with plain connections of its own, so that
    none can take those of another; they share the sessions, which are for requests.
    """

    def __init__(self, pool: Pool, bounds: Bounds, sessions: Sessions) -> None:
        self.pool = pool
        self._bounds = bounds
        self._sessions = sessions
        self._used = 0
        self._timeouts = 0
        self._refused = False

    @classmethod
    async def connect(
        cls, url: str, *, prepared: bool = True, bounds: Bounds = ALONE, sessions: Sessions | None = None
    ) -> Self:
        """Open the pool.

        Args:
            url: `postgresql://…`, as asyncpg understands it.
            prepared: False behind a pooler in transaction mode, which cannot keep prepared statements.
            bounds: of the pool.
            sessions: shared with others; None for some of its own, within the same bounds.

        Raises:
            StoreUnavailable: the database cannot be reached.
        """
        pool = await open_pool(url, bounds, prepared=prepared)
        return cls(pool, bounds, sessions or Sessions(url, bounds, prepared=prepared))

    def pool_use(self) -> PoolUse:
        """What the plain connections are doing at this moment."""
        idle, bounds = self.pool.get_idle_size(), self._bounds
        short = self._refused and self._used >= bounds.most
        shortage = str(bounds.exhausted()) if short else None
        return PoolUse(bounds.name, self.pool.get_size() - idle, idle, bounds.most, self._timeouts, shortage)

    async def close(self) -> None:
        """Close the connections and the sessions: all that share those end together."""
        await self._sessions.close()
        try:
            async with asyncio.timeout(CLOSE_S):
                await self.pool.close()
        except TimeoutError:
            self.pool.terminate()

    @asynccontextmanager
    async def connection(self) -> AsyncGenerator[Connection]:
        """A plain connection, each statement its own transaction.

        Raises:
            PoolExhausted: none was free in time.
            StatementTimedOut: a statement took longer than it may, and was cancelled.
            TransactionUndone: another transaction was in the way.
            StoreUnavailable: the database cannot be reached, or the connection broke.
        """
        try:
            connection = await self._acquired()
            self._used += 1
            try:
                yield connection
            finally:
                try:
                    await self.pool.release(connection, timeout=RELEASE_S)
                finally:
                    self._used -= 1
            self._refused = False
        except FAILURES as error:
            raise failure(error, self._bounds) from error

    @asynccontextmanager
    async def transaction(self) -> AsyncGenerator[Connection]:
        """A plain connection inside one READ COMMITTED transaction; raises as `connection` does, and:

        Raises:
            LockHeld: somebody else held a lock for longer than this use waits for one.
        """
        async with self.connection() as connection, connection.transaction():
            yield connection

    @asynccontextmanager
    async def session(self) -> AsyncGenerator[AsyncSession]:
        """An ORM session inside one transaction, committed at the end; raises as `transaction` does."""
        async with self._sessions.session() as session:
            yield session

    async def _acquired(self) -> Lent:
        try:
            return await self.pool.acquire(timeout=self._bounds.acquire_s)
        except TimeoutError as error:
            if self._used < self._bounds.most:
                raise StoreUnavailable(NO_ANSWER, error) from error
            self._timeouts += 1
            self._refused = True
            raise self._bounds.exhausted() from error
