"""Whether this replica can do its work, and what it can do."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from app.db.database import RELEASE_S, Database
from app.db.migrate import current, missing
from app.engine.store_errors import StoreUnavailable

ANSWER_WITHIN_S = 5.0
# Without the time that a connection gets to take its statement back.
_ASK_S = ANSWER_WITHIN_S - RELEASE_S


class Health:
    """
    Args:
        draining: whether the replica was told to stop.
        accepting: whether it takes work: it holds its lease and does not drain.
        broken: what keeps the replica from its work that only a restart mends; None if nothing does.
        shortage: which connections others wait for in vain; None if they do for none.
        about: what `/info` says.
    """

    def __init__(
        self,
        database: Database,
        draining: Callable[[], bool],
        accepting: Callable[[], bool],
        broken: Callable[[], str | None],
        shortage: Callable[[], str | None],
        about: dict[str, Any],
    ) -> None:
        self._database = database
        self._draining = draining
        self._accepting = accepting
        self._broken = broken
        self._shortage = shortage
        self._about = about

    @property
    def draining(self) -> bool:
        """Whether the replica was told to stop: it answers, and whoever asks should go elsewhere the next time."""
        return self._draining()

    async def unready_reason(self) -> str | None:
        """Why requests should go elsewhere; None if they are welcome here. Answers within five seconds."""
        if self._draining():
            return "this replica is shutting down"  # at once, whatever the database does
        broken = self._broken()
        if broken is not None:
            return broken  # first, as nothing of what follows mends it
        try:
            async with asyncio.timeout(_ASK_S), self._database.connection() as connection:
                problem = missing(await current(connection))
        except (StoreUnavailable, TimeoutError) as error:
            return str(error) or "the database does not answer in time"
        problem = problem or self._shortage()
        if problem is not None:
            return problem
        return None if self._accepting() else "this replica has lost its lease; it takes no work"

    def info(self) -> dict[str, Any]:
        return self._about
