"""What a caller may do to a run, whoever owns it: stop, pause, resume."""

from __future__ import annotations

from typing import assert_never

from app.db.memory.rows import RunRow
from app.db.memory.tables import Tables
from app.engine.apply import closing_event
from app.engine.errors import RunError
from app.engine.events import Event, EventType, ResumeReason
from app.engine.limits import Limits
from app.engine.records import Stopped
from app.engine.recover import partial_text
from app.engine.resume import limit_on_resume
from app.engine.state import RunState
from app.engine.status import RunStatus
from app.engine.store_errors import LimitReached, RunConflict


def stop(tables: Tables, row: RunRow, status: RunStatus, reason: RunError, *, promote: bool = True) -> Stopped:
    """End a run now, with the text that its open step has committed; later writes of its owner are refused.

    Args:
        promote: False if the caller gives the thread's slot to a run of its own.
    """
    if row.status.terminal:
        return Stopped(row.record(with_tools=True), changed=False)
    now = tables.clock()
    text = reason.message if status is RunStatus.FAILED else partial_text(row.events[row.step_seq :])
    kept = {} if row.checkpoint is None else row.checkpoint.state
    result = {
        "final_text": text,
        "final_structured": None,
        "model": kept.get("model"),
        "provider": kept.get("provider"),
    }
    closing = closing_event(RunState(step=row.step, usage=row.usage), status, text, reason)
    events = row.append_events([closing], now)
    row.epoch += 1
    tables.end(row, status, result, None if status is RunStatus.CANCELLED else reason, now)
    promoted = tables.promote(row.thread, now) if promote else None
    return Stopped(row.record(with_tools=True), True, events, promoted)


def pause(tables: Tables, row: RunRow) -> Stopped:
    """Pause a run that nobody executes; ask the owner of one that runs to stop at its next step boundary.

    Raises:
        RunConflict: the run is terminal.
    """
    match row.status:
        case RunStatus.PAUSED:
            return Stopped(row.record(with_tools=True), changed=False)
        case RunStatus.RUNNING:
            changed = not row.pause_requested
            row.pause_requested = True
            return Stopped(row.record(with_tools=True), changed)
        case RunStatus.QUEUED | RunStatus.WAITING:
            row.status = RunStatus.PAUSED
            row.pause_requested = False
            event = Event(EventType.RUN_PAUSED, row.step, {"reason": "requested"}, RunStatus.PAUSED)
            events = row.append_events([event], tables.clock())
            return Stopped(row.record(with_tools=True), True, events)
        case RunStatus.COMPLETED | RunStatus.DEGRADED | RunStatus.FAILED | RunStatus.CANCELLED | RunStatus.INTERRUPTED:
            raise RunConflict(f"a {row.status} run cannot be paused", row.status)
        case _:
            assert_never(row.status)


def resume(tables: Tables, row: RunRow, limits: Limits | None) -> Stopped:
    """Put a run back into the queue where its status allows it.

    Raises:
        RunConflict: the run is cancelled, or another run has taken its thread further.
        LimitReached: it would meet a limit at once.
    """
    match row.status:
        case RunStatus.QUEUED | RunStatus.RUNNING | RunStatus.WAITING:
            changed = row.pause_requested
            row.pause_requested = False
            return Stopped(row.record(with_tools=True), changed)
        case RunStatus.COMPLETED | RunStatus.DEGRADED:
            return Stopped(row.record(with_tools=True), changed=False)
        case RunStatus.CANCELLED:
            raise RunConflict("a cancelled run stays cancelled; fork it to go on from it", row.status)
        case RunStatus.PAUSED:
            _queue_again(tables, row, limits, ResumeReason.PAUSE)
        case RunStatus.FAILED | RunStatus.INTERRUPTED:
            _refuse_overtaken(tables, row)
            breach = limit_on_resume(row.loaded(), limits, tables.limits)
            if breach is not None:
                raise LimitReached(breach)
            failed = row.status is RunStatus.FAILED
            row.wall_from_s = row.elapsed_s
            tables.active[row.run_id] = row
            _queue_again(tables, row, limits, ResumeReason.FAILURE if failed else ResumeReason.INTERRUPT)
        case _:
            assert_never(row.status)
    return Stopped(row.record(with_tools=True), changed=True)


def _refuse_overtaken(tables: Tables, row: RunRow) -> None:
    """A run goes on only from the end of its thread; one that never started has no place in it to lose."""
    if row.checkpoint is None:
        return
    later = next(iter(tables.others_wrote(row)), None)
    holder = row.thread.holder
    if later is None and holder is not None:
        later = holder.run_id
    if later is not None:
        text = f"run {later} has taken the thread further; fork this run to go on from where it stands"
        raise RunConflict(text, row.status)


def _queue_again(tables: Tables, row: RunRow, limits: Limits | None, reason: ResumeReason) -> None:
    now = tables.clock()
    row.status = RunStatus.QUEUED
    row.overrides = row.overrides.resumed_with(limits)
    row.resume_reason = reason
    row.result = row.error = row.finished_at = None
    if row.holds_thread:
        row.available_at = now
    elif row.ordinal is not None:
        tables.join_line(row, now)
