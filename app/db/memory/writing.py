"""An owner's write: all that it commits, with the child runs that begin and end with it."""

from __future__ import annotations

from datetime import datetime

from app.db.memory import children, steering
from app.db.memory.rows import RunRow
from app.db.memory.stimuli import wake_parent
from app.db.memory.tables import Tables
from app.engine.events import Event, ResumeReason, StoredEvent
from app.engine.ownership import Committed, Write
from app.engine.records import Stopped
from app.engine.status import RunStatus


def commit(tables: Tables, row: RunRow, write: Write) -> Committed:
    """Write for an owner whose fence holds and who has seen all that others have stored."""
    now = tables.clock()
    pauses = row.pause_requested and write.on_pause is not None
    status = RunStatus.PAUSED if pauses else write.status
    tail: tuple[Event, ...] = (write.on_pause or ()) if pauses else write.opening
    row.write_no += 1
    row.step, row.elapsed_s = write.step, write.elapsed_s
    row.usage, row.cost_usd = write.usage, write.cost_usd
    row.crashes = 0 if write.progress else row.crashes
    row.save_calls(write.records, now)
    unanswered = [child for _, child in children.of_open_calls(tables, row)]
    row.ask(write.interactions, now)
    row.close(write.closes, now)
    messages = (*write.start, *write.messages)
    row.thread.append(messages, row.run_id)
    if write.compaction is not None:
        row.thread.compact(write.compaction, row.run_id)
    message_seq = row.thread.last_seq if messages else None
    events = _append_events(row, write, tail, message_seq or write.message_seq, now)
    for new in write.children:
        children.begin(tables, new, now)
    promoted = _move(tables, row, write, status, now)
    stopped = _stop_children(tables, write)
    if status.terminal:
        children.add_spending(row, unanswered)
    first = None if message_seq is None else message_seq - len(messages) + 1
    return Committed(
        fence=row.fence,
        events=events,
        status=row.status,
        first_message_seq=first,
        message_seq=message_seq,
        promoted=promoted,
        stopped=stopped,
        woken=wake_parent(tables, write.parent_run_id, now) if status.terminal else None,
    )


def _append_events(
    row: RunRow, write: Write, tail: tuple[Event, ...], message_seq: int, now: datetime
) -> tuple[StoredEvent, ...]:
    if write.checkpoint is not None:
        row.save_checkpoint(write.checkpoint, len(row.events) + len(write.events), message_seq)
    return row.append_events((*write.events, *tail), now)


def _move(tables: Tables, row: RunRow, write: Write, status: RunStatus, now: datetime) -> str | None:
    """Take a run to the status that a write gives it; the id of the run that gets its slot."""
    if status.terminal:
        tables.end(row, status, write.result, write.error, now)
        return tables.promote(row.thread, now)
    row.status = status
    row.waiting_for = write.waiting_for
    if status is RunStatus.PAUSED:
        row.pause_requested = False
        row.resume_reason = ResumeReason.PAUSE
    if status is not RunStatus.RUNNING:
        row.owner = None
    return None


def _stop_children(tables: Tables, write: Write) -> tuple[Stopped, ...]:
    """End the child runs that a write ends. A run that goes on is woken by it, for it has their ends to take in."""
    if write.stops is None:
        return ()
    known = (tables.runs.get(run_id) for run_id in write.stops.run_ids)
    rows = [row for row in known if row is not None]
    return steering.stop_all(tables, rows, write.stops.status, write.stops.reason)
