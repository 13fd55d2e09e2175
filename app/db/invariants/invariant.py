"""What an invariant is, and the words of SQL that several of them share."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from app.engine.events import DELTA_TYPES, TERMINAL_TYPES
from app.engine.status import RunStatus


class Over(StrEnum):
    """What the first argument of an invariant's query is."""

    RUNS = "runs"  # ids of runs
    THREADS = "threads"  # keys of threads
    LEFTOVERS = "leftovers"  # how many ids of each table are looked at


@dataclass(frozen=True, slots=True)
class Invariant:
    """
    Args:
        promise: what holds, in words; its name as well.
        meaning: what it means for a person where it does not hold.
        query: finds the rows that break it; the column `run_id` or `thread_key` says whose they are.
    """

    promise: str
    meaning: str
    query: str
    over: Over = Over.RUNS


def listed(names: Iterable[str]) -> str:
    """Names as a list of SQL."""
    quoted = [f"'{name}'" for name in sorted(names)]
    return f"({', '.join(quoted)})"


TERMINAL = listed(status for status in RunStatus if status.terminal)
CLOSING = listed(TERMINAL_TYPES)
DELTAS = listed(DELTA_TYPES)


def readable(column: str) -> str:
    r"""A column of JSON that Postgres can read: models may write NUL, and `->` refuses JSON that has \u0000 in it."""
    return (
        rf"(CASE WHEN strpos({column}::text, '\u0000') = 0 THEN {column} ELSE "
        rf"regexp_replace({column}::text, '(?<!\\)((?:\\\\)*)\\u0000', '\1', 'g')::json END)"
    )
