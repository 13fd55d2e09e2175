"""Agents: named, versioned definitions, and the inline ones that runs bring along."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Generator, Hashable
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Generic, TypeVar
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession
from uuid_utils.compat import uuid7

from app.db.conflicts import again_if_undone
from app.db.database import Database
from app.db.queries import agents
from app.db.queries.agents import VersionRow
from app.engine.agent import AgentDefinition, AgentOverrides, AgentSettings, AgentVersion
from app.engine.tools import ToolPort
from app.services.agent_checks import AgentChecks, Grants, Loc, check_team
from app.services.agent_files import AgentFileError, field_of, read_agent_files
from app.services.errors import Conflict, Invalid, UnknownAgent
from app.services.pages import MOST_INTEGER, Page, int_cursor, page_of
from app.telemetry.logs import get_logger
from app.tools.http_tools import DefinitionSource

_CACHED = 1024
_MAX_VERSION = 2**31 - 1
_NOTHING = Grants()

_log = get_logger(__name__)
_Key = TypeVar("_Key", bound=Hashable)
_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True)
class AgentRecord:
    """One version of a named agent. `source` is `api` or `file`."""

    name: str
    version: int
    source: str
    created_at: datetime
    definition: AgentDefinition


@dataclass(frozen=True, slots=True)
class PutAgent:
    """
    Args:
        created: there was no agent of that name.
        changed: this made a version.
    """

    record: AgentRecord
    created: bool
    changed: bool


@dataclass(frozen=True, slots=True)
class ResolvedRef:
    """What a request means by its `agent`.

    Args:
        check_name: the agent's name if the store must check that `version` is still its current one; None for
            versions that were asked for by number and for inline agents.
    """

    version: AgentVersion
    check_name: str | None


class _Recent(Generic[_Key, _Value]):
    """The values used last, up to a number of them."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._values: OrderedDict[_Key, _Value] = OrderedDict()

    def get(self, key: _Key) -> _Value | None:
        value = self._values.get(key)
        if value is not None:
            self._values.move_to_end(key)
        return value

    def put(self, key: _Key, value: _Value) -> None:
        self._values[key] = value
        self._values.move_to_end(key)
        if len(self._values) > self._size:
            self._values.popitem(last=False)

    def drop(self, key: _Key) -> None:
        self._values.pop(key, None)


