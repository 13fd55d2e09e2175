"""Runs that ended days ago, and a sweeper for them."""

from __future__ import annotations

from app.db.database import Database
from app.db.run_store import PostgresRunStore
from app.engine.records import NewRun
from app.engine.status import RunStatus as S
from app.telemetry.metrics import Metrics
from app.worker.sweeper import Retention, Sweeper
from tests.contract.stores import (
    OWNER,
    Owner,
    create_started,
)

DAY = 86_400
ALL = Retention(runs_days=1, events_days=1, checkpoints_days=1, deltas_days=1)
EVENTS = Retention(events_days=1)
RUNS = Retention(runs_days=1)


def a_sweeper(database: Database, keep: Retention, replica: str = OWNER) -> Sweeper:
    return Sweeper(database, replica, keep, Metrics())


async def a_long_run(store: PostgresRunStore, status: S = S.COMPLETED, new: NewRun | None = None) -> Owner:
    """A run of two steps that is over: with deltas, tool calls and three checkpoints."""
    owner = await create_started(store, new)
    await owner.say("Let me ", "look.")
    await owner.ask("look")
    await owner.close_step()
    await owner.say("Done", ".")
    await owner.finish(status)
    return owner


async def set_back(database: Database, *run_ids: str, days: float = 2) -> None:
    """As if these runs, or all, had ended so much earlier, and nobody had written to their threads since."""
    which = list(run_ids) or [row["run_id"] for row in await database.pool.fetch("SELECT run_id FROM runs")]
    await database.pool.execute(
        """UPDATE runs SET finished_at = finished_at - make_interval(secs => $2)
           WHERE run_id = ANY ($1::uuid[]) AND finished_at IS NOT NULL""",
        which,
        days * DAY,
    )
    await database.pool.execute(
        """UPDATE threads SET updated_at = updated_at - make_interval(secs => $2)
           WHERE thread_key IN (SELECT thread_key FROM runs WHERE run_id = ANY ($1::uuid[]))""",
        which,
        days * DAY,
    )


async def rows_of(database: Database, run_id: str) -> tuple[int, int, int]:
    """How many runs of that id there are, events and checkpoints."""
    row = await database.pool.fetchrow(
        """SELECT (SELECT count(*) FROM runs WHERE run_id = $1::uuid),
                  (SELECT count(*) FROM run_events WHERE run_id = $1::uuid),
                  (SELECT count(*) FROM checkpoints WHERE run_id = $1::uuid)""",
        run_id,
    )
    assert row is not None
    return tuple(row)


async def count(database: Database, table: str) -> int:
    return await database.pool.fetchval(f"SELECT count(*) FROM {table}")


async def check_logs(database: Database) -> None:
    """Every log begins and ends where its run says, and has no gaps but those of deltas."""
    broken = await database.pool.fetch(
        """SELECT r.run_id, first_seq, last_seq, deltas_trimmed, min(seq), max(seq), count(*)
           FROM runs r JOIN run_events e USING (run_id) GROUP BY r.run_id
           HAVING min(seq) <> first_seq OR max(seq) <> last_seq
               OR (count(*) <> last_seq - first_seq + 1 AND NOT deltas_trimmed)"""
    )
    assert broken == []


async def expire(database: Database) -> None:
    """As if so much time had passed that chores which nobody holds on can be taken."""
    await database.pool.execute("UPDATE chores SET held_until = clock_timestamp()")


async def forget_marks(database: Database) -> None:
    """Let runs be found that the test has set back behind what is done."""
    await database.pool.execute("UPDATE chores SET done_up_to = NULL")
