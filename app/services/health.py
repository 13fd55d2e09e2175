"""Whether this replica can do its work, and what it can do."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from app.db.database import Database
from app.db.migrate import current, missing
from app.engine.store_errors import StoreUnavailable

ANSWER_WITHIN_S = 5.0


class Health:
    """
    Args:
        accepting: whether the replica takes work: it holds its lease and does not drain.
        broken: what has ended that the replica cannot do its work without; None if nothing has.
        about: what `/info` says.
    """

    def __init__(
        self,
        database: Database,
        accepting: Callable[[], bool],
        broken: Callable[[], str | None],
        about: dict[str, Any],
    ) -> None:
        self._database = database
        self._accepting = accepting
        self._broken = broken
        self._about = about

    async def unready_reason(self) -> str | None:
        """Why requests should go elsewhere; None if they are welcome here. Answers within five seconds."""
        broken = self._broken()
        if broken is not None:
            return broken  # first, as nothing of what follows mends it
        try:
            async with asyncio.timeout(ANSWER_WITHIN_S), self._database.connection() as connection:
                problem = missing(await current(connection))
        except (StoreUnavailable, TimeoutError) as error:
            return str(error) or "the database does not answer in time"
        if problem is not None:
            return problem
        return None if self._accepting() else "this replica is shutting down or has lost its lease; it takes no work"

    def info(self) -> dict[str, Any]:
        return self._about
