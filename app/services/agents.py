"""Agents: named, versioned definitions, and the inline ones that runs bring along."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Generic, TypeVar
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession
from uuid_utils.compat import uuid7

from app.db.database import Database
from app.db.queries import agents
from app.db.queries.agents import VersionRow
from app.engine.agent import AgentDefinition, AgentOverrides, AgentSettings, AgentVersion
from app.engine.tools import ToolPort
from app.services.agent_files import AgentFileError, read_agent_files
from app.services.errors import Conflict, Invalid, UnknownAgent, UnknownTool
from app.services.pages import Page, int_cursor, page_of
from app.telemetry.logs import get_logger

_API = "api"
_FILE = "file"
_CACHED = 1024
_MAX_VERSION = 2**31 - 1

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
    """`created`: there was no agent of that name."""

    record: AgentRecord
    created: bool


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

    Raises (all methods that wait): `StoreUnavailable` when the database cannot be reached.
    """

    def __init__(self, database: Database, tools: ToolPort, check_model: Callable[[str], str | None]) -> None:
        self._database = database
        self._tools = tools
        self._check_model = check_model
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
            Invalid, UnknownTool: an inline definition names what is not there.
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

    async def put(self, name: str, settings: AgentSettings, *, tenant_id: str = "") -> PutAgent:
        """Save an agent: a new version, unless the content is that of the current one.

        Raises:
            Invalid, UnknownTool: the definition names what is not there.
            Conflict: the agent comes from a file.
        """
        definition = AgentDefinition.model_validate({**settings.model_dump(), "name": name})
        self.check(definition)
        async with self._database.session() as session:
            saved = await self._save(session, tenant_id, definition, _API)
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
        before = int_cursor(cursor)
        async with self._database.session() as session:
            if await agents.current(session, tenant_id, name) is None:
                raise UnknownAgent(f"there is no agent {name!r}")
            found = await agents.versions_page(session, tenant_id, name, before, limit + 1)
        return page_of([_record(row) for row in found], limit, lambda record: str(record.version))

    async def delete(self, name: str, *, tenant_id: str = "") -> None:
        """Delete an agent; its runs keep the version that they started with.

        Raises:
            UnknownAgent: there is no such agent.
            Conflict: the agent comes from a file.
        """
        async with self._database.session() as session:
            agent = await agents.lock(session, tenant_id, name, _API)
            if agent.deleted:
                raise UnknownAgent(f"there is no agent {name!r}")
            _refuse_file(name, agent.source)
            agent.deleted = True
        self.forget(name, tenant_id)

    async def sync_files(self, directory: Path, *, tenant_id: str = "") -> None:
        """Make the stored agents of source `file` those of a folder; a file wins over an agent saved by REST.

        Raises:
            AgentFileError: a file cannot be used; nothing was then changed.
        """
        if not await asyncio.to_thread(directory.is_dir):
            return  # no folder says nothing about the agents that came from one
        definitions = await asyncio.to_thread(read_agent_files, directory)
        for path, definition in definitions.items():
            try:
                self.check(definition, loc=())
            except Invalid as error:
                raise AgentFileError(path, f"{'.'.join(map(str, error.loc))}: {error}") from error
        async with self._database.session() as session:
            # In the order of the names, so that replicas that start together lock in the same order.
            for definition in sorted(definitions.values(), key=lambda definition: definition.name):
                await self._save(session, tenant_id, definition, _FILE)
            names = {definition.name for definition in definitions.values()}
            gone = await agents.delete_missing_files(session, tenant_id, names)
        for name in {*names, *gone}:
            self.forget(name, tenant_id)
        for name in gone:
            _log.info("agent_deleted", agent=name, reason="its file is gone")

    def check(self, definition: AgentDefinition, loc: Sequence[str | int] = ("body",)) -> None:
        """Refuse a definition that names a model or a tool that is not there.

        Args:
            loc: where in the request the definition is.

        Raises:
            Invalid: of a model's prefix; UnknownTool: of a tool. `loc` names the field.
        """
        self._check(definition.model, definition.tools, loc)

    def check_overrides(self, overrides: AgentOverrides, loc: Sequence[str | int] = ("body",)) -> None:
        """The same for what a request changes of its agent."""
        self._check(overrides.model, overrides.tools or (), loc)

    def _check(self, model: str | None, tools: Sequence[str], loc: Sequence[str | int]) -> None:
        problem = None if model is None else self._check_model(model)
        if problem is not None:
            raise Invalid(problem, (*loc, "model"))
        for index, name in enumerate(tools):
            if self._tools.spec(name) is None:
                raise UnknownTool(f"there is no tool {name!r}", (*loc, "tools", index))

    async def _save(self, session: AsyncSession, tenant_id: str, definition: AgentDefinition, source: str) -> PutAgent:
        agent = await agents.lock(session, tenant_id, definition.name, source)
        if source == _API and not agent.deleted:
            _refuse_file(definition.name, agent.source)
        row = await agents.by_id(session, agent.version_id)
        content_hash = definition.content_hash()
        if row is None or row.content_hash != content_hash or row.source != source:
            version = agent.version + 1
            row = await agents.add_version(
                session, uuid7(), tenant_id, definition, content_hash, version=version, source=source
            )
            agent.version, agent.version_id = version, row.version_id
        created = agent.deleted
        agent.source, agent.deleted = source, False
        return PutAgent(_record(row), created)

    async def _inline_version(self, definition: AgentDefinition, tenant_id: str) -> AgentVersion:
        key = (tenant_id, definition.content_hash())
        known = self._inline.get(key)
        if known is None:
            self.check(definition, ("body", "agent"))
            async with self._database.session() as session:
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


def _refuse_file(name: str, source: str) -> None:
    if source == _FILE:
        raise Conflict(f"the agent {name!r} comes from a file of AGENTS_DIR; change the file")


def _pinned(row: VersionRow) -> AgentVersion:
    return AgentVersion(str(row.version_id), row.definition, row.version)


def _record(row: VersionRow) -> AgentRecord:
    assert row.version is not None
    return AgentRecord(row.name, row.version, row.source, row.created_at, row.definition)
