"""A database whose connections break when a test says so."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from app.db.database import Connection, Database
from app.engine.store_errors import StoreUnavailable


class Breaking(Database):
    """A database whose connections break `before` a statement is sent, or `after` it took place, so many times."""

    before = 0
    after = 0
    meanwhile: str | None = None  # a statement of others, before the next sending

    @asynccontextmanager
    async def connection(self) -> AsyncGenerator[Connection]:
        if self.before:
            self.before -= 1
            raise StoreUnavailable("the connection broke before anything was sent")
        async with super().connection() as connection:
            yield connection
        if self.after:
            self.after -= 1
            if self.meanwhile is not None:
                await self.pool.execute(self.meanwhile)
            raise StoreUnavailable("the connection broke before the answer came")
