"""Questions to people: asked and closed by the run's owner, answered by anyone, ended by time.

Each function runs inside the caller's transaction, which has locked the run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

import asyncpg
import orjson

from app.db.database import Connection
from app.db.family import wake
from app.db.rows import json_text, run_uuid
from app.db.steering import LockedRun, append_events
from app.engine.events import Event, EventType
from app.engine.interactions import (
    Answer,
    Decision,
    InteractionKind,
    InteractionRecord,
    InteractionStatus,
    NewInteraction,
)
from app.engine.records import Resolved, Stimulated
from app.engine.store_errors import InteractionDecided, InteractionNotFound

_COLUMNS = """interaction_id, run_id, step, call_index, kind, status, tool_name, tool_call_id, arguments, prompt,
              reason, fallback, answer, expires_at, created_at, resolved_at"""


async def ask(connection: Connection, tenant_id: str, run_id: str, questions: Sequence[NewInteraction]) -> None:
    await connection.executemany(
        """INSERT INTO interactions (interaction_id, tenant_id, run_id, step, call_index, kind, tool_name, tool_call_id,
                                     arguments, prompt, reason, fallback, expires_at)
           VALUES ($1::uuid, $2, $3::uuid, $4, $5, $6, $7, $8, $9::json, $10, $11, $12::json, $13)""",
        [
            (
                each.interaction_id,
                tenant_id,
                run_id,
                each.step,
                each.call_index,
                each.kind.value,
                each.tool_name,
                each.tool_call_id,
                None if each.arguments is None else json_text(each.arguments),
                each.prompt,
                each.reason,
                json_text(answer_as_dict(each.fallback)),
                each.expires_at,
            )
            for each in questions
        ],
    )


async def close(connection: Connection, interaction_ids: Sequence[str]) -> None:
    """Close questions that need no answer any more."""
    await connection.execute(
        """UPDATE interactions SET status = 'closed', resolved_at = clock_timestamp()
           WHERE interaction_id = ANY ($1::uuid[]) AND status = 'pending'""",
        list(interaction_ids),
    )


async def answer(connection: Connection, locked: LockedRun, interaction_id: str, given: Answer) -> Resolved:
    """Store a decision; see `RunStore.answer`."""
    row = await _read(connection, locked.run.run_id, interaction_id)
    record = interaction_from_row(row)
    if record.status is not InteractionStatus.PENDING:
        if record.status is InteractionStatus.RESOLVED and _same(record.answer, given):
            return Resolved(record, Stimulated(locked.run.run_id, locked.run.status, changed=False))
        raise InteractionDecided(f"the interaction is {record.status}{_with(record.answer)}: it takes no other answer")
    return await _settle(connection, locked, row, InteractionStatus.RESOLVED, given)


async def expire(connection: Connection, locked: LockedRun, interaction_id: str) -> Resolved | None:
    """Let the fallback decide a question whose time is up; None if it has been decided, or its time is not up."""
    row = await connection.fetchrow(
        f"""SELECT {_COLUMNS} FROM interactions
            WHERE interaction_id = $1::uuid AND status = 'pending' AND expires_at <= clock_timestamp()""",
        interaction_id,
    )
    if row is None:
        return None
    return await _settle(
        connection, locked, row, InteractionStatus.EXPIRED, answer_from_dict(orjson.loads(row["fallback"]))
    )


async def due(connection: Connection, limit: int) -> list[tuple[str, str]]:
    """(run id, interaction id) of questions whose time is up."""
    rows = await connection.fetch(
        """SELECT run_id, interaction_id FROM interactions
           WHERE status = 'pending' AND expires_at <= clock_timestamp() ORDER BY expires_at LIMIT $1""",
        limit,
    )
    return [(str(row["run_id"]), str(row["interaction_id"])) for row in rows]


async def of_run(connection: Connection, run_id: str) -> list[InteractionRecord]:
    """A run's questions, oldest first."""
    rows = await connection.fetch(
        f"SELECT {_COLUMNS} FROM interactions WHERE run_id = $1 ORDER BY interaction_id", run_uuid(run_id)
    )
    return [interaction_from_row(row) for row in rows]


def interaction_from_row(row: asyncpg.Record) -> InteractionRecord:
    return InteractionRecord(
        interaction_id=str(row["interaction_id"]),
        run_id=str(row["run_id"]),
        step=row["step"],
        call_index=row["call_index"],
        kind=InteractionKind(row["kind"]),
        status=InteractionStatus(row["status"]),
        tool_name=row["tool_name"],
        tool_call_id=row["tool_call_id"],
        arguments=None if row["arguments"] is None else orjson.loads(row["arguments"]),
        prompt=row["prompt"],
        reason=row["reason"],
        answer=None if row["answer"] is None else answer_from_dict(orjson.loads(row["answer"])),
        expires_at=row["expires_at"],
        created_at=row["created_at"],
        resolved_at=row["resolved_at"],
    )


def answer_as_dict(given: Answer) -> dict[str, Any]:
    return {
        "decision": given.decision,
        "value": given.value,
        "arguments": given.arguments,
        "reason": given.reason,
        "by": given.by,
    }


def answer_from_dict(stored: dict[str, Any]) -> Answer:
    return Answer(Decision(stored["decision"]), stored["value"], stored["arguments"], stored["reason"], stored["by"])


async def _read(connection: Connection, run_id: str, interaction_id: str) -> asyncpg.Record:
    try:
        key = UUID(interaction_id)
    except ValueError:
        raise InteractionNotFound(run_id, interaction_id) from None
    row = await connection.fetchrow(
        f"SELECT {_COLUMNS} FROM interactions WHERE interaction_id = $1 AND run_id = $2::uuid", key, run_id
    )
    if row is None:
        raise InteractionNotFound(run_id, interaction_id)
    return row


async def _settle(
    connection: Connection, locked: LockedRun, row: asyncpg.Record, status: InteractionStatus, given: Answer
) -> Resolved:
    settled = await connection.fetchrow(
        f"""UPDATE interactions SET status = $2, answer = $3::json, resolved_at = clock_timestamp()
            WHERE interaction_id = $1 RETURNING {_COLUMNS}""",
        row["interaction_id"],
        status.value,
        json_text(answer_as_dict(given)),
    )
    assert settled is not None
    record = interaction_from_row(settled)
    run = locked.run
    woken = await wake(connection, run.run_id)
    now = run.status if woken is None else woken.status
    data = record.resolved_event_data()
    event = Event(EventType.INTERACTION_RESOLVED, run.step, data, now)
    return Resolved(record, Stimulated(run.run_id, now, events=await append_events(connection, run, [event])))


def _same(known: Answer | None, given: Answer) -> bool:
    """Whether two answers decide the same; the reason and the name given with them do not matter."""
    if known is None or known.decision is not given.decision:
        return False
    return _json(known.value) == _json(given.value) and _json(known.arguments) == _json(given.arguments)


def _json(text: str | None) -> bytes | None:
    """JSON in one form of many, in which 1 is not true."""
    return None if text is None else orjson.dumps(orjson.loads(text), option=orjson.OPT_SORT_KEYS)


def _with(known: Answer | None) -> str:
    return "" if known is None else f" ({known.decision})"
