"""Runs as lists, and their checkpoints. What an owner writes is in `app.db.fenced_write`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import defer

from app.db.fork import AS_OF
from app.db.models import Checkpoint, Run
from app.db.models import Message as MessageRow
from app.db.rows import forked_from
from app.engine.agent import AgentOverrides
from app.engine.errors import RunError
from app.engine.messages import Message
from app.engine.records import OnDisconnect, RunRecord
from app.engine.status import RunStatus
from app.engine.usage import Usage


@dataclass(frozen=True, slots=True)
class RunFilters:
    """Which runs to list; what is empty or None does not restrict. `metadata`: all of these must be there."""

    thread_id: str | None = None
    agent: str | None = None
    statuses: Sequence[RunStatus] = ()
    parent_run_id: UUID | None = None
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])
    created_after: datetime | None = None
    created_before: datetime | None = None


async def page(
    session: AsyncSession, tenant_id: str, filters: RunFilters, before: UUID | None, limit: int
) -> list[RunRecord]:
    """Runs, newest first, from before an id; results and contexts are not loaded."""
    query = select(Run).options(defer(Run.result), defer(Run.context)).where(Run.tenant_id == tenant_id)
    if filters.thread_id is not None:
        query = query.where(Run.thread_id == filters.thread_id)
    if filters.agent is not None:
        query = query.where(Run.agent_name == filters.agent)
    if filters.statuses:
        query = query.where(Run.status.in_([status.value for status in filters.statuses]))
    if filters.parent_run_id is not None:
        query = query.where(Run.parent_run_id == filters.parent_run_id)
    if filters.metadata:
        # The second condition is that of the partial index, in its own words, so that the planner can use it.
        query = query.where(Run.run_metadata.contains(dict(filters.metadata)), text("runs.metadata <> '{}'"))
    if filters.created_after is not None:
        query = query.where(Run.created_at > filters.created_after)
    if filters.created_before is not None:
        query = query.where(Run.created_at < filters.created_before)
    if before is not None:
        query = query.where(Run.run_id < before)
    rows = await session.scalars(query.order_by(Run.run_id.desc()).limit(limit))
    return [_listed(row) for row in rows]


async def thread_key_of(session: AsyncSession, tenant_id: str, run_id: UUID) -> UUID | None:
    """The thread of a run; None if there is no such run."""
    return await session.scalar(select(Run.thread_key).where(Run.run_id == run_id, Run.tenant_id == tenant_id))


async def checkpoints(session: AsyncSession, run_id: UUID, after: int, limit: int) -> Sequence[Checkpoint]:
    """A run's checkpoints with a seq greater than `after`, oldest first."""
    query = select(Checkpoint).where(Checkpoint.run_id == run_id, Checkpoint.seq > after)
    return (await session.scalars(query.order_by(Checkpoint.seq).limit(limit))).all()


async def checkpoint(session: AsyncSession, run_id: UUID, seq: int) -> Checkpoint | None:
    return await session.get(Checkpoint, (run_id, seq))


async def messages_as_of(session: AsyncSession, thread_key: UUID, checkpoint: Checkpoint) -> Sequence[MessageRow]:
    """The messages of its run's thread that the run had at a checkpoint, ascending: those that a fork takes."""
    as_of = text(AS_OF.format(thread_key=":thread_key", message_seq=":message_seq", run_id=":run_id")).bindparams(
        thread_key=thread_key, message_seq=checkpoint.message_seq, run_id=checkpoint.run_id
    )
    return (await session.scalars(select(MessageRow).where(as_of).order_by(MessageRow.seq))).all()


def _listed(row: Run) -> RunRecord:
    entries: list[dict[str, Any]] = row.input
    status = RunStatus(row.status)
    return RunRecord(
        run_id=str(row.run_id),
        tenant_id=row.tenant_id,
        thread_id=row.thread_id,
        thread_key=str(row.thread_key),
        agent_name=row.agent_name,
        agent_version=row.agent_version,
        status=status,
        pause_requested=row.control == "pause",
        step=row.step,
        attempt=row.attempt,
        last_event_seq=row.last_seq,
        input=tuple(Message.from_body(entry["role"], entry) for entry in entries),
        context={},
        metadata=row.run_metadata,
        overrides=AgentOverrides.model_validate(row.overrides),
        requested_model=row.requested_model,
        user_id=row.user_id,
        parent_run_id=None if row.parent_run_id is None else str(row.parent_run_id),
        on_disconnect=OnDisconnect(row.on_disconnect),
        usage=Usage(row.llm_calls, row.input_tokens, row.output_tokens, row.cached_input_tokens, row.reasoning_tokens),
        cost_usd=row.cost_usd,
        elapsed_s=row.elapsed_s,
        created_at=row.created_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
        result=None,
        error=None if row.error is None else RunError.from_dict(row.error),
        owner=None if row.owner is None else str(row.owner),
        epoch=row.epoch,
        wakes=row.wakes,
        waiting_for=tuple(row.waiting_for or ()) if status is RunStatus.WAITING else (),
        agent_depth=row.agent_depth,
        agent_path=row.agent_path,
        root_run_id=str(row.root_run_id),
        forked_from=forked_from(row.forked_from_run_id, row.forked_from_checkpoint),
    )
