"""What a caller may do to a run and its child runs, whoever owns them: stop, pause, resume."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from typing import assert_never

from app.db.memory import children
from app.db.memory.reading import loaded, record
from app.db.memory.rows import RunRow
from app.db.memory.stimuli import wake_parent
from app.db.memory.tables import Tables
from app.engine.apply import closing_event
from app.engine.errors import RunError
from app.engine.events import Event, EventType, ResumeReason, StoredEvent
from app.engine.limits import Limits
from app.engine.records import Stopped
from app.engine.recover import partial_text
from app.engine.resume import limit_on_resume, refuse_new_limits
from app.engine.state import RunState
from app.engine.status import RunStatus
from app.engine.store_errors import LimitReached, RunConflict


def stop(tables: Tables, row: RunRow, status: RunStatus, reason: RunError, *, promote: bool = True) -> Stopped:
    """End a run and its child runs now; later writes of their owners are refused.

    It keeps the text that its open step has committed, and is charged with what its children have used that it has not
    taken in.

    Args:
        promote: False if the caller gives the thread's slot to a run of its own.
    """
    if row.status.terminal:
        return Stopped(record(tables, row), changed=False)
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
    # A failed run may be resumed, and then its children go on with it.
    theirs = RunStatus.CANCELLED if status is RunStatus.CANCELLED else RunStatus.INTERRUPTED
    ended = RunError("parent_ended", f"the parent run is {status}", retryable=theirs is RunStatus.INTERRUPTED)
    family = stop_all(tables, tables.children(row), theirs, ended)
    children.add_spending(row, [child for _, child in children.of_open_calls(tables, row)])
    woken = wake_parent(tables, row.parent_run_id, now)
    promoted = tables.promote(row.thread, now) if promote else None
    return Stopped(record(tables, row), True, events, promoted, family, woken)


def stop_all(tables: Tables, rows: Iterable[RunRow], status: RunStatus, reason: RunError) -> tuple[Stopped, ...]:
    """End those of these runs that are not over, with their child runs; each of them by itself."""
    return _each(stop(tables, row, status, reason) for row in rows)


def pause(tables: Tables, row: RunRow) -> Stopped:
    """Pause a run that nobody executes; ask the owner of one that runs to stop at its next step boundary.

    Its child runs likewise: also those of a run that is paused already.

    Raises:
        RunConflict: the run is terminal.
    """
    changed, events = _pause(tables, row)
    live = (child for child in tables.children(row) if not child.status.terminal)
    family = _each(pause(tables, child) for child in live)
    return Stopped(record(tables, row), changed or bool(family), events, family=family)


def resume(tables: Tables, row: RunRow, limits: Limits | None) -> Stopped:
    """Put a run back into the queue where its status allows it, with the child runs of its open calls.

    Raises:
        RunConflict: the run is cancelled, or another run has taken its thread further; or limits are stated for one
            that goes on as it is.
        LimitReached: it would meet a limit at once.
    """
    match row.status:
        case RunStatus.QUEUED | RunStatus.RUNNING | RunStatus.WAITING:
            refuse_new_limits(row.status, row.overrides, limits)
            changed = row.pause_requested
            row.pause_requested = False
            # What has ended meanwhile is for the run to take in: it may be about to.
            family = _resume_children(tables, row, ended=False)
            changed = changed or bool(family)
        case RunStatus.COMPLETED | RunStatus.DEGRADED:
            changed, family = False, ()
        case RunStatus.CANCELLED:
            raise RunConflict("a cancelled run stays cancelled; fork it to go on from it", row.status)
        case RunStatus.PAUSED:
            _queue_again(tables, row, limits, ResumeReason.PAUSE)
            changed, family = True, _resume_children(tables, row, ended=True)
        case RunStatus.FAILED | RunStatus.INTERRUPTED:
            _refuse_taken_in(tables, row)
            _refuse_overtaken(tables, row)
            breach = limit_on_resume(loaded(tables, row), limits, tables.limits)
            if breach is not None:
                raise LimitReached(breach)
            failed = row.status is RunStatus.FAILED
            row.wall_from_s = row.elapsed_s
            tables.active[row.run_id] = row
            _queue_again(tables, row, limits, ResumeReason.FAILURE if failed else ResumeReason.INTERRUPT)
            changed, family = True, _resume_children(tables, row, ended=True)
        case _:
            assert_never(row.status)
    return Stopped(record(tables, row), changed, family=family)


def _pause(tables: Tables, row: RunRow) -> tuple[bool, tuple[StoredEvent, ...]]:
    """Pause one run: whether that changed it, and what it left."""
    match row.status:
        case RunStatus.PAUSED:
            return False, ()
        case RunStatus.RUNNING:
            changed = not row.pause_requested
            row.pause_requested = True
            return changed, ()
        case RunStatus.QUEUED | RunStatus.WAITING:
            row.status = RunStatus.PAUSED
            row.pause_requested = False
            event = Event(EventType.RUN_PAUSED, row.step, {"reason": "requested"}, RunStatus.PAUSED)
            return True, row.append_events([event], tables.clock())
        case RunStatus.COMPLETED | RunStatus.DEGRADED | RunStatus.FAILED | RunStatus.CANCELLED | RunStatus.INTERRUPTED:
            raise RunConflict(f"a {row.status} run cannot be paused", row.status)
        case _:
            assert_never(row.status)


def _resume_children(tables: Tables, row: RunRow, *, ended: bool) -> tuple[Stopped, ...]:
    """Let the child runs of a run's open calls go on.

    Args:
        ended: whether such that were interrupted do as well; those that cannot stay as they are.
    """
    resumed: list[Stopped] = []
    for _, child in children.of_open_calls(tables, row):
        if not child.status.terminal or (ended and child.status is RunStatus.INTERRUPTED):
            with suppress(RunConflict, LimitReached):
                resumed.append(resume(tables, child, None))
    return _each(resumed)


def _each(changes: Iterable[Stopped]) -> tuple[Stopped, ...]:
    """The runs that were changed, parents before their children, none within another."""
    return tuple(each for change in changes if change.changed for each in (replace(change, family=()), *change.family))


def _refuse_taken_in(tables: Tables, row: RunRow) -> None:
    """A child run that has ended goes on only while its parent is not over and has not taken in how it ended."""
    if row.parent_run_id is None:
        return
    parent = tables.active.get(row.parent_run_id)
    if parent is None or row not in [child for _, child in children.of_open_calls(tables, parent)]:
        text = f"its parent run {row.parent_run_id} does not wait for it any more: resume the parent"
        raise RunConflict(text, row.status)


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
    row.crashes = 0
    row.resume_reason = reason
    row.result = row.error = row.finished_at = None
    children.take_spending_back(row)
    row.begin_deadline(now)
    if row.holds_thread:
        row.available_at = now
    elif row.ordinal is not None:
        tables.join_line(row, now)
