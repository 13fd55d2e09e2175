"""Ending what has waited for too long: questions, results from outside, child runs."""

from __future__ import annotations

from datetime import datetime

from app.db.memory import steering, stimuli
from app.db.memory.tables import Tables
from app.engine.errors import RunError
from app.engine.interactions import InteractionStatus
from app.engine.records import Expired, Stimulated, Stopped
from app.engine.status import RunStatus

NO_RESULT = "no result came within its time"
TIMED_OUT = RunError("subagent_timeout", "the child run did not end within its parent's subagent_timeout_s")


def expire(tables: Tables, limit: int) -> Expired:
    """At most `limit` of each kind, those first that expired first."""
    now = tables.clock()
    stimulated = (*_questions(tables, limit, now), *_results(tables, limit, now))
    return Expired(stimulated, _children(tables, limit, now))


def _questions(tables: Tables, limit: int, now: datetime) -> list[Stimulated]:
    asked = [(row, each) for row in tables.active.values() for each in row.interactions.values() if each.pending]
    late = sorted(
        (entry for entry in asked if entry[1].record.expires_at <= now), key=lambda entry: entry[1].record.expires_at
    )
    return [stimuli.resolve(row, each, InteractionStatus.EXPIRED, each.fallback, now).run for row, each in late[:limit]]


def _results(tables: Tables, limit: int, now: datetime) -> list[Stimulated]:
    calls = ((call.result_expires_at, row, call) for row in tables.active.values() for call in row.calls.values())
    late = sorted(
        ((at, row, call) for at, row, call in calls if at is not None and at <= now), key=lambda entry: entry[0]
    )
    return [stimuli.post(row, call, None, NO_RESULT, now) for _, row, call in late[:limit]]


def _children(tables: Tables, limit: int, now: datetime) -> tuple[Stopped, ...]:
    going_on = (row for row in tables.active.values() if row.status is not RunStatus.PAUSED)
    deadlines = ((row.deadline_at, row) for row in going_on)
    late = sorted(((at, row) for at, row in deadlines if at is not None and at <= now), key=lambda entry: entry[0])
    stopped = (steering.stop(tables, row, RunStatus.INTERRUPTED, TIMED_OUT) for _, row in late[:limit])
    return tuple(each for each in stopped if each.changed)  # one may have ended with its parent, just before
