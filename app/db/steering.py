"""What a caller may do to a run, whoever owns it: stop, pause, resume.

These transitions read other rows, so each first locks (the thread's row, then the run's) and reads afterwards, in a
later statement of the same READ COMMITTED transaction. The functions run inside the caller's transaction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import asyncpg
import orjson

from app.db.database import Connection
from app.db.rows import (
    RUN_COLUMNS,
    TOOL_EXECUTIONS,
    event_from_row,
    json_text,
    overrides_as_json,
    run_from_row,
    run_uuid,
    usage_from_row,
)
from app.engine.apply import closing_event
from app.engine.errors import RunError
from app.engine.events import Event, EventType, ResumeReason, StoredEvent, encode
from app.engine.limits import Limits
from app.engine.records import RunRecord, Stopped
from app.engine.recover import partial_text
from app.engine.state import RunState
from app.engine.status import RunStatus
from app.engine.store_errors import RunConflict, RunNotFound


@dataclass(frozen=True, slots=True)
class LockedRun:
    """A run whose thread and row this transaction has locked."""

    row: asyncpg.Record
    run: RunRecord
    in_line: bool

    @property
    def holds_thread(self) -> bool:
        return self.row["holds_thread"]


async def lock(connection: Connection, run_id: str) -> LockedRun:
    """Lock a run's thread, then the run; read it as it is after that.

    Raises:
        RunNotFound: there is no such run.
    """
    key = run_uuid(run_id)
    thread_key = await connection.fetchval("SELECT thread_key FROM runs WHERE run_id = $1", key)
    if thread_key is None:
        raise RunNotFound(run_id)
    await connection.execute("SELECT 1 FROM threads WHERE thread_key = $1 FOR NO KEY UPDATE", thread_key)
    row = await connection.fetchrow(f"SELECT {RUN_COLUMNS} FROM runs WHERE run_id = $1 FOR NO KEY UPDATE", key)
    if row is None:
        raise RunNotFound(run_id)
    waits = row["status"] == RunStatus.QUEUED and not row["holds_thread"] and row["ordinal"] is not None
    return LockedRun(row, run_from_row(row), waits)


async def stop(
    connection: Connection, locked: LockedRun, status: RunStatus, reason: RunError, *, promote: bool = True
) -> Stopped:
    """End a run now, with the text that its open step has committed; the owner's later writes meet a new epoch.

    Args:
        promote: False if the caller gives the thread's slot to a run of its own.
    """
    run = locked.run
    if run.status.terminal:
        return Stopped(await reread(connection, run.run_id), changed=False)
    text = reason.message if status is RunStatus.FAILED else await _committed_text(connection, run.run_id)
    state = RunState(step=run.step, usage=usage_from_row(locked.row))
    error = None if status is RunStatus.CANCELLED else reason
    event = closing_event(state, status, text, reason)
    result = {"final_text": text, "final_structured": None, "model": None, "provider": None}
    at = await connection.fetchval(
        """UPDATE runs SET status = $2, epoch = epoch + 1, last_seq = last_seq + 1, owner = NULL, control = NULL,
                  holds_thread = false, finished_at = clock_timestamp(), result = $3::json, error = $4::json
           WHERE run_id = $1 RETURNING finished_at""",
        locked.row["run_id"],
        status.value,
        json_text(result | await _answered_by(connection, run.run_id)),
        None if error is None else json_text(error.as_dict()),
    )
    events = await _append(connection, run, [event], at)
    promoted = await _leave_thread(connection, locked, promote=promote)
    return Stopped(await reread(connection, run.run_id), True, events, promoted)


async def void_messages(connection: Connection, run: RunRecord) -> None:
    """Take a run's messages out of its thread; the rows stay."""
    await connection.execute(
        "UPDATE messages SET voided = true WHERE thread_key = $1::uuid AND run_id = $2::uuid",
        run.thread_key,
        run.run_id,
    )


