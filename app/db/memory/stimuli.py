"""What others store for a run: decisions, results from outside, the ends of its child runs. Each wakes it."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import assert_never

from app.db.memory import children
from app.db.memory.calls import CallRow
from app.db.memory.interactions import InteractionRow
from app.db.memory.rows import RunRow
from app.db.memory.tables import Tables
from app.engine.events import Event, EventType, ResumeReason
from app.engine.interactions import Answer, InteractionRecord, InteractionStatus
from app.engine.moves import PostedResult, Stimuli
from app.engine.records import Resolved, Stimulated
from app.engine.status import RunStatus
from app.engine.store_errors import InteractionDecided, InteractionNotFound, ResultConflict, ToolCallNotFound


def stimuli_of(tables: Tables, row: RunRow) -> Stimuli:
    """What is stored for a run's open step."""
    checkpoint = row.checkpoint
    if checkpoint is None:
        return Stimuli(row.wakes)
    asked = (asked for asked in row.interactions.values() if asked.record.step == checkpoint.step)
    return Stimuli(
        row.wakes,
        interactions=tuple(each.as_move() for each in asked if not each.pending),
        posted=tuple(call.posted for call in row.open_calls() if call.posted is not None),
        children=children.ends(tables, row),
    )


def wake(row: RunRow, now: datetime) -> Stimulated:
    """Count something that was stored for a run which is not over; one that waits is queued, a paused one stays so."""
    row.wakes += 1
    if row.status is RunStatus.WAITING:
        row.status = RunStatus.QUEUED
        row.resume_reason = ResumeReason.WAKE
        row.available_at = now
    return Stimulated(row.run_id, row.status)


def wake_parent(tables: Tables, parent_run_id: str | None, now: datetime) -> Stimulated | None:
    """Tell a run that one of its children is over; None if there is no such run, or it is over itself."""
    parent = None if parent_run_id is None else tables.runs.get(parent_run_id)
    return None if parent is None or parent.status.terminal else wake(parent, now)


def answer(tables: Tables, row: RunRow, interaction_id: str, given: Answer) -> Resolved:
    """Raises: InteractionNotFound, InteractionDecided."""
    asked = row.interactions.get(interaction_id)
    if asked is None:
        raise InteractionNotFound(row.run_id, interaction_id)
    if asked.pending:
        return resolve(row, asked, InteractionStatus.RESOLVED, given, tables.clock())
    if asked.has_answer(given):
        return Resolved(asked.record, Stimulated(row.run_id, row.status, changed=False))
    raise InteractionDecided(_why_not(asked.record))


def resolve(row: RunRow, asked: InteractionRow, status: InteractionStatus, given: Answer, now: datetime) -> Resolved:
    """Decide a pending question and let its run go on."""
    asked.end(status, given, now)
    woken = wake(row, now)
    record = asked.record
    event = Event(EventType.INTERACTION_RESOLVED, record.step, record.resolved_event_data(), row.status)
    return Resolved(record, replace(woken, events=row.append_events([event], now)))


def post_result(tables: Tables, row: RunRow, tool_call_id: str, output: str | None, error: str | None) -> Stimulated:
    """Raises: ToolCallNotFound, ResultConflict."""
    call = next((call for call in row.calls.values() if call.call.call.id == tool_call_id), None)
    if call is None:
        raise ToolCallNotFound(row.run_id, tool_call_id)
    match call.has_result(output, error):
        case True:
            return Stimulated(row.run_id, row.status, changed=False)
        case False:
            raise ResultConflict(f"the tool call {tool_call_id!r} has another result")
        case None if row.status.terminal:
            raise ResultConflict(f"the run is {row.status}: the tool call {tool_call_id!r} needs no result any more")
        case None:
            return post(row, call, output, error, tables.clock())


def post(row: RunRow, call: CallRow, output: str | None, error: str | None, now: datetime) -> Stimulated:
    """Store the result of an open call of a run that is not over."""
    waited = 0.0 if call.started_at is None else (now - call.started_at).total_seconds() * 1000
    call.posted = PostedResult(call.call.index, output, error, waited)
    return wake(row, now)


def _why_not(record: InteractionRecord) -> str:
    interaction_id = record.interaction_id
    match record.status:
        case InteractionStatus.RESOLVED:
            return f"the interaction {interaction_id} has another answer"
        case InteractionStatus.EXPIRED:
            return f"the interaction {interaction_id} was not answered in time: its fallback counts"
        case InteractionStatus.CLOSED:
            return f"the interaction {interaction_id} needs no answer any more"
        case InteractionStatus.PENDING:
            raise AssertionError("a pending interaction can be answered")
        case _:
            assert_never(record.status)
