"""Whether what a definition names is there, and whether the operator allows it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from app.engine.agent import AgentDefinition, AgentOverrides
from app.engine.tool_definitions import HttpToolDefinition
from app.services.errors import Invalid, UnknownTool
from app.tools.answer_schema import answers_of
from app.tools.errors import ToolDefinitionError
from app.tools.http_tools import DefinitionSource
from app.tools.registry import ToolRegistry
from app.tools.schema_arguments import SchemaArguments

Loc = Sequence[str | int]


def _no_http(_definition: HttpToolDefinition, _source: DefinitionSource) -> str | None:
    return "HTTP tools are not allowed on this server"


def _no_server(name: str) -> str | None:
    return f"there is no MCP server {name!r}"


def _no_profile(name: str) -> str | None:
    return f"there is no sandbox profile {name!r}"


@dataclass(frozen=True, slots=True)
class Grants:
    """What the operator lets agents use, besides tools and models. By default nothing.

    Args:
        http_tool, mcp_server, sandbox: each says what is wrong with one of these, for people; None if nothing is.
    """

    http_tool: Callable[[HttpToolDefinition, DefinitionSource], str | None] = _no_http
    mcp_server: Callable[[str], str | None] = _no_server
    sandbox: Callable[[str], str | None] = _no_profile


def grants_of(tools: ToolRegistry) -> Grants:
    """What the operator of these tools lets agents use."""
    http, mcp, sandboxes = tools.http, tools.mcp, tools.sandboxes()
    return Grants(
        http_tool=_no_http if http is None else http.problem,
        mcp_server=lambda name: None if mcp and mcp.declared(name) else _no_server(name),
        sandbox=lambda name: None if name in sandboxes else _no_profile(name),
    )


class AgentChecks:
    """
    Args:
        lacking: which of these tools are not there, and will not be later.
        check_model: what is wrong with a model's name, for people; None if nothing is.
    """

    def __init__(
        self,
        lacking: Callable[[Sequence[str]], Sequence[str]],
        check_model: Callable[[str], str | None],
        grants: Grants,
    ) -> None:
        self._lacking = lacking
        self._check_model = check_model
        self._grants = grants

    def definition(self, definition: AgentDefinition, source: DefinitionSource, loc: Loc) -> None:
        """Refuse a definition that cannot work here; its subagents are not looked at.

        Args:
            source: who wrote it; an inline one, a caller.
            loc: where in the request the definition is.

        Raises:
            UnknownTool: a tool is not there; Invalid: something else is not. `loc` names the field.
        """
        self._named(definition.model, definition.tools, loc)
        _check_answers(definition.response_schema, loc)
        for index, model in enumerate(definition.fallback_models):
            _refuse(self._check_model(model), (*loc, "fallback_models", index))
        for index, server in enumerate(definition.mcp_servers):
            _refuse(self._grants.mcp_server(server), (*loc, "mcp_servers", index))
        if definition.sandbox is not None:
            _refuse(self._grants.sandbox(definition.sandbox), (*loc, "sandbox"))
        for index, declared in enumerate(definition.tool_definitions):
            place = (*loc, "tool_definitions", index)
            for server in definition.mcp_servers:
                if declared.name.startswith(f"{server}__"):
                    raise Invalid(f"names that begin with {server}__ are those of the MCP server", (*place, "name"))
            try:
                SchemaArguments(declared.parameters)
            except ToolDefinitionError as error:
                raise Invalid(str(error), (*place, "parameters")) from error
            if isinstance(declared, HttpToolDefinition):
                _refuse(self._grants.http_tool(declared, source), place)

    def overrides(self, overrides: AgentOverrides, loc: Loc) -> None:
        """The same for what a request changes of its agent."""
        self._named(overrides.model, overrides.tools or (), loc)
        _check_answers(overrides.response_schema, loc)

    def _named(self, model: str | None, tools: Sequence[str], loc: Loc) -> None:
        if model is not None:
            _refuse(self._check_model(model), (*loc, "model"))
        lacking = set(self._lacking(tools)) if tools else ()
        for index, name in enumerate(tools):
            if name in lacking:
                raise UnknownTool(f"there is no tool {name!r}", (*loc, "tools", index))


def _check_answers(schema: Mapping[str, Any] | None, loc: Loc) -> None:
    if schema is None:
        return
    try:
        answers_of(schema)
    except ToolDefinitionError as error:
        raise Invalid(str(error), (*loc, "response_schema")) from error


def check_team(definition: AgentDefinition, teams: Mapping[str, Sequence[str]], loc: Loc) -> None:
    """Refuse subagents that are not there, and such through which the agent would delegate to itself.

    Args:
        teams: the subagents' own subagents, theirs, and so on, by name; of agents that are there.

    Raises:
        Invalid: `loc` names the subagent.
    """
    for index, name in enumerate(definition.subagents):
        place = (*loc, "subagents", index)
        path = _path(name, definition.name, teams)
        if path is not None:
            raise Invalid(f"{'>'.join((definition.name, *path))}: an agent cannot delegate to itself", place)
        if name not in teams:
            raise Invalid(f"there is no agent {name!r}", place)


def _path(start: str, end: str, teams: Mapping[str, Sequence[str]]) -> tuple[str, ...] | None:
    """A way from one agent down to another, both included; None if there is none."""
    waiting: list[tuple[str, ...]] = [(start,)]
    seen = {start}
    while waiting:
        path = waiting.pop(0)
        if path[-1] == end:
            return path
        for name in teams.get(path[-1], ()):
            if name not in seen:
                seen.add(name)
                waiting.append((*path, name))
    return None


def _refuse(problem: str | None, loc: Loc) -> None:
    if problem is not None:
        raise Invalid(problem, loc)
