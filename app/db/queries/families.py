"""How far the logs of a run and of the runs below it go."""

from __future__ import annotations

from collections.abc import Collection

from app.db.database import Connection
from app.db.reading import RunHead
from app.engine.status import RunStatus


async def heads(connection: Connection, run_id: str, members: Collection[str]) -> dict[str, RunHead]:
    """Those of the members that are there and of the same family as the run, by id; as they are at one moment."""
    rows = await connection.fetch(
        """SELECT run_id, status, COALESCE(ordinal, 0) AS ordinal, first_seq, last_seq FROM runs
           WHERE run_id = ANY ($2::uuid[]) AND root_run_id = (SELECT root_run_id FROM runs WHERE run_id = $1::uuid)""",
        run_id,
        list(members),
    )
    found = [
        RunHead(str(row["run_id"]), RunStatus(row["status"]), row["ordinal"], row["first_seq"], row["last_seq"])
        for row in rows
    ]
    return {head.run_id: head for head in found}
