"""How a connection to Postgres is made, and what its failures are to those who use it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import asyncpg

from app.db.conflicts import LockHeld, PoolExhausted, StatementTimedOut, TransactionUndone
from app.db.stateless import ImpatientConnection, StatelessConnection
from app.engine.store_errors import StoreUnavailable

if TYPE_CHECKING:
    from asyncpg.pool import PoolConnectionProxy

# Strings, because asyncpg's classes take parameters only in its stubs.
Lent: TypeAlias = "PoolConnectionProxy[asyncpg.Record]"
Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record] | PoolConnectionProxy[asyncpg.Record]"
Pool: TypeAlias = "asyncpg.Pool[asyncpg.Record]"

# What asyncpg raises when the server, the way to it, or its readiness is the trouble, and not the statement.
FAILURES = (
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
    # Transactions that Postgres undoes so that others can go on; it asks for them to be tried again.
    asyncpg.DeadlockDetectedError,
    asyncpg.SerializationError,
    # A database that was never migrated.
    asyncpg.UndefinedTableError,
)

NO_ANSWER = "the database does not answer; try again"
_NO_TABLES = "the database has no tables yet; run `agent-runner migrate`"
_STATEMENTS_KEPT = 100


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one use of the database may take.

    Args:
        name: as metrics call it.
        purpose: what the connections are for, in words that follow "connections for".
        setting: the environment variable that sets `most`; None where none does.
        most: connections.
        acquire_s: seconds to wait for a free connection, and for a new one to be made.
        statement_s: seconds that a statement may take.
        impatient: whether a transaction waits for a lock for a few seconds only (`ImpatientConnection`), and not as
            long as a statement may take; so that what one request has locked does not hold the connections of all.
    """

    name: str
    purpose: str
    setting: str | None
    most: int
    acquire_s: float
    statement_s: float
    impatient: bool = False

    def exhausted(self) -> PoolExhausted:
        setting = "" if self.setting is None else f" ({self.setting})"
        number, verb = (f"all {self.most} connections", "are") if self.most > 1 else ("the only connection", "is")
        return PoolExhausted(f"{number} for {self.purpose} {verb} in use{setting}; try again")


async def connect(url: str, bounds: Bounds, *, prepared: bool) -> asyncpg.Connection[asyncpg.Record]:
    """A connection of its own; the arguments and errors are those of `open_pool`."""
    try:
        return await asyncpg.connect(**_arguments(url, bounds, prepared))
    except (*FAILURES, asyncpg.PostgresError) as error:
        raise StoreUnavailable(NO_ANSWER, said_by(error)) from error


async def open_pool(url: str, bounds: Bounds, *, prepared: bool) -> Pool:
    """A pool of plain connections, the first of them made.

    Args:
        url: `postgresql://…`, as asyncpg understands it.
        prepared: False behind a pooler in transaction mode. Then each statement is parsed, bound and executed in one
            group of messages, without a name, so that it matters to none which server connection the one before had.

    Raises:
        StoreUnavailable: the database cannot be reached, or refuses the connection.
    """
    try:
        return await asyncpg.create_pool(
            **_arguments(url, bounds, prepared),
            min_size=1,
            max_size=bounds.most,
            max_inactive_connection_lifetime=0,
            reset=_keep,
        )
    except (*FAILURES, asyncpg.PostgresError) as error:
        raise StoreUnavailable(NO_ANSWER, said_by(error)) from error


async def _keep(_connection: Connection) -> None:
    """Nothing to undo when a connection goes back: no code here leaves session state, so no round trip is spent."""


def _arguments(url: str, bounds: Bounds, prepared: bool) -> dict[str, Any]:
    return {
        "dsn": url,
        "timeout": bounds.acquire_s,
        "command_timeout": bounds.statement_s,
        "statement_cache_size": _STATEMENTS_KEPT if prepared else 0,
        "connection_class": ImpatientConnection if bounds.impatient else StatelessConnection,
    }


def failure(error: BaseException, bounds: Bounds) -> StoreUnavailable:
    """One of `FAILURES`, raised by a statement, as the store's own error."""
    match error:
        case asyncpg.DeadlockDetectedError() | asyncpg.SerializationError():
            return TransactionUndone(error)
        case asyncpg.LockNotAvailableError():
            return LockHeld(error)
        case asyncpg.UndefinedTableError():
            return StoreUnavailable(_NO_TABLES)
        case TimeoutError(errno=None):  # with a number it is the network's
            return StatementTimedOut(bounds.statement_s, error)
        case _:
            return StoreUnavailable(NO_ANSWER, said_by(error))


def said_by(error: BaseException) -> str:
    """A failure in words for a log, never none; what a driver says of its own insides is left out."""
    if isinstance(error, asyncpg.InternalClientError):
        return "the connection broke"
    return str(error) or type(error).__name__
