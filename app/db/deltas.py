"""Append the deltas of several runs in one statement, each under its own fence.

Only deltas are ever combined over runs: a transition waits for nobody. Rows are locked in the order of their ids, and
a row that someone else holds is skipped, so that a slow transaction on one run does not hold up the others' text.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from app.db.database import Connection
from app.db.fenced_write import stored_events
from app.engine.events import encode
from app.engine.ownership import Committed, DeltaOutcome, DeltaWrite, Fence
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
        bodies[fence.run_id] = _bodies(write)
        for n, event in enumerate(write.events, 1):
            _add(events, (fence.run_id, n, event.type.value, bodies[fence.run_id][n - 1]))
    rows = await connection.fetch(_APPEND, *owners, *events)
    done = {str(row["run_id"]): row for row in rows}
    left = await _why_not(connection, [write.fence for write in batch if write.fence.run_id not in done])
    answers: list[Committed | DeltaOutcome] = []
    for write in batch:
        run_id = write.fence.run_id
        row = done.get(run_id)
        answers.append(left[run_id] if row is None else _committed(write, row["before"], row["at"], bodies[run_id]))
    return answers


async def append_again(connection: Connection, batch: Sequence[DeltaWrite]) -> list[Committed | DeltaOutcome]:
    """The same in a transaction, for a batch whose first answer was lost: what that wrote is not written again."""
    # Waits for the first sending where that is still under way: after this it has taken place or never will.
    await connection.execute(
        "SELECT 1 FROM runs WHERE run_id = ANY ($1::uuid[]) ORDER BY run_id FOR NO KEY UPDATE",
        [write.fence.run_id for write in batch],
    )
    answers = await append_deltas(connection, batch)
    in_doubt = [write for write, answer in zip(batch, answers, strict=True) if answer is DeltaOutcome.LOST]
    ours = await _written_before(connection, in_doubt)
    return [ours.get(write.fence.run_id, answer) for write, answer in zip(batch, answers, strict=True)]


async def _written_before(connection: Connection, batch: Sequence[DeltaWrite]) -> dict[str, Committed]:
    """Those of the writes that took place: their run stands exactly one write further."""
    if not batch:
        return {}
    bodies = {write.fence.run_id: _bodies(write) for write in batch}
    # Others may have appended to the log since, but no deltas: the last event like the write's last one is that.
    rows = await connection.fetch(
        """SELECT r.run_id, e.seq, e.created_at
           FROM unnest($1::uuid[], $2::bigint[], $3::bigint[], $4::text[]) AS w(run_id, epoch, write_no, body)
           JOIN runs r ON r.run_id = w.run_id AND r.epoch = w.epoch AND r.write_no = w.write_no + 1
           CROSS JOIN LATERAL (
               SELECT seq, created_at FROM run_events
               WHERE run_id = w.run_id AND body::text = w.body ORDER BY seq DESC LIMIT 1) AS e""",
        [write.fence.run_id for write in batch],
        [write.fence.epoch for write in batch],
        [write.fence.write_no for write in batch],
        [bodies[write.fence.run_id][-1] for write in batch],
    )
    found = {str(row["run_id"]): row for row in rows}
    return {
        run_id: _committed(write, row["seq"] - len(write.events), row["created_at"], bodies[run_id])
        for write in batch
        if (row := found.get(run_id := write.fence.run_id)) is not None
    }


def _committed(write: DeltaWrite, before: int, at: datetime, bodies: Sequence[str]) -> Committed:
    fence = write.fence
    types = [event.type.value for event in write.events]
    events = stored_events(before + 1, at, types, bodies)
    return Committed(Fence(fence.run_id, fence.epoch, fence.write_no + 1), events, RunStatus.RUNNING)


def _bodies(write: DeltaWrite) -> list[str]:
    return [encode(event, write.identity) for event in write.events]


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
