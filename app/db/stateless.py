"""A connection that leaves nothing behind in its session.

Behind a pooler in transaction mode each transaction may be given another server connection, and what is set on one is
somebody else's then.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import asyncpg

if TYPE_CHECKING:
    from asyncpg.connection import ServerCapabilities

    class _Base(asyncpg.Connection[asyncpg.Record]):
        """What asyncpg's stubs leave out."""

        _server_caps: ServerCapabilities

        async def _introspect_types(self, typeoids: Iterable[int], timeout: float | None) -> object: ...
else:
    _Base = asyncpg.Connection

LOCK_WAIT_S = 3


class StatelessConnection(_Base):
    """asyncpg looks types up that it meets for the first time, arrays for instance, and switches JIT off before that
    and on after it: for the session, and in messages of their own. Here it is for a transaction."""

    __slots__ = ()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._server_caps = self._server_caps._replace(jit=False)

    async def _introspect_types(self, typeoids: Iterable[int], timeout: float | None) -> object:
        if self.is_in_transaction():
            await self.execute("SET LOCAL jit = off", timeout=timeout)
            return await super()._introspect_types(typeoids, timeout)
        await self.execute("BEGIN; SET LOCAL jit = off", timeout=timeout)
        try:
            return await super()._introspect_types(typeoids, timeout)
        finally:
            await self.execute("COMMIT")


class ImpatientConnection(StatelessConnection):
    """One whose transactions do not wait for a lock for longer than `LOCK_WAIT_S`.

    That is said in the very message that begins the transaction: a round trip more would be paid by every request.
    """

    __slots__ = ()

    async def execute(self, query: str, *args: Any, timeout: float | None = None) -> str:
        if query.startswith("BEGIN"):  # as `Connection.transaction` sends it, which SQLAlchemy uses as well
            query = f"{query.rstrip(';')}; SET LOCAL lock_timeout = '{LOCK_WAIT_S}s'"
        return await super().execute(query, *args, timeout=timeout)
