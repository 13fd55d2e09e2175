"""What holds in the database of a service at any moment, whatever was killed before."""

from __future__ import annotations

from typing import Any

import asyncpg

from app.db.invariants import check_all

_SHOWN = 5


async def check_invariants(connection: asyncpg.Connection[Any]) -> None:
    """Raises AssertionError, with all that is broken and a few of the rows that break it."""
    checked = await check_all(connection, most_rows=_SHOWN)
    assert not checked.unfinished, [invariant.promise for invariant in checked.unfinished]
    assert not checked.broken, "\n".join(f"{each.invariant.promise}: {list(each.rows)}" for each in checked.broken)
