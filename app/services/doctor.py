"""What is stuck or broken in a service's database, in words, with what to do about it. Reads only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import asyncpg

from app.db.database import Connection
from app.db.diagnosis import MOST_ROWS, Look, Surroundings, look
from app.db.invariants import Checked, check_here
from app.db.migrate import current, shortfall
from app.services.findings import Example, Finding, Severity, findings_of, number, replica_of, values, whole


@dataclass(frozen=True, slots=True)
class Report:
    """What a look at a database found, worst first.

    Args:
        server, counts, replicas: the database's version, its runs by status, its replicas; empty where unread.
    """

    findings: tuple[Finding, ...]
    server: str = ""
    counts: Mapping[str, int] | None = None
    replicas: tuple[Example, ...] = ()

    @property
    def problems(self) -> int:
        return sum(finding.severity is Severity.PROBLEM for finding in self.findings)

    @property
    def verdict(self) -> str:
        """All of it in one line."""
        notes = len(self.findings) - self.problems
        if self.problems == 0:
            return "nothing is wrong" + (f"; {number(notes, 'note')}" if notes else "")
        return f"{number(self.problems, 'problem')}, {number(notes, 'note')}"


def unexamined(kind: str, reason: str, fix: str) -> Report:
    """The report where nothing can be looked at at all; `reason` and `fix` are for a person."""
    return Report((Finding(kind, Severity.PROBLEM, reason, fix),))


async def examine(connection: Connection, around: Surroundings, max_concurrent_runs: int) -> Report:
    """Look at the database behind a connection that is in no transaction. Nothing is written.

    Args:
        max_concurrent_runs: how many runs one replica executes at once.

    Raises:
        asyncpg.PostgresError, OSError: the database broke off.
    """
    server = f"PostgreSQL {await connection.fetchval('SHOW server_version')}"
    try:
        unready = shortfall(await current(connection))
    except asyncpg.InsufficientPrivilegeError as error:
        return Report((_not_seen("migrations", str(error)),), server)
    if unready is not None:
        return Report((Finding("migrations", Severity.PROBLEM, unready, "run `agent-runner migrate`"),), server)
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        return await examine_here(connection, server, around, max_concurrent_runs)


async def examine_here(connection: Connection, server: str, around: Surroundings, max_concurrent_runs: int) -> Report:
    """The same inside the caller's transaction, for a database that is migrated; `server` is its version."""
    seen = {what: await look(connection, what, around) for what in Look}
    findings = [_not_seen(what, each.missing) for what, each in seen.items() if each.missing is not None]
    findings += await _broken(connection)
    findings += findings_of(seen, around, max_concurrent_runs)
    counts = {str(row["status"]): whole(row["runs"]) for row in seen[Look.COUNTS].rows}
    replicas = tuple(Example(replica_of(row, around.lease_s), row) for row in seen[Look.REPLICAS].rows)
    worst_first = sorted(findings, key=lambda finding: finding.severity is not Severity.PROBLEM)
    return Report(tuple(worst_first), server, counts, replicas)


async def _broken(connection: Connection) -> list[Finding]:
    """The invariants that do not hold, one finding each."""
    try:
        async with connection.transaction():  # a savepoint, for a role that may not read all tables
            checked = await check_here(connection, most_rows=MOST_ROWS)
    except (asyncpg.InsufficientPrivilegeError, asyncpg.QueryCanceledError) as error:
        return [_not_seen("invariants", str(error))]
    found = [
        Finding(
            "invariant",
            Severity.PROBLEM,
            f"broken: {broken.invariant.promise}; {broken.invariant.meaning}",
            "this is a defect of the service or of what else writes to its database: keep a copy and report it",
            tuple(Example(values(row), row) for row in broken.rows),
            len(broken.rows) + broken.more,
            exact=not broken.more,
        )
        for broken in checked.broken
    ]
    return [*found, *_not_checked(checked)]


def _not_checked(checked: Checked) -> list[Finding]:
    found: list[Finding] = []
    if checked.unfinished:
        said = f"{number(len(checked.unfinished), 'invariant')} could not be checked within the time"
        examples = tuple(Example(each.promise, {}) for each in checked.unfinished)
        found.append(Finding("unchecked", Severity.NOTE, said, None, examples, len(examples)))
    if not checked.all_runs:
        found.append(
            Finding(
                "window", Severity.NOTE, f"invariants were checked of the {checked.runs} newest and active runs only"
            )
        )
    return found


def _not_seen(kind: str, reason: str) -> Finding:
    said = f"{kind} could not be looked at: {reason}"
    return Finding(
        "unseen", Severity.PROBLEM, said, "use a role that may read all tables, or try again when it is quiet"
    )
