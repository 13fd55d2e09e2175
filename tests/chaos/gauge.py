"""What a scenario throws its dice with, and what it counts."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random
from typing import TypeVar

import asyncpg

from tests.invariants import check_invariants

_T = TypeVar("_T")


@dataclass(slots=True)
class Gauge:
    """
    Args:
        dice: seeded for this scenario.
        full: whether this is the long form.

    Attributes:
        runs: how many runs the scenario has made.
        kills: how many processes, connections or servers it has ended or cut.
        checked: how often the invariants were asked for; `violations` how often they did not hold.
        measured: what is told beside the table, one line each.
    """

    number: int
    seed: int
    dice: Random
    full: bool
    runs: int = 0
    kills: int = 0
    checked: int = 0
    violations: int = 0
    measured: list[str] = field(default_factory=list[str])

    def size(self, full: _T, short: _T) -> _T:
        """One of two sizes: that of `make chaos` or that of `make test`."""
        return full if self.full else short

    async def check(self, database_url: str) -> None:
        """Raises AssertionError with all invariants that do not hold."""
        self.checked += 1
        connection = await asyncpg.connect(database_url, statement_cache_size=0)
        try:
            await check_invariants(connection)
        except AssertionError:
            self.violations += 1
            raise
        finally:
            await connection.close()