class AgentService:
    """What callers may do with agents, and what runs ask of them.

    Args:
        tools: asked which tools there are.
        check_model: what is wrong with a model's name, for people; None if nothing is.
        grants: what else the operator lets agents use.

    Raises (all methods that wait): `StoreUnavailable` when the database cannot be reached.
    """

    def __init__(
        self,
        database: Database,
        tools: ToolPort,
        check_model: Callable[[str], str | None],
        *,
        grants: Grants = _NOTHING,
    ) -> None:
        self._database = database
        self._checks = AgentChecks(tools.lacking, check_model, grants)
        self._current: _Recent[tuple[str, str], AgentVersion] = _Recent(_CACHED)
        self._inline: _Recent[tuple[str, str], AgentVersion] = _Recent(_CACHED)
        self._pinned: _Recent[str, AgentVersion] = _Recent(_CACHED)

    async def resolve(self, ref: str | AgentDefinition, tenant_id: str = "") -> ResolvedRef:
        """The version that a run is to be pinned to.

        Args:
            ref: `name` (its current version, from memory where known), `name@version`, or an inline
                definition, which is checked and stored once per content.

        Raises:
            UnknownAgent: there is no such agent, or it has no such version.
            Invalid, UnknownTool: an inline definition names what is not there or not allowed.
        """
        if isinstance(ref, AgentDefinition):
            return ResolvedRef(await self._inline_version(ref, tenant_id), None)
        name, at, number = ref.partition("@")
        if at:
            return ResolvedRef(await self._numbered_version(name, number, tenant_id), None)
        known = self._current.get((tenant_id, name))
        if known is None:
            async with self._database.session() as session:
                row = await agents.current(session, tenant_id, name)
            if row is None:
                raise UnknownAgent(f"there is no agent {name!r}")
            known = _pinned(row)
            self._current.put((tenant_id, name), known)
        return ResolvedRef(known, name)

    def forget(self, name: str, tenant_id: str = "") -> None:
        """Ask the database again the next time that this agent is named."""
        self._current.drop((tenant_id, name))

    async def version(self, version_id: str) -> AgentVersion:
        """A version that a run is pinned to; its agent may be deleted.

        Raises:
            UnknownAgent: nothing has that id.
        """
        known = self._pinned.get(version_id)
        if known is None:
            async with self._database.session() as session:
                row = await agents.by_id(session, UUID(version_id))
            if row is None:
                raise UnknownAgent(f"there is no agent version {version_id}")
            known = _pinned(row)
            self._pinned.put(version_id, known)
        return known

    @again_if_undone
    async def put(self, name: str, settings: AgentSettings, *, tenant_id: str = "") -> PutAgent:
        """Save an agent: a new version, unless the content is that of the current one.

        Raises:
            Invalid, UnknownTool: the definition names what is not there or not allowed, or the agent would delegate to
                itself.
            Conflict: the agent comes from a file.
        """
        definition = AgentDefinition.model_validate({**settings.model_dump(), "name": name})
        loc = ("body",)
        self._checks.definition(definition, DefinitionSource.API, loc)
        async with self._database.session() as session:
            if definition.subagents:
                await agents.lock_teams(session)
            saved = await self._save(session, tenant_id, definition, DefinitionSource.API)
            if saved.changed or saved.created:
                await _check_team(session, tenant_id, definition, loc)
        self.forget(name, tenant_id)
        return saved

    async def get(self, name: str, version: int | None = None, *, tenant_id: str = "") -> AgentRecord:
        """An agent, at its current version unless another is asked for. Raises: UnknownAgent."""
        async with self._database.session() as session:
            if version is None:
                row = await agents.current(session, tenant_id, name)
            else:
                row = await agents.numbered(session, tenant_id, name, min(version, _MAX_VERSION))
        if row is None:
            raise UnknownAgent(f"there is no agent {name!r}" + (f" at version {version}" if version else ""))
        return _record(row)

    async def list(self, cursor: str | None, limit: int, *, tenant_id: str = "") -> Page[AgentRecord, str]:
        """All agents at their current versions, in the order of their names; the cursor is a name."""
        async with self._database.session() as session:
            found = await agents.page(session, tenant_id, cursor or "", limit + 1)
        return page_of([_record(row) for row in found], limit, lambda record: record.name)

    async def versions(
        self, name: str, cursor: str | None, limit: int, *, tenant_id: str = ""
    ) -> Page[AgentRecord, str]:
        """The versions of an agent, newest first.

        Raises:
            UnknownAgent: there is no such agent.
            Invalid: the cursor is none of this list's.
        """
        before = int_cursor(cursor, MOST_INTEGER)
        async with self._database.session() as session:
            if await agents.current(session, tenant_id, name) is None:
                raise UnknownAgent(f"there is no agent {name!r}")
            found = await agents.versions_page(session, tenant_id, name, before, limit + 1)
        return page_of([_record(row) for row in found], limit, lambda record: str(record.version))

    @again_if_undone
    async def delete(self, name: str, *, tenant_id: str = "") -> None:
        """Delete an agent; its runs keep the version that they started with, and agents whose subagent it is can no
        longer delegate to it.

        Raises:
            UnknownAgent: there is no such agent.
            Conflict: the agent comes from a file.
        """
        async with self._database.session() as session:
            agent = await agents.lock(session, tenant_id, name, DefinitionSource.API)
            if agent.deleted:
                raise UnknownAgent(f"there is no agent {name!r}")
            _refuse_file(name, agent.source)
            agent.deleted = True
        self.forget(name, tenant_id)

    @again_if_undone
    async def sync_files(self, directory: Path, *, tenant_id: str = "") -> None:
        """Make the stored agents of source `file` those of a folder; a file wins over an agent saved by REST.

        Raises:
            AgentFileError: a file cannot be used; nothing was then changed.
        """
        if not await asyncio.to_thread(directory.is_dir):
            return  # no folder says nothing about the agents that came from one
        files = await asyncio.to_thread(read_agent_files, directory)
        for path, definition in files.items():
            with _named(path):
                self._checks.definition(definition, DefinitionSource.FILE, ())
        async with self._database.session() as session:
            if any(definition.subagents for definition in files.values()):
                await agents.lock_teams(session)
            changed: dict[Path, AgentDefinition] = {}
            # In the order of the names, so that replicas that start together lock in the same order.
            for path, definition in sorted(files.items(), key=lambda file: file[1].name):
                saved = await self._save(session, tenant_id, definition, DefinitionSource.FILE)
                if saved.changed:
                    changed[path] = definition
            names = {definition.name for definition in files.values()}
            gone = await agents.delete_missing_files(session, tenant_id, names)
            # Only now, as files may name each other; and only what is new, as a subagent that was deleted since is no
            # reason not to start.
            for path, definition in changed.items():
                with _named(path):
                    await _check_team(session, tenant_id, definition, ())
        for name in {*names, *gone}:
            self.forget(name, tenant_id)
        for name in gone:
            _log.info("agent_deleted", agent=name, reason="its file is gone")

    def check_overrides(self, overrides: AgentOverrides, loc: Loc = ("body",)) -> None:
        """Refuse overrides that name a model or a tool that is not there.

        Args:
            loc: where in the request the overrides are.

        Raises:
            Invalid: of a model's prefix; UnknownTool: of a tool. `loc` names the field.
        """
        self._checks.overrides(overrides, loc)

    async def _save(
        self, session: AsyncSession, tenant_id: str, definition: AgentDefinition, source: DefinitionSource
    ) -> PutAgent:
        agent = await agents.lock(session, tenant_id, definition.name, source)
        if source is DefinitionSource.API and not agent.deleted:
            _refuse_file(definition.name, agent.source)
        row = await agents.by_id(session, agent.version_id)
        content_hash = definition.content_hash()
        changed = row is None or row.content_hash != content_hash or row.source != source
        if row is None or changed:
            version = agent.version + 1
            row = await agents.add_version(
                session, uuid7(), tenant_id, definition, content_hash, version=version, source=source
            )
            agent.version, agent.version_id = version, row.version_id
        created = agent.deleted
        agent.source, agent.deleted = source, False
        return PutAgent(_record(row), created, changed)

    @again_if_undone
    async def _inline_version(self, definition: AgentDefinition, tenant_id: str) -> AgentVersion:
        key = (tenant_id, definition.content_hash())
        known = self._inline.get(key)
        if known is None:
            loc = ("body", "agent")
            self._checks.definition(definition, DefinitionSource.API, loc)
            async with self._database.session() as session:
                await _check_team(session, tenant_id, definition, loc)
                version_id = await agents.keep_inline(session, uuid7(), tenant_id, definition, key[1])
            known = AgentVersion(str(version_id), definition)
            self._inline.put(key, known)
            self._pinned.put(known.version_id, known)
        return known

    async def _numbered_version(self, name: str, number: str, tenant_id: str) -> AgentVersion:
        row = None
        if number.isascii() and number.isdigit() and len(number) < 10:
            async with self._database.session() as session:
                row = await agents.numbered(session, tenant_id, name, int(number))
        if row is None:
            raise UnknownAgent(f"there is no agent {name!r} at version {number!r}")
        return _pinned(row)


async def _check_team(session: AsyncSession, tenant_id: str, definition: AgentDefinition, loc: Loc) -> None:
    """Raises: Invalid."""
    if definition.subagents:
        check_team(definition, await agents.teams(session, tenant_id, definition.subagents), loc)


@contextmanager
def _named(path: Path) -> Generator[None]:
    """What is refused of a file's definition is refused of the file."""
    try:
        yield
    except Invalid as error:
        raise AgentFileError(path, f"{field_of(error.loc)}: {error}") from error


def _refuse_file(name: str, source: str) -> None:
    if source == DefinitionSource.FILE:
        raise Conflict(f"the agent {name!r} comes from a file of AGENTS_DIR; change the file")


def _pinned(row: VersionRow) -> AgentVersion:
    return AgentVersion(str(row.version_id), row.definition, row.version)


def _record(row: VersionRow) -> AgentRecord:
    assert row.version is not None
    return AgentRecord(row.name, row.version, row.source, row.created_at, row.definition)
