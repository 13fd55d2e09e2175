"""Append the deltas of several runs in one statement, each under its own fence.

Only deltas are ever combined over runs: a transition waits for nobody. Rows are locked in the order of their ids, and
a row that someone else holds is skipped, so that a slow transaction on one run does not hold up the others' text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from app.db.database import Connection
from app.db.fenced_write import stored_events
from app.engine.events import encode
from app.engine.records import Committed, DeltaOutcome, DeltaWrite, Fence
from app.engine.status import RunStatus

_APPEND = """
WITH wanted AS (
    SELECT * FROM unnest($1::uuid[], $2::bigint[], $3::bigint[], $4::int[]) AS w(run_id, epoch, write_no, n)),
free AS (
    SELECT r.run_id FROM runs r JOIN wanted w USING (run_id)
    WHERE r.epoch = w.epoch AND r.write_no = w.write_no AND r.status = 'running'
    ORDER BY r.run_id FOR NO KEY UPDATE OF r SKIP LOCKED),
held AS (
    UPDATE runs SET write_no = runs.write_no + 1, last_seq = last_seq + w.n
    FROM free JOIN wanted w USING (run_id) WHERE runs.run_id = free.run_id
    RETURNING runs.run_id, last_seq - w.n AS before, clock_timestamp() AS at),
written AS (
    INSERT INTO run_events (run_id, seq, type, created_at, body)
    SELECT run_id, before + e.n, e.type, at, e.body::json
    FROM held JOIN unnest($5::uuid[], $6::int[], $7::text[], $8::text[]) AS e(run_id, n, type, body) USING (run_id))
SELECT run_id, before, at FROM held
"""


async def append_deltas(connection: Connection, batch: Sequence[DeltaWrite]) -> list[Committed | DeltaOutcome]:
    """One answer for each write of the batch, in its order."""
    owners: list[list[Any]] = [[], [], [], []]
    events: list[list[Any]] = [[], [], [], []]
    bodies: dict[str, list[str]] = {}
    for write in batch:
        fence = write.fence
        _add(owners, (fence.run_id, fence.epoch, fence.write_no, len(write.events)))
        bodies[fence.run_id] = [encode(event, write.identity) for event in write.events]
        for n, event in enumerate(write.events, 1):
            _add(events, (fence.run_id, n, event.type.value, bodies[fence.run_id][n - 1]))
    rows = await connection.fetch(_APPEND, *owners, *events)
    done = {str(row["run_id"]): row for row in rows}
    left = await _why_not(connection, [write.fence for write in batch if write.fence.run_id not in done])
    answers: list[Committed | DeltaOutcome] = []
    for write in batch:
        fence = write.fence
        row = done.get(fence.run_id)
        if row is None:
            answers.append(left[fence.run_id])
            continue
        types = [event.type.value for event in write.events]
        stored = stored_events(row["before"] + 1, row["at"], types, bodies[fence.run_id])
        answers.append(Committed(Fence(fence.run_id, fence.epoch, fence.write_no + 1), stored, RunStatus.RUNNING))
    return answers


async def _why_not(connection: Connection, fences: Sequence[Fence]) -> dict[str, DeltaOutcome]:
    """Whether a write that did not take place met a lock (and can be tried again) or has lost its run."""
    if not fences:
        return {}
    rows = await connection.fetch(
        "SELECT run_id, epoch, write_no FROM runs WHERE run_id = ANY ($1::uuid[]) AND status = 'running'",
        [fence.run_id for fence in fences],
    )
    now = {str(row["run_id"]): (row["epoch"], row["write_no"]) for row in rows}
    return {
        fence.run_id: (
            DeltaOutcome.SKIPPED if now.get(fence.run_id) == (fence.epoch, fence.write_no) else DeltaOutcome.LOST
        )
        for fence in fences
    }


def _add(columns: list[list[Any]], values: Sequence[Any]) -> None:
    for column, value in zip(columns, values, strict=True):
        column.append(value)
