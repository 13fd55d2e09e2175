"""Forks: a new thread with the messages that a run had at one of its checkpoints, and a run on it, in one transaction.

Nothing of the source is locked. The messages of a checkpoint are committed with it and never change, and the copy is
one statement: it sees the source's thread with all of them, or finds it deleted.

Lock order: the key, then the new thread's row, as for any other create.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from app.db import keys, reading
from app.db.create import create_run
from app.db.database import Connection
from app.db.rows import RUN_COLUMNS, run_from_row, run_uuid
from app.engine.agent import AgentVersion
from app.engine.ownership import Created
from app.engine.records import IdempotencyKey, NewRun, RunRecord
from app.engine.state import Phase
from app.engine.store_errors import AgentChanged, RunConflict, RunNotFound, ThreadExists

# Which of a thread's messages a run had at a checkpoint. Its own count though they were voided since: what it said was
# taken out of the thread, not out of the run.
AS_OF = "thread_key = {thread_key} AND seq <= {message_seq} AND (NOT voided OR run_id = {run_id})"

# A run that never began has what its thread holds before it: all until now, or until the run was ended. The times tell
# before from after: who ends a run and who writes to its thread lock the thread's row first, and read the clock then.
_POINT = f"""
SELECT {RUN_COLUMNS}, checkpoint_seq, phase, COALESCE(as_of, CASE
    WHEN finished_at IS NULL THEN (SELECT next_seq - 1 FROM threads t WHERE t.thread_key = runs.thread_key)
    ELSE (SELECT max(seq) FROM messages m WHERE m.thread_key = runs.thread_key AND m.created_at <= runs.finished_at)
    END, 0) AS as_of
FROM runs LEFT JOIN LATERAL (
    SELECT seq AS checkpoint_seq, phase, message_seq AS as_of FROM checkpoints c
    WHERE c.run_id = runs.run_id AND ($3::bigint IS NULL OR seq = $3) ORDER BY seq DESC LIMIT 1) AS saved ON true
WHERE run_id = $1 AND tenant_id = $2"""

# Numbers are kept, with their gaps: a message is found under the same number in the source and in every fork.
_COPY = f"""
WITH copied AS (
    INSERT INTO threads (thread_key, tenant_id, thread_id, next_seq, metadata)
    SELECT $1::uuid, tenant_id, $2::text, $4::bigint + 1, metadata FROM threads WHERE thread_key = $3::uuid
    ON CONFLICT (tenant_id, thread_id) DO NOTHING
    RETURNING 1),
pasted AS (
    INSERT INTO messages (thread_key, seq, run_id, role, body, created_at)
    SELECT $1::uuid, seq, run_id, role, body, created_at FROM messages
    WHERE EXISTS (SELECT 1 FROM copied) AND {AS_OF.format(thread_key="$3::uuid", message_seq="$4", run_id="$5::uuid")}),
summed AS (
    INSERT INTO compactions (thread_key, upto_seq, run_id, summary, purged, created_at)
    SELECT $1::uuid, upto_seq, run_id, summary, purged, created_at FROM compactions
    WHERE EXISTS (SELECT 1 FROM copied) AND thread_key = $3::uuid AND upto_seq <= $4)
SELECT EXISTS (SELECT 1 FROM copied)"""

_PURGED = "SELECT max(upto_seq) FROM compactions WHERE thread_key = $1::uuid AND purged"


@dataclass(frozen=True, slots=True)
class ForkPoint:
    """Where a run is forked.

    Args:
        run: the run that is forked, as it is now; `agent` is the version that it is pinned to.
        checkpoint_id: None if the run has no checkpoint, or not the one that was asked for.
        next_action: of the checkpoint; that of a run that has not begun is to call the model.
        message_seq: the last message of the run's thread that the fork may take.
    """

    run: RunRecord
    agent: AgentVersion
    checkpoint_id: str | None
    next_action: Phase
    message_seq: int


@dataclass(frozen=True, slots=True)
class ForkRequest:
    """A fork to make.

    Args:
        source_id: the run that is forked.
        checkpoint: one of its checkpoints; None for the last.
        run_id: of the fork.
        plan: the fork, once it is known where it begins; what it raises ends the transaction.
    """

    source_id: str
    checkpoint: int | None
    run_id: str
    tenant_id: str
    idempotency: IdempotencyKey | None
    plan: Callable[[ForkPoint], NewRun]


class Fork:
    """One fork, which may be sent again: where it begins is settled when it is sent first."""

    def __init__(self, request: ForkRequest) -> None:
        self._request = request
        self._planned: tuple[ForkPoint, NewRun] | None = None

    async def send(self, connection: Connection) -> Created:
        """Make it, queued; or find it, if an earlier sending took place.

        Raises:
            RunNotFound: there is no run to fork.
            RunConflict: the messages that it would begin with are gone.
            ThreadExists: the thread that it is to have is there.
            AgentChanged, IdempotencyMismatch: as `RunStore.create`; and whatever `plan` raises.
        """
        request = self._request
        if request.idempotency is not None:
            made = await keys.take(connection, request.tenant_id, request.idempotency, [request.run_id])
            if made is not None:
                # Our own id stands there if this very request was sent before.
                return await _made(connection, made[0], replayed=made[0] != request.run_id)
        if self._planned is None:
            point = await _point(connection, request)
            self._planned = point, request.plan(point)
        point, new = self._planned
        if not await _copied(connection, new, point):
            return await _made_before(connection, new)
        answer = await create_run(connection, new, None)
        if answer.agent_changed:
            raise AgentChanged(new.agent.definition.name)
        assert answer.created is not None, "nobody else has the new thread"
        return answer.created


async def _point(connection: Connection, request: ForkRequest) -> ForkPoint:
    row = await connection.fetchrow(_POINT, run_uuid(request.source_id), request.tenant_id, request.checkpoint)
    if row is None:
        raise RunNotFound(request.source_id)
    saved = row["checkpoint_seq"] is not None
    run = run_from_row(row)
    purged = await connection.fetchval(_PURGED, run.thread_key)
    if purged is not None and purged > row["as_of"]:
        said = f"the messages up to {purged} of its thread were purged: fork it from a later checkpoint"
        raise RunConflict(said, run.status)
    return ForkPoint(
        run=run,
        agent=await reading.agent_version(connection, row["agent_version_id"]),
        checkpoint_id=str(row["checkpoint_seq"]) if saved else None,
        next_action=Phase(row["phase"]) if saved else Phase.CALL_MODEL,
        message_seq=row["as_of"],
    )


async def _copied(connection: Connection, new: NewRun, point: ForkPoint) -> bool:
    """Make the fork's thread; False if there is one of that id, or the source's is gone."""
    source = point.run
    return await connection.fetchval(
        _COPY, new.thread_key, new.thread_id, source.thread_key, point.message_seq, source.run_id
    )


async def _made_before(connection: Connection, new: NewRun) -> Created:
    """The fork whose thread was not made because an earlier sending has made it, as its key says."""
    key = await reading.thread_key(connection, new.tenant_id, new.thread_id)
    if key is None:
        assert new.forked_from is not None
        raise RunNotFound(new.forked_from.run_id)  # its thread was deleted, and the run with it
    if key != new.thread_key:
        raise ThreadExists(new.thread_id)
    return await _made(connection, new.run_id, replayed=False)


async def _made(connection: Connection, run_id: str, *, replayed: bool) -> Created:
    return Created(await reading.get_run(connection, run_id, with_tools=True), replayed=replayed)
