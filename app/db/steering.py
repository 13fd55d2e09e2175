"""What a caller may do to a run, whoever owns it: stop, pause, resume; each with the run's children.

These transitions read other rows, so each first locks (a parent's row, the thread's, then the run's, and so on down)
and reads afterwards, in a later statement of the same READ COMMITTED transaction. The functions run inside the
caller's transaction.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import asyncpg
import orjson

from app.db.database import Connection
from app.db.family import (
    active_children,
    awaits,
    charge_children,
    children_of_open_calls,
    lock_parent,
    uncharge_children,
    wake,
)
from app.db.fenced_write import stored_events
from app.db.rows import (
    RUN_COLUMNS,
    SUBAGENT_EXECUTIONS,
    TOOL_EXECUTIONS,
    event_from_row,
    json_text,
    overrides_as_json,
    run_from_row,
    run_uuid,
)
from app.engine.apply import closing_event
from app.engine.errors import RunError
from app.engine.events import Event, EventType, ResumeReason, StoredEvent, encode
from app.engine.limits import Limits
from app.engine.records import RunRecord, Stopped
from app.engine.recover import partial_text
from app.engine.resume import refuse_new_limits
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
    """Lock the run that the end of this one wakes, this one's thread, then the run; read it as it is after that.

    Raises:
        RunNotFound: there is no such run.
    """
    await lock_parent(connection, run_uuid(run_id))
    return await _lock_member(connection, run_id)


async def _lock_member(connection: Connection, run_id: str) -> LockedRun:
    """Lock a run whose parent, if it has one, is locked."""
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
    connection: Connection,
    locked: LockedRun,
    status: RunStatus,
    reason: RunError,
    *,
    promote: bool = True,
    wake_parent: bool = True,
) -> Stopped:
    """End a run now, with its children, with the text that its open step has committed.

    Open questions are closed. The owner's later writes meet a new epoch.

    Args:
        promote: False if the caller gives the thread's slot to a run of its own.
        wake_parent: False if the parent ends as well.
    """
    run = locked.run
    if run.status.terminal:
        return Stopped(await reread(connection, run.run_id), changed=False)
    family = await _stop_children(connection, run.run_id, status)
    text = reason.message if status is RunStatus.FAILED else await _committed_text(connection, run.run_id)
    state = RunState(step=run.step, usage=run.usage)
    error = None if status is RunStatus.CANCELLED else reason
    event = closing_event(state, status, text, reason)
    result = {"final_text": text, "final_structured": None, "model": None, "provider": None}
    await connection.execute(
        """UPDATE interactions SET status = 'closed', resolved_at = clock_timestamp()
           WHERE run_id = $1 AND status = 'pending'""",
        locked.row["run_id"],
    )
    await connection.execute(
        """UPDATE runs SET status = $2, epoch = epoch + 1, owner = NULL, control = NULL,
                  holds_thread = false, finished_at = clock_timestamp(), result = $3::json, error = $4::json
           WHERE run_id = $1""",
        locked.row["run_id"],
        status.value,
        json_text(result | await _answered_by(connection, run.run_id)),
        None if error is None else json_text(error.as_dict()),
    )
    await charge_children(connection, run.run_id)
    events = await append_events(connection, run, [event])
    promoted = await _leave_thread(connection, locked, promote=promote)
    woken = await wake(connection, run.parent_run_id) if wake_parent and run.parent_run_id is not None else None
    return Stopped(await reread(connection, run.run_id), True, events, promoted, family, woken)


async def stop_children(
    connection: Connection, run_ids: Sequence[str], status: RunStatus, reason: RunError, *, wake_parent: bool
) -> tuple[Stopped, ...]:
    """Stop children of a run that this transaction has locked, in the order of their ids."""
    stopped: list[Stopped] = []
    for run_id in sorted(run_ids):
        try:
            child = await _lock_member(connection, run_id)
        except RunNotFound:
            continue  # deleted: it needs no stopping
        stopped.append(await stop(connection, child, status, reason, wake_parent=wake_parent))
    return tuple(stopped)


async def _stop_children(connection: Connection, run_id: str, status: RunStatus) -> tuple[Stopped, ...]:
    # A child is cancelled only with a cancelled parent: otherwise it may go on when the parent does.
    becomes = RunStatus.CANCELLED if status is RunStatus.CANCELLED else RunStatus.INTERRUPTED
    reason = RunError("parent_ended", f"the parent run is {status}", retryable=becomes is RunStatus.INTERRUPTED)
    children = await active_children(connection, run_id)
    return await stop_children(connection, children, becomes, reason, wake_parent=False)


async def void_messages(connection: Connection, run: RunRecord) -> None:
    """Take a run's messages out of its thread; the rows stay. A summary that it made tells of them, and goes, unless
    what it stands for was purged: it is all that is left of that.
    """
    await connection.execute(
        "DELETE FROM compactions WHERE thread_key = $1::uuid AND run_id = $2::uuid AND NOT purged",
        run.thread_key,
        run.run_id,
    )
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
    changed, events = True, ()
    match run.status:
        case RunStatus.PAUSED:
            changed = False
        case RunStatus.RUNNING:
            await connection.execute("UPDATE runs SET control = 'pause' WHERE run_id = $1", locked.row["run_id"])
            changed = not run.pause_requested
        case RunStatus.QUEUED | RunStatus.WAITING:
            await connection.execute(
                "UPDATE runs SET status = 'paused', control = NULL WHERE run_id = $1", locked.row["run_id"]
            )
            if locked.in_line:
                await _leave_line(connection, locked)
            event = Event(EventType.RUN_PAUSED, run.step, {"reason": "requested"}, RunStatus.PAUSED)
            events = await append_events(connection, run, [event])
        case _:
            raise RunConflict(f"the run is {run.status}: it cannot be paused", run.status)
    children = [await _lock_member(connection, run_id) for run_id in await active_children(connection, run.run_id)]
    family = tuple([await pause(connection, child) for child in children])
    return Stopped(await reread(connection, run.run_id), changed, events, family=family)


async def resume(connection: Connection, locked: LockedRun, limits: Limits | None) -> Stopped:
    """Put a run back into the queue where its status allows it, and the children that it still waits for.

    Whether it would meet a limit at once is the caller's to have checked, before.

    Raises:
        RunConflict: the run is cancelled, or a later run has written to the thread; or limits are stated for one that
            goes on as it is.
    """
    run = locked.run
    changed = True
    match run.status:
        case RunStatus.COMPLETED | RunStatus.DEGRADED:
            return Stopped(await reread(connection, run.run_id), changed=False)
        case RunStatus.QUEUED | RunStatus.WAITING | RunStatus.RUNNING:
            refuse_new_limits(run.status, run.overrides, limits)
            await connection.execute("UPDATE runs SET control = NULL WHERE run_id = $1", locked.row["run_id"])
            changed = run.pause_requested
        case RunStatus.CANCELLED:
            raise RunConflict("the run is cancelled: it cannot be resumed", run.status)
        case RunStatus.PAUSED:
            await _queue_again(connection, locked, limits, ResumeReason.PAUSE)
        case RunStatus.FAILED | RunStatus.INTERRUPTED:
            await _refuse_taken_in(connection, run)
            await _refuse_overtaken(connection, locked)
            failed = run.status is RunStatus.FAILED
            await _queue_again(connection, locked, limits, ResumeReason.FAILURE if failed else ResumeReason.INTERRUPT)
    family = await _resume_children(connection, run.run_id, ended=run.status.terminal)
    return Stopped(await reread(connection, run.run_id), changed, family=family)


async def _resume_children(connection: Connection, run_id: str, *, ended: bool) -> tuple[Stopped, ...]:
    """Let the same child runs go on that were paused with their parent, or interrupted with it if that had `ended`.

    A child that was interrupted while its parent was not is over: the parent takes in how it ended.
    """
    goes_on = {RunStatus.PAUSED, RunStatus.INTERRUPTED} if ended else {RunStatus.PAUSED}
    resumed: list[Stopped] = []
    for child_id in await children_of_open_calls(connection, run_id):
        child = await _lock_member(connection, child_id)
        if child.run.status in goes_on or child.run.pause_requested:
            with suppress(RunConflict):  # somebody has used the child's thread: the parent is told how it ended
                resumed.append(await resume(connection, child, None))
    return tuple(resumed)


async def reread(connection: Connection, run_id: str) -> RunRecord:
    row = await connection.fetchrow(f"SELECT {RUN_COLUMNS} FROM runs WHERE run_id = $1::uuid", run_id)
    if row is None:
        raise RunNotFound(run_id)
    return await with_executions(connection, row)


async def with_executions(connection: Connection, row: asyncpg.Record) -> RunRecord:
    """A run from a row of `RUN_COLUMNS`, with its tool executions and its child runs."""
    tools = await connection.fetch(TOOL_EXECUTIONS, row["run_id"])
    has_children = any(tool["child_run_id"] is not None for tool in tools)
    children = await connection.fetch(SUBAGENT_EXECUTIONS, row["run_id"]) if has_children else []
    return run_from_row(row, tools, children)


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


async def append_events(connection: Connection, run: RunRecord, events: Sequence[Event]) -> tuple[StoredEvent, ...]:
    """Append events to the log of a locked run."""
    place = await connection.fetchrow(
        """UPDATE runs SET last_seq = last_seq + $2 WHERE run_id = $1::uuid
           RETURNING last_seq, COALESCE(finished_at, clock_timestamp()) AS at""",
        run.run_id,
        len(events),
    )
    assert place is not None
    first, at = place["last_seq"] - len(events) + 1, place["at"]
    types = [event.type.value for event in events]
    stored = stored_events(first, at, types, [encode(event, run.identity) for event in events])
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


async def _refuse_taken_in(connection: Connection, run: RunRecord) -> None:
    """A child run that has ended goes on only while its parent is not over and has not taken in how it ended."""
    parent = run.parent_run_id
    if parent is not None and not await awaits(connection, parent, run.run_id):
        raise RunConflict(f"its parent run {parent} does not wait for it any more: resume the parent", run.status)


async def _refuse_overtaken(connection: Connection, locked: LockedRun) -> None:
    """A run that has begun does not go on behind another one's back: not after it has written, nor while it may."""
    run = locked.run
    own_seq = await connection.fetchval("SELECT max(message_seq) FROM checkpoints WHERE run_id = $1::uuid", run.run_id)
    if own_seq is None:
        return
    later = await connection.fetchval(
        """SELECT holder_run_id FROM threads WHERE thread_key = $1::uuid AND holder_run_id IS NOT NULL
           UNION ALL
           (SELECT run_id FROM messages
            WHERE thread_key = $1::uuid AND NOT voided AND run_id <> $2::uuid AND seq > $3 LIMIT 1)
           LIMIT 1""",
        run.thread_key,
        run.run_id,
        own_seq,
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
    # Counted as one more stimulus: an owner that ended the run has closed its questions, and stopped its children, with
    # a write of its own that counts nothing, and who goes on has to see that.
    await connection.execute(
        """UPDATE runs SET status = 'queued', holds_thread = $2, control = NULL, crashes = 0, owner = NULL,
                  epoch = epoch + 1, wakes = wakes + $4::boolean::int, finished_at = NULL, result = NULL, error = NULL,
                  available_at = CASE WHEN ordinal IS NULL THEN available_at ELSE clock_timestamp() END,
                  resume_reason = CASE WHEN started_at IS NOT NULL THEN $3 END,
                  wall_from_s = CASE WHEN $4 THEN elapsed_s ELSE wall_from_s END,
                  deadline_at = clock_timestamp() + make_interval(secs => deadline_s),
                  overrides = $5::json
           WHERE run_id = $1""",
        locked.row["run_id"],
        holds,
        reason.value,
        reason is not ResumeReason.PAUSE,
        overrides_as_json(run.overrides.resumed_with(limits)),
    )
    if reason is not ResumeReason.PAUSE:
        await uncharge_children(connection, run.run_id)
    # Results that it still waits for may be late again: see `results.expire`.
    await connection.execute(
        """UPDATE tool_executions SET expires_at = (hold->>'expires_at')::timestamptz
           WHERE run_id = $1 AND outcome IS NULL AND hold->>'expires_at' IS NOT NULL""",
        locked.row["run_id"],
    )
