"""Agents and their versions."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import JSON, Result, Row, Select, Text, func, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from app.db.models import Agent, AgentVersion
from app.engine.agent import AgentDefinition


@dataclass(frozen=True, slots=True)
class VersionRow:
    """One version of an agent; `version` is None for an inline one."""

    version_id: UUID
    name: str
    version: int | None
    source: str
    content_hash: str
    created_at: datetime
    definition: AgentDefinition


async def lock(session: AsyncSession, tenant_id: str, name: str, source: str) -> Agent:
    """The agent's row, locked; made, with version 0, if there is none."""
    await session.execute(
        insert(Agent)
        .values(tenant_id=tenant_id, name=name, version=0, version_id=UUID(int=0), source=source, deleted=True)
        .on_conflict_do_nothing()
    )
    query = select(Agent).where(Agent.tenant_id == tenant_id, Agent.name == name)
    return (await session.scalars(query.with_for_update())).one()


async def current(session: AsyncSession, tenant_id: str, name: str) -> VersionRow | None:
    """The current version of an agent that is not deleted."""
    return _version(await session.execute(_versions(tenant_id, name).where(Agent.version == AgentVersion.version)))


async def numbered(session: AsyncSession, tenant_id: str, name: str, version: int) -> VersionRow | None:
    """One version of an agent that is not deleted."""
    return _version(await session.execute(_versions(tenant_id, name).where(AgentVersion.version == version)))


async def by_id(session: AsyncSession, version_id: UUID) -> VersionRow | None:
    """A version that something is pinned to, deleted agents and inline ones included."""
    return _version(await session.execute(select(*_COLUMNS).where(AgentVersion.version_id == version_id)))


async def page(session: AsyncSession, tenant_id: str, after: str, limit: int) -> list[VersionRow]:
    """Agents that are not deleted at their current version, in the order of their names."""
    query = _versions(tenant_id).where(Agent.version == AgentVersion.version, Agent.name > after)
    rows = await session.execute(query.order_by(Agent.name).limit(limit))
    return [_row(row) for row in rows]


async def versions_page(
    session: AsyncSession, tenant_id: str, name: str, before: int | None, limit: int
) -> list[VersionRow]:
    """The versions of an agent that is not deleted, newest first."""
    query = _versions(tenant_id, name)
    if before is not None:
        query = query.where(AgentVersion.version < before)
    rows = await session.execute(query.order_by(AgentVersion.version.desc()).limit(limit))
    return [_row(row) for row in rows]


async def add_version(
    session: AsyncSession,
    version_id: UUID,
    tenant_id: str,
    definition: AgentDefinition,
    content_hash: str,
    *,
    version: int,
    source: str,
) -> VersionRow:
    added = await session.execute(
        insert(AgentVersion)
        .values(
            version_id=version_id,
            tenant_id=tenant_id,
            name=definition.name,
            version=version,
            content_hash=content_hash,
            source=source,
            definition=definition.model_dump(mode="json"),
        )
        .returning(*_COLUMNS)
    )
    return _row(added.one())


async def lock_teams(session: AsyncSession) -> None:
    """Make whoever else changes who delegates to whom wait for the end of this transaction.

    Two changes that each fit by themselves could otherwise make a circle together.
    """
    await session.execute(select(func.pg_advisory_xact_lock(_TEAMS_LOCK)))


async def teams(session: AsyncSession, tenant_id: str, names: Sequence[str]) -> dict[str, list[str]]:
    """The subagents of these agents, of those, and so on, by name; agents that are not there are left out."""
    rows = await session.execute(_TEAMS, {"tenant_id": tenant_id, "names": list(names)})
    return {row.name: row.subagents for row in rows}


async def keep_inline(
    session: AsyncSession, version_id: UUID, tenant_id: str, definition: AgentDefinition, content_hash: str
) -> UUID:
    """Store an inline definition unless its content is stored already; the id that it has."""
    await session.execute(
        insert(AgentVersion)
        .values(
            version_id=version_id,
            tenant_id=tenant_id,
            name=definition.name,
            version=None,
            content_hash=content_hash,
            source="inline",
            definition=definition.model_dump(mode="json"),
        )
        .on_conflict_do_nothing()
    )
    # A statement of its own: it sees the row that a concurrent request has just committed.
    query = select(AgentVersion.version_id).where(
        AgentVersion.tenant_id == tenant_id,
        AgentVersion.content_hash == content_hash,
        AgentVersion.version.is_(None),
    )
    return (await session.scalars(query)).one()


async def delete_missing_files(session: AsyncSession, tenant_id: str, names: Collection[str]) -> Sequence[str]:
    """Mark the agents from files whose file is gone as deleted; their names."""
    gone = await session.scalars(
        update(Agent)
        .where(Agent.tenant_id == tenant_id, Agent.source == "file", ~Agent.deleted, Agent.name.not_in(names))
        .values(deleted=True)
        .returning(Agent.name)
    )
    return gone.all()


_TEAMS_LOCK = 0x7465616D73  # "teams"

_TEAMS = text(
    """WITH RECURSIVE named AS (
           SELECT unnest(CAST(:names AS text[])) AS name
           UNION
           SELECT json_array_elements_text(v.definition->'subagents')
           FROM named
           JOIN agents a ON a.tenant_id = :tenant_id AND a.name = named.name AND NOT a.deleted
           JOIN agent_versions v ON v.version_id = a.version_id AND v.definition->'subagents' IS NOT NULL)
       SELECT a.name, COALESCE(v.definition->'subagents', '[]') AS subagents
       FROM named
       JOIN agents a ON a.tenant_id = :tenant_id AND a.name = named.name AND NOT a.deleted
       JOIN agent_versions v ON v.version_id = a.version_id"""
).columns(name=Text, subagents=JSON)

_COLUMNS = (
    AgentVersion.version_id,
    AgentVersion.name,
    AgentVersion.version,
    AgentVersion.source,
    AgentVersion.content_hash,
    AgentVersion.created_at,
    AgentVersion.definition,
)


_Selected = Select[UUID, str, int | None, str, str, datetime, dict[str, Any]]
_Result = Result[UUID, str, int | None, str, str, datetime, dict[str, Any]]
_Row = Row[UUID, str, int | None, str, str, datetime, dict[str, Any]]


def _versions(tenant_id: str, name: str | None = None) -> _Selected:
    belongs = (Agent.tenant_id == AgentVersion.tenant_id) & (Agent.name == AgentVersion.name)
    query = (
        select(*_COLUMNS)
        .join(Agent, belongs)
        .where(Agent.tenant_id == tenant_id, ~Agent.deleted, AgentVersion.version.is_not(None))
    )
    return query if name is None else query.where(Agent.name == name)


def _version(result: _Result) -> VersionRow | None:
    row = result.one_or_none()
    return None if row is None else _row(row)


def _row(row: _Row) -> VersionRow:
    return VersionRow(
        version_id=row.version_id,
        name=row.name,
        version=row.version,
        source=row.source,
        content_hash=row.content_hash,
        created_at=row.created_at,
        definition=AgentDefinition.model_validate(row.definition),
    )
