"""Questions of runs to people: find them, and answer them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import orjson

from app.db.database import Database
from app.db.queries import interactions
from app.db.rows import run_uuid
from app.engine.agent import AgentDefinition, delegate_tool
from app.engine.delegation import task_of
from app.engine.interactions import (
    EXPIRY,
    HEADLESS,
    Answer,
    Decision,
    InteractionKind,
    InteractionRecord,
    InteractionStatus,
)
from app.engine.store_errors import InteractionNotFound, RunNotFound
from app.engine.tool_definitions import Toolbox
from app.engine.tools import ArgumentsRefused, ToolPort
from app.services.agents import AgentService
from app.services.errors import Invalid
from app.services.pages import Page, page_of, uuid_cursor
from app.services.run_control import RunControl

_TAKE_VALUES = frozenset({InteractionKind.INPUT, InteractionKind.TOOL_OUTCOME_UNKNOWN})


@dataclass(frozen=True, slots=True)
class Resolution:
    """What a person says to a question.

    Args:
        value: any JSON value; None where none is given.
        arguments: in place of those that the call would run with; None where they stand.
        decided_by: who says so, in their own words.
    """

    decision: Decision
    value: Any = None
    arguments: dict[str, Any] | None = None
    reason: str | None = None
    decided_by: str | None = None


class InteractionService:
    """What callers may do with questions.

    Args:
        agents: asked for the agent of the run that asks.
        tools: asked whether edited arguments fit their tool.
        control: stores the answer, and lets the run go on.

    Raises (all methods): `StoreUnavailable` when the database cannot be reached.
    """

    def __init__(self, database: Database, agents: AgentService, tools: ToolPort, control: RunControl) -> None:
        self._database = database
        self._agents = agents
        self._tools = tools
        self._control = control

    async def list_run(
        self, run_id: str, cursor: str | None, limit: int, *, tenant_id: str = ""
    ) -> Page[InteractionRecord, str]:
        """A run's questions, oldest first.

        Raises:
            RunNotFound: there is no such run.
            Invalid: the cursor is none of this list's.
        """
        after, key = uuid_cursor(cursor), run_uuid(run_id)
        async with self._database.connection() as connection:
            if not await interactions.run_exists(connection, tenant_id, key):
                raise RunNotFound(run_id)
            found = await interactions.of_run(connection, key, after, limit + 1)
        return page_of(found, limit, lambda interaction: interaction.interaction_id)

    async def list_all(
        self, statuses: Sequence[InteractionStatus], cursor: str | None, limit: int, *, tenant_id: str = ""
    ) -> Page[InteractionRecord, str]:
        """The questions of all runs, oldest first; of any status if none is named.

        Raises:
            Invalid: the cursor is none of this list's.
        """
        after = uuid_cursor(cursor)
        async with self._database.connection() as connection:
            found = await interactions.page(connection, tenant_id, statuses, after, limit + 1)
        return page_of(found, limit, lambda interaction: interaction.interaction_id)

    async def resolve(
        self, run_id: str, interaction_id: str, resolution: Resolution, *, tenant_id: str = ""
    ) -> InteractionRecord:
        """Answer a question; the same decision again changes nothing.

        Raises:
            InteractionNotFound: the run has no such question, or there is no such run.
            Invalid: the answer does not fit the question; `loc` names the field.
            Conflict: it was decided otherwise, or can be decided no more.
        """
        if resolution.decided_by in (EXPIRY, HEADLESS):
            raise _refused("decided_by", f"{resolution.decided_by!r} stands for the fallback; give another name")
        asked = await self._question(run_id, interaction_id, tenant_id)
        _check_value(asked.interaction, resolution)
        arguments = await self._arguments(asked, resolution)
        answer = Answer(
            resolution.decision,
            value=None if resolution.value is None else orjson.dumps(resolution.value).decode(),
            arguments=arguments,
            reason=resolution.reason,
            by=resolution.decided_by,
        )
        return await self._control.answer(asked.interaction.run_id, asked.interaction.interaction_id, answer)

    async def _question(self, run_id: str, interaction_id: str, tenant_id: str) -> interactions.Question:
        try:
            run_key, key = UUID(run_id), UUID(interaction_id)
        except ValueError:
            raise InteractionNotFound(run_id, interaction_id) from None
        async with self._database.connection() as connection:
            asked = await interactions.question(connection, tenant_id, run_key, key)
        if asked is None:
            raise InteractionNotFound(run_id, interaction_id)
        return asked

    async def _arguments(self, asked: interactions.Question, resolution: Resolution) -> str | None:
        """The edited arguments as the tool will get them. Raises: Invalid."""
        if resolution.arguments is None:
            return None
        tool_name = asked.interaction.tool_name
        if resolution.decision is not Decision.APPROVE:
            raise _refused("arguments", "a denied call has no use for arguments")
        if resolution.value is not None:
            raise _refused("arguments", "give either a value or arguments, not both")
        if tool_name is None:
            raise _refused("arguments", "a model call has no arguments")
        given = orjson.dumps(resolution.arguments).decode()
        version = await self._agents.version(asked.agent_version_id)
        try:
            return self._checked(tool_name, given, version.version_id, version.definition)
        except ArgumentsRefused as refusal:
            raise _refused("arguments", str(refusal)) from refusal

    def _checked(self, tool_name: str, arguments: str, version_id: str, definition: AgentDefinition) -> str:
        """Raises: ArgumentsRefused."""
        if tool_name in map(delegate_tool, definition.subagents):
            task_of(arguments)
            return arguments
        toolbox = Toolbox(version_id, tuple(definition.tool_definitions), tuple(definition.mcp_servers))
        return self._tools.for_agent(toolbox).checked(tool_name, arguments)


def _check_value(interaction: InteractionRecord, resolution: Resolution) -> None:
    """Raises: Invalid."""
    if resolution.value is not None:
        if interaction.kind not in _TAKE_VALUES:
            raise _refused("value", f"a question of kind {interaction.kind} takes no value")
        if resolution.decision is not Decision.APPROVE:
            raise _refused("value", "a denial takes no value")
    elif (
        interaction.kind is InteractionKind.INPUT
        and resolution.decision is Decision.APPROVE
        and resolution.arguments is None
    ):
        wanted = "a value" if interaction.tool_name is None else "a value, or arguments"
        raise _refused("value", f"an approved question of kind input needs {wanted}")


def _refused(field: str, message: str) -> Invalid:
    return Invalid(message, ("body", field))
