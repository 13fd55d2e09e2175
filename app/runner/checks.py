"""What a runner refuses before it executes anything."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pydantic import TypeAdapter, ValidationError

from app.engine.content import MessageContent, Part, content_of
from app.engine.messages import Content, Message, Role
from app.runner.agent import Agent
from app.runner.errors import InvalidArgument
from app.services.agent_checks import AgentChecks, grants_of
from app.services.complaints import complaints_of
from app.services.errors import Invalid
from app.tools.http_tools import DefinitionSource
from app.tools.registry import ToolRegistry

_CONTENT: TypeAdapter[str | list[Part]] = TypeAdapter(MessageContent)
# What to do about a name that is not there; the service's callers can only leave it away.
_FIXES = {
    "tools": "give the function itself; names are those of sandboxed tools, of tools for memories and, as "
    "server__tool, of MCP servers' tools",
    "mcp_servers": "MCP_SERVERS_FILE declares them",
    "sandbox": "SANDBOX_FILE declares them",
}


def check_agent(agent: Agent, tools: ToolRegistry, check_model: Callable[[str], str | None]) -> None:
    """Refuse an agent that cannot work here, or has such a one below it.

    Args:
        tools: where the functions of the agents need not be yet.
        check_model: what is wrong with a model's name, for people; None if nothing is.

    Raises:
        InvalidArgument: of a field, in the service's words.
    """
    family = {each.definition.name: each for each in agent.family()}.values()
    brought = {function.spec.name for each in family for function in each.tools}

    def lacking(names: Sequence[str]) -> Sequence[str]:
        return tools.lacking([name for name in names if name not in brought])

    checks = AgentChecks(lacking, check_model, grants_of(tools))
    for each in family:
        try:
            # Whoever writes the program is its operator, as who writes an agent's file is the service's.
            checks.definition(each.definition, DefinitionSource.FILE, ())
        except Invalid as error:
            fix = _FIXES.get(str(error.loc[0]))
            problem = str(error) if fix is None else f"{error}; {fix}"
            raise InvalidArgument(problem, error.loc, each.definition.name) from error


def message_of(given: Content) -> Message:
    """What a user says, as a message. Raises InvalidArgument: it is neither text nor parts of text and images."""
    if isinstance(given, str):
        return Message(Role.USER, given)
    try:
        return Message(Role.USER, content_of(_CONTENT.validate_python(given)))
    except ValidationError as error:
        location, problem = complaints_of(error, given)[0]
        raise InvalidArgument(problem, ("user_message", *location)) from error
