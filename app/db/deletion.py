"""Removing runs that are over, with their child runs."""

from __future__ import annotations

from uuid import UUID

from app.db import steering
from app.db.database import Connection
from app.db.family import may_need
from app.engine.status import RunStatus
from app.engine.store_errors import RunConflict


async def delete_run(connection: Connection, run_id: str) -> None:
    """Remove a terminal run and its child runs, with their threads. The messages that it wrote stay in its own thread.

    Raises:
        RunNotFound: there is no such run.
        RunConflict: it, or one of its child runs, is not terminal; or its parent may have to take in how it ended.
    """
    locked = await steering.lock(connection, run_id)
    parent = locked.run.parent_run_id
    if parent is not None and await may_need(connection, parent, run_id):
        raise RunConflict(
            f"its parent run {parent} may go on and need it: delete that, when it is over", locked.run.status
        )
    family = await connection.fetch(
        """WITH RECURSIVE family AS (
               SELECT run_id, thread_key, status FROM runs WHERE run_id = $1
               UNION SELECT r.run_id, r.thread_key, r.status FROM runs r JOIN family f ON r.parent_run_id = f.run_id)
           SELECT run_id, thread_key, status FROM family""",
        locked.row["run_id"],
    )
    for member in family:
        status = RunStatus(member["status"])
        if not status.terminal:
            which = "the run" if member["run_id"] == locked.row["run_id"] else f"its child run {member['run_id']}"
            raise RunConflict(f"{which} is {status}: cancel it before it is deleted", status)
    ids = [member["run_id"] for member in family]
    for table in ("run_events", "checkpoints", "tool_executions", "interactions", "runs"):
        await connection.execute(f"DELETE FROM {table} WHERE run_id = ANY ($1)", ids)
    threads = [member["thread_key"] for member in family if member["run_id"] != locked.row["run_id"]]
    await _delete_empty_threads(connection, threads)


async def _delete_empty_threads(connection: Connection, thread_keys: list[UUID]) -> None:
    """Remove threads that were made for child runs, but for those that other runs have used as well."""
    rows = await connection.fetch(
        """DELETE FROM threads t WHERE thread_key = ANY ($1)
           AND NOT EXISTS (SELECT 1 FROM runs r WHERE r.thread_key = t.thread_key) RETURNING thread_key""",
        thread_keys,
    )
    await connection.execute("DELETE FROM messages WHERE thread_key = ANY ($1)", [row["thread_key"] for row in rows])
