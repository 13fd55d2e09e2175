"""Runs as lists, their checkpoints, and their deletion. What an owner writes is in `app.db.fenced_write`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, all_, any_, delete, exists, literal, null, select, text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.dialects.postgresql import UUID as PgUuid
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import InstrumentedAttribute, aliased, defer

from app.db.models import Checkpoint, Interaction, Run, RunEvent, ToolExecution
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


async def family(session: AsyncSession, thread_key: UUID) -> list[tuple[UUID, UUID]]:
    """The runs of a thread and all runs below them, as (run id, key of its thread)."""
    tree = select(Run.run_id, Run.thread_key).where(Run.thread_key == thread_key).cte("tree", recursive=True)
    tree = tree.union(select(Run.run_id, Run.thread_key).join(tree, Run.parent_run_id == tree.c.run_id))
    rows = await session.execute(select(tree.c.run_id, tree.c.thread_key))
    return [(row.run_id, row.thread_key) for row in rows]


async def needed_by(session: AsyncSession, run_ids: Sequence[UUID]) -> Run | None:
    """A run, none of these, that may have to take in how one of them ended: see `family.may_need`."""
    parent = aliased(Run)
    awaited = exists().where(
        ToolExecution.run_id == parent.run_id,
        ToolExecution.child_run_id == Run.run_id,
        ToolExecution.outcome.is_(null()),
    )
    over = [status.value for status in RunStatus if status.terminal]
    resumable = [RunStatus.FAILED.value, RunStatus.INTERRUPTED.value]
    found = (
        select(parent)
        .join(Run, Run.parent_run_id == parent.run_id)
        .where(among(Run.run_id, run_ids), parent.run_id != all_(_array(run_ids)))
        .where(parent.status.not_in(over) | (parent.status.in_(resumable) & awaited))
    )
    return await session.scalar(found.limit(1))


async def shared_threads(session: AsyncSession, thread_keys: Sequence[UUID], run_ids: Sequence[UUID]) -> set[UUID]:
    """Those of the threads that also have runs other than the named ones."""
    others = select(Run.thread_key).where(among(Run.thread_key, thread_keys), Run.run_id != all_(_array(run_ids)))
    return set(await session.scalars(others.distinct()))


async def delete_runs(session: AsyncSession, run_ids: Iterable[UUID]) -> None:
    """Delete runs with their events, checkpoints, tool executions and interactions."""
    ids = list(run_ids)
    for table in (RunEvent, Checkpoint, ToolExecution, Interaction, Run):
        await session.execute(delete(table).where(among(table.run_id, ids)))


def among(column: InstrumentedAttribute[UUID], ids: Sequence[UUID]) -> ColumnElement[bool]:
    """Whether a column is one of the ids: a single argument, however many they are."""
    return column == any_(_array(ids))


def _array(ids: Sequence[UUID]) -> ColumnElement[Sequence[UUID]]:
    return literal(list(ids), ARRAY(PgUuid(as_uuid=True)))


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
    )
