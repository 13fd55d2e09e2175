"""ORM sessions, for what requests ask that no run pays for: lists, threads, agents."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import asyncpg
from sqlalchemy.exc import DBAPIError, InterfaceError
from sqlalchemy.exc import TimeoutError as NoneFree
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.pool import QueuePool

from app.db.connecting import FAILURES, NO_ANSWER, Bounds, connect, failure, said_by
from app.db.pool_use import PoolUse
from app.engine.store_errors import StoreUnavailable


class Sessions:
    """A pool of connections under SQLAlchemy; opened by the first session."""

    def __init__(self, url: str, bounds: Bounds, *, prepared: bool) -> None:
        async def creator() -> asyncpg.Connection[asyncpg.Record]:
            return await connect(url, bounds, prepared=prepared)

        self._bounds = bounds
        self._engine = create_async_engine(
            "postgresql+asyncpg://",
            async_creator=creator,
            pool_size=bounds.most,
            max_overflow=0,
            pool_timeout=bounds.acquire_s,
            pool_pre_ping=True,  # a server that was restarted is nobody's error
        )
        self._sessions = async_sessionmaker(self._engine, expire_on_commit=False)
        self._timeouts = 0
        self._refused = False

    @asynccontextmanager
    async def session(self) -> AsyncGenerator[AsyncSession]:
        """A session inside one transaction, committed at the end; raises as `Database.session` does."""
        try:
            async with self._sessions() as session, session.begin():
                yield session
            self._refused = False
        except NoneFree as error:
            self._timeouts += 1
            self._refused = True
            raise self._bounds.exhausted() from error
        except InterfaceError as error:
            raise StoreUnavailable(NO_ANSWER, said_by(error)) from error
        except DBAPIError as error:
            cause = error.orig.__cause__ if error.orig else None
            if isinstance(cause, FAILURES):
                raise failure(cause, self._bounds) from error
            if error.connection_invalidated:
                raise StoreUnavailable(NO_ANSWER, error.orig) from error
            raise
        except OSError as error:
            raise failure(error, self._bounds) from error

    def use(self) -> PoolUse:
        pool = self._engine.pool
        assert isinstance(pool, QueuePool)
        used, bounds = pool.checkedout(), self._bounds
        short = self._refused and used >= bounds.most
        shortage = str(bounds.exhausted()) if short else None
        return PoolUse(bounds.name, used, pool.checkedin(), bounds.most, self._timeouts, shortage)

    async def close(self) -> None:
        await self._engine.dispose()
