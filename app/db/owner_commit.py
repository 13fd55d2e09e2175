"""An owner's commit: the fenced write, with what it does to other runs and to questions in the same transaction."""

from __future__ import annotations

from dataclasses import replace

from app.db import interactions
from app.db.database import Connection
from app.db.family import charge_children, create_children, lock_parent, wake
from app.db.fenced_write import FencedWrite
from app.db.steering import stop_children
from app.engine.ownership import Committed, Woken, Write
from app.engine.status import RunStatus


def stands_alone(write: Write) -> bool:
    """Whether a write touches rows of its own run only, so that its one statement is the whole transaction."""
    return not (
        write.children
        or write.stops
        or write.interactions
        or write.closes
        or (write.parent_run_id and write.status.terminal)
    )


async def send_with_others(connection: Connection, fenced: FencedWrite, write: Write) -> Committed | None:
    """Commit a write inside the caller's transaction, together with what it does to others. None: the fence is lost."""
    run_id = fenced.fence.run_id
    ends = write.status.terminal
    parent = await lock_parent(connection, run_id) if ends and write.parent_run_id is not None else None
    committed = await fenced.send(connection)
    if committed is None:
        return None
    if write.interactions:
        tenant_id = await connection.fetchval("SELECT tenant_id FROM runs WHERE run_id = $1::uuid", run_id)
        await interactions.ask(connection, tenant_id, run_id, write.interactions)
    if write.closes:
        await interactions.close(connection, write.closes)
    if write.children:
        await create_children(connection, write.children)
    if write.stops is not None:
        stops = write.stops
        stopped = await stop_children(connection, stops.run_ids, stops.status, stops.reason, wake_parent=not ends)
        committed = replace(committed, stopped=stopped)
        if ends:
            await charge_children(connection, run_id)
    return committed if parent is None else replace(committed, woken=await wake(connection, parent))


async def why_not(connection: Connection, fenced: FencedWrite, *, sent_before: bool) -> Committed | Woken | None:
    """What became of a write whose fence did not hold.

    Returns:
        the commit, if an earlier sending of the same write took place and only its answer was lost; `Woken`, if the
        owner has to take something in first; None if the run is lost.
    """
    fence = fenced.fence
    row = await connection.fetchrow(
        """SELECT r.status, r.write_no, r.last_seq, t.next_seq FROM runs r JOIN threads t USING (thread_key)
           WHERE r.run_id = $1::uuid AND r.epoch = $2""",
        fence.run_id,
        fence.epoch,
    )
    if row is None:
        return None
    status = RunStatus(row["status"])
    if row["write_no"] == fence.write_no:
        return Woken() if status is RunStatus.RUNNING else None
    if not sent_before or row["write_no"] != fence.write_no + 1:
        return None
    types = fenced.event_types(status)
    # Others may have appended to the log since; the events of one write stand together and share its time.
    events = await connection.fetch(
        "SELECT seq, type, created_at FROM run_events WHERE run_id = $1::uuid ORDER BY seq DESC LIMIT $2",
        fence.run_id,
        2 * len(types) + 20,
    )
    events.reverse()
    for first in range(len(events) - len(types), -1, -1):
        found = events[first : first + len(types)]
        if [event["type"] for event in found] == types and found[0]["created_at"] == found[-1]["created_at"]:
            # Should others have written to the thread, the owner takes its messages to stand later, and reads again.
            message = row["next_seq"] - fenced.message_count
            return fenced.committed(status, found[0]["seq"], found[0]["created_at"], message, None)
    return None