async def pause(connection: Connection, locked: LockedRun) -> Stopped:
    """Pause a run that nobody executes; ask the owner of one that runs to stop at its next step boundary.

    Raises:
        RunConflict: the run is terminal.
    """
    run = locked.run
    match run.status:
        case RunStatus.PAUSED:
            return Stopped(await reread(connection, run.run_id), changed=False)
        case RunStatus.RUNNING:
            await connection.execute("UPDATE runs SET control = 'pause' WHERE run_id = $1", locked.row["run_id"])
            return Stopped(await reread(connection, run.run_id), changed=not run.pause_requested)
        case RunStatus.QUEUED | RunStatus.WAITING:
            at = await connection.fetchval(
                """UPDATE runs SET status = 'paused', control = NULL, last_seq = last_seq + 1
                   WHERE run_id = $1 RETURNING clock_timestamp()""",
                locked.row["run_id"],
            )
            if locked.in_line:
                await _leave_line(connection, locked)
            event = Event(EventType.RUN_PAUSED, run.step, {"reason": "requested"}, RunStatus.PAUSED)
            events = await _append(connection, run, [event], at)
            return Stopped(await reread(connection, run.run_id), True, events)
        case _:
            raise RunConflict(f"the run is {run.status}: it cannot be paused", run.status)


async def resume(connection: Connection, locked: LockedRun, limits: Limits | None) -> Stopped:
    """Put a run back into the queue where its status allows it.

    Whether it would meet a limit at once is the caller's to have checked, before.

    Raises:
        RunConflict: the run is cancelled, or a later run has written to the thread.
    """
    run = locked.run
    match run.status:
        case RunStatus.QUEUED | RunStatus.WAITING | RunStatus.COMPLETED | RunStatus.DEGRADED:
            return Stopped(await reread(connection, run.run_id), changed=False)
        case RunStatus.RUNNING:
            await connection.execute("UPDATE runs SET control = NULL WHERE run_id = $1", locked.row["run_id"])
            return Stopped(await reread(connection, run.run_id), changed=run.pause_requested)
        case RunStatus.CANCELLED:
            raise RunConflict("the run is cancelled: it cannot be resumed", run.status)
        case RunStatus.PAUSED:
            await _queue_again(connection, locked, limits, ResumeReason.PAUSE)
        case RunStatus.FAILED | RunStatus.INTERRUPTED:
            await _refuse_overtaken(connection, locked)
            failed = run.status is RunStatus.FAILED
            await _queue_again(connection, locked, limits, ResumeReason.FAILURE if failed else ResumeReason.INTERRUPT)
    return Stopped(await reread(connection, run.run_id), changed=True)


async def delete_run(connection: Connection, run_id: str) -> None:
    """Remove a terminal run and its child runs. The messages that they wrote stay in their threads.

    Raises:
        RunNotFound: there is no such run.
        RunConflict: it is not terminal.
    """
    locked = await lock(connection, run_id)
    if not locked.run.status.terminal:
        message = f"the run is {locked.run.status}: cancel it before it is deleted"
        raise RunConflict(message, locked.run.status)
    ids = [
        row["run_id"]
        for row in await connection.fetch(
            """WITH RECURSIVE family AS (
                   SELECT run_id FROM runs WHERE run_id = $1
                   UNION SELECT r.run_id FROM runs r JOIN family f ON r.parent_run_id = f.run_id)
               SELECT run_id FROM family""",
            locked.row["run_id"],
        )
    ]
    for table in ("run_events", "checkpoints", "tool_executions", "runs"):
        await connection.execute(f"DELETE FROM {table} WHERE run_id = ANY ($1)", ids)


async def reread(connection: Connection, run_id: str) -> RunRecord:
    row = await connection.fetchrow(f"SELECT {RUN_COLUMNS} FROM runs WHERE run_id = $1::uuid", run_id)
    if row is None:
        raise RunNotFound(run_id)
    return run_from_row(row, await connection.fetch(TOOL_EXECUTIONS, row["run_id"]))


async def _committed_text(connection: Connection, run_id: str) -> str:
    """The text of the open step that readers have seen and that is not void: it is behind the step's checkpoint."""
    rows = await connection.fetch(
        """SELECT seq, type, created_at, body FROM run_events
           WHERE run_id = $1::uuid AND type IN ('text_delta', 'run_resumed', 'warning') AND seq >
               (SELECT COALESCE(max(seq), 0) FROM checkpoints WHERE run_id = $1::uuid AND phase = 'call_model')
           ORDER BY seq""",
        run_id,
    )
    return partial_text([event_from_row(row) for row in rows])


