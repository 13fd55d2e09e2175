"""Which replicas live: their rows. All times are the database's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from app.db.database import Connection

# A replica beats so often within its lease.
BEATS_PER_LEASE = 5


@dataclass(frozen=True, slots=True)
class Process:
    """What a replica runs as.

    Args:
        machine: names that in which `pid` and `start` mean something; None where the system does not tell.
        start: when the process began, in the system's own ticks; None where the system does not tell.
    """

    host: str
    pid: int
    machine: str | None = None
    start: int | None = None


async def beat(connection: Connection, incarnation: str, process: Process, *, draining: bool) -> int:
    """Say that this replica lives.

    Returns:
        how many other replicas do, by the same lease of a minute that keeps their rows.
    """
    return await connection.fetchval(
        """WITH me AS (
               INSERT INTO replicas (incarnation, host, pid, machine, process_start, draining)
               VALUES ($1::uuid, $2, $3, $4, $5, $6)
               ON CONFLICT (incarnation) DO UPDATE
               SET heartbeat_at = clock_timestamp(), draining = EXCLUDED.draining)
           SELECT count(*) FROM replicas
           WHERE incarnation <> $1::uuid AND heartbeat_at > clock_timestamp() - interval '1 minute'""",
        incarnation,
        process.host,
        process.pid,
        process.machine,
        process.start,
        draining,
    )


async def leave(connection: Connection, incarnation: str) -> None:
    """Say good-bye, so that runs left behind are recovered without waiting for a lease."""
    await forget_replicas(connection, [incarnation])


async def neighbours(connection: Connection, incarnation: str, process: Process) -> dict[str, Process]:
    """The other replicas of the same host and machine, by their incarnation; none where the machine is not known."""
    rows = await connection.fetch(
        """SELECT incarnation, host, pid, machine, process_start FROM replicas
           WHERE host = $2 AND machine = $3 AND incarnation <> $1::uuid""",
        incarnation,
        process.host,
        process.machine,
    )
    return {
        str(row["incarnation"]): Process(row["host"], row["pid"], row["machine"], row["process_start"]) for row in rows
    }


async def forget_replicas(connection: Connection, incarnations: Sequence[str]) -> None:
    """Remove the rows of replicas that are gone: their runs are orphans from now on."""
    await connection.execute("DELETE FROM replicas WHERE incarnation = ANY ($1::uuid[])", incarnations)
