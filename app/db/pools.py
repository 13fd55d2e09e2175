"""The databases of a replica: one Postgres, with connections apart for each use, so that none starves another."""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import dataclass

from app.db.connecting import Bounds
from app.db.database import Database
from app.db.pool_use import PoolUse
from app.db.sessions import Sessions


@dataclass(frozen=True, slots=True)
class PoolSizes:
    """The most connections of each use: those of the settings DATABASE_…_CONNECTIONS."""

    execution: int
    api: int
    streams: int


@dataclass(frozen=True, slots=True)
class Pools:
    """
    Args:
        execution: for drivers, claims, recovery and all other background work.
        api: for answering requests; their transactions do not wait long for a lock.
        streams: for the events of streams.
        readiness: one connection, for asking whether the database answers.
    """

    execution: Database
    api: Database
    streams: Database
    readiness: Database
    sessions: Sessions

    @classmethod
    async def open(cls, url: str, sizes: PoolSizes, *, prepared: bool) -> Pools:
        """Open all of them. Raises as `Database.connect` does."""
        sessions = Sessions(url, _sessions(sizes.api), prepared=prepared)
        async with AsyncExitStack() as opened:

            async def connect(bounds: Bounds) -> Database:
                database = await Database.connect(url, prepared=prepared, bounds=bounds, sessions=sessions)
                opened.push_async_callback(database.close)
                return database

            pools = cls(
                execution=await connect(_execution(sizes.execution)),
                api=await connect(_api(sizes.api)),
                streams=await connect(_streams(sizes.streams)),
                readiness=await connect(_READINESS),
                sessions=sessions,
            )
            opened.pop_all()
        return pools

    async def close(self) -> None:
        for database in self._databases():
            await database.close()

    def use(self) -> list[PoolUse]:
        """What each pool is doing at this moment."""
        return [*(database.pool_use() for database in self._databases()), self.sessions.use()]

    def shortage(self) -> str | None:
        """Which use has had no connection for those who waited, and how that is mended; None if none has."""
        return next((use.shortage for use in self.use() if use.shortage is not None), None)

    def _databases(self) -> tuple[Database, ...]:
        return self.execution, self.api, self.streams, self.readiness


def _execution(most: int) -> Bounds:
    return Bounds(
        "execution", "executing runs", "DATABASE_EXECUTION_CONNECTIONS", most=most, acquire_s=10, statement_s=30
    )


def _api(most: int) -> Bounds:
    return Bounds("api", "requests", "DATABASE_API_CONNECTIONS", most=most, acquire_s=5, statement_s=5, impatient=True)


def _sessions(api: int) -> Bounds:
    return Bounds(
        "sessions",
        "lists, threads and agents",
        "half of DATABASE_API_CONNECTIONS",
        most=max(1, api // 2),
        acquire_s=5,
        statement_s=5,
        impatient=True,
    )


def _streams(most: int) -> Bounds:
    return Bounds("streams", "streams of events", "DATABASE_STREAM_CONNECTIONS", most=most, acquire_s=5, statement_s=10)


_READINESS = Bounds("readiness", "asking whether the database answers", None, most=1, acquire_s=5, statement_s=5)