async def _answered_by(connection: Connection, run_id: str) -> dict[str, str | None]:
    state = await connection.fetchval(
        "SELECT state FROM checkpoints WHERE run_id = $1::uuid ORDER BY seq DESC LIMIT 1", run_id
    )
    kept: dict[str, str | None] = {} if state is None else orjson.loads(state)
    return {"model": kept.get("model"), "provider": kept.get("provider")}


async def _append(
    connection: Connection, run: RunRecord, events: Sequence[Event], at: datetime
) -> tuple[StoredEvent, ...]:
    """Write events whose numbers the run's counter has already given out, after `run` was read."""
    stored = tuple(
        StoredEvent(run.last_event_seq + i, event.type.value, at, encode(event, run.identity))
        for i, event in enumerate(events, 1)
    )
    await connection.executemany(
        "INSERT INTO run_events (run_id, seq, type, created_at, body) VALUES ($1::uuid, $2, $3, $4, $5::json)",
        [(run.run_id, event.seq, event.type, event.created_at, event.body) for event in stored],
    )
    return stored


async def _leave_thread(connection: Connection, locked: LockedRun, *, promote: bool) -> str | None:
    """Give up the slot, or the place in line; the id of the run that holds the thread now, if it is a new one."""
    thread_key = locked.row["thread_key"]
    if locked.in_line:
        await _leave_line(connection, locked)
    if not locked.holds_thread:
        return None
    await connection.execute("UPDATE threads SET holder_run_id = NULL WHERE thread_key = $1", thread_key)
    promoted = await connection.fetchval("SELECT promote_next($1)", thread_key) if promote else None
    return None if promoted is None else str(promoted)


async def _leave_line(connection: Connection, locked: LockedRun) -> None:
    await connection.execute("UPDATE threads SET queued = queued - 1 WHERE thread_key = $1", locked.row["thread_key"])


async def _refuse_overtaken(connection: Connection, locked: LockedRun) -> None:
    """A run that has begun does not go on behind another one's back: not after it has written, nor while it may."""
    run = locked.run
    began_at = await connection.fetchval("SELECT max(message_seq) FROM checkpoints WHERE run_id = $1::uuid", run.run_id)
    if began_at is None:
        return
    later = await connection.fetchval(
        """SELECT holder_run_id FROM threads WHERE thread_key = $1::uuid AND holder_run_id IS NOT NULL
           UNION ALL
           (SELECT run_id FROM messages
            WHERE thread_key = $1::uuid AND NOT voided AND run_id <> $2::uuid AND seq > $3 LIMIT 1)
           LIMIT 1""",
        run.thread_key,
        run.run_id,
        began_at,
    )
    if later is not None:
        message = f"run {later} has the thread, or has written to it since: this run cannot go on"
        raise RunConflict(message, run.status)


async def _queue_again(connection: Connection, locked: LockedRun, limits: Limits | None, reason: ResumeReason) -> None:
    """Queued, as the thread's holder if the slot is free and else in line at the run's own place."""
    run, thread_key = locked.run, locked.row["thread_key"]
    holds = locked.holds_thread
    waits_for_its_time = locked.row["ordinal"] is None
    if not holds and not waits_for_its_time:
        holds = await connection.fetchval(
            """UPDATE threads SET queued = queued + (holder_run_id IS NOT NULL)::int,
                                  holder_run_id = COALESCE(holder_run_id, $2::uuid)
               WHERE thread_key = $1 RETURNING holder_run_id = $2::uuid""",
            thread_key,
            run.run_id,
        )
    await connection.execute(
        """UPDATE runs SET status = 'queued', holds_thread = $2, control = NULL, crashes = 0, owner = NULL,
                  epoch = epoch + 1, finished_at = NULL, result = NULL, error = NULL,
                  available_at = CASE WHEN ordinal IS NULL THEN available_at ELSE clock_timestamp() END,
                  resume_reason = CASE WHEN started_at IS NOT NULL THEN $3 END,
                  wall_from_s = CASE WHEN $4 THEN elapsed_s ELSE wall_from_s END,
                  overrides = $5::json
           WHERE run_id = $1""",
        locked.row["run_id"],
        holds,
        reason.value,
        reason is not ResumeReason.PAUSE,
        overrides_as_json(run.overrides.resumed_with(limits)),
    )
