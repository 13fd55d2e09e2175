"""Questions to people as lists, and one of them with what its answer is checked against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from app.db.database import Connection
from app.db.interactions import interaction_from_row
from app.engine.interactions import InteractionRecord, InteractionStatus


@dataclass(frozen=True, slots=True)
class Question:
    """An interaction, and the version of the agent whose run asks."""

    interaction: InteractionRecord
    agent_version_id: str


async def run_exists(connection: Connection, tenant_id: str, run_id: UUID) -> bool:
    return await connection.fetchval("SELECT 1 FROM runs WHERE run_id = $1 AND tenant_id = $2", run_id, tenant_id) == 1


async def of_run(connection: Connection, run_id: UUID, after: UUID | None, limit: int) -> list[InteractionRecord]:
    """A run's questions behind an id, oldest first."""
    rows = await connection.fetch(
        "SELECT * FROM interactions WHERE run_id = $1 AND interaction_id > $2 ORDER BY interaction_id LIMIT $3",
        run_id,
        after or UUID(int=0),
        limit,
    )
    return [interaction_from_row(row) for row in rows]


async def page(
    connection: Connection, tenant_id: str, statuses: Sequence[InteractionStatus], after: UUID | None, limit: int
) -> list[InteractionRecord]:
    """The questions of all runs behind an id, oldest first; of any status if none is named."""
    arguments: list[object] = [tenant_id, after or UUID(int=0), limit]
    restricted = ""
    if statuses:
        restricted = "AND status = ANY ($4)"
        arguments.append([status.value for status in statuses])
    rows = await connection.fetch(
        f"""SELECT * FROM interactions WHERE tenant_id = $1 AND interaction_id > $2 {restricted}
            ORDER BY interaction_id LIMIT $3""",
        *arguments,
    )
    return [interaction_from_row(row) for row in rows]


async def question(connection: Connection, tenant_id: str, run_id: UUID, interaction_id: UUID) -> Question | None:
    """A question of a run; None if the run has no such."""
    row = await connection.fetchrow(
        """SELECT i.*, r.agent_version_id FROM interactions i JOIN runs r USING (run_id)
           WHERE i.interaction_id = $1 AND r.run_id = $2 AND r.tenant_id = $3""",
        interaction_id,
        run_id,
        tenant_id,
    )
    return None if row is None else Question(interaction_from_row(row), str(row["agent_version_id"]))
