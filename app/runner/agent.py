"""`Agent`: a definition that carries its tools and its subagents."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

from pydantic import BaseModel

from app.engine.agent import AgentDefinition
from app.runner.errors import InvalidArgument
from app.tools.function_tool import FunctionTool, tool


class Agent:
    """An agent for a `Runner`: a definition that carries its tools and its subagents.

    Args:
        name: a letter, then up to 47 letters, digits, `_` or `-`.
        model: with its prefix, such as `openai/gpt-4o-mini`.
        instructions: the system message.
        tools: functions, with `@tool` or without, and names of tools that the runner has: `server__tool` of an MCP
            server, or a sandboxed one such as `run_command`.
        subagents: agents that this one may delegate to, each through a tool `delegate_to_<name>`.
        response_schema: what the answer must fit: a Pydantic model, or a JSON schema.
        settings: the other fields of `AgentDefinition`, such as `limits`, `policy` or `join_policy`.

    Raises:
        pydantic.ValidationError: a field has a wrong value.
        InvalidArgument: a subagent is no Agent.
        ValueError: two of the agents have one name; the two above are ValueErrors as well.
    """

    def __init__(
        self,
        name: str,
        model: str,
        instructions: str = "",
        tools: Sequence[Callable[..., Any] | str] = (),
        subagents: Sequence[Agent] = (),
        response_schema: type[BaseModel] | Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        for index, subagent in enumerate(subagents):
            if not isinstance(subagent, Agent):  # pyright: ignore[reportUnnecessaryIsInstance]
                said = f"should be an Agent, as in subagents=[Agent(...)], not {subagent!r:.100}"
                raise InvalidArgument(said, ("subagents", index), name)
        given = [each if isinstance(each, str) else _as_tool(each) for each in tools]
        names = [each if isinstance(each, str) else each.spec.name for each in given]
        self.tools = tuple(each for each in given if not isinstance(each, str))
        self.subagents = tuple(subagents)
        self.definition = AgentDefinition.model_validate(
            {
                "name": name,
                "model": model,
                "instructions": instructions,
                "tools": names,
                "subagents": [each.definition.name for each in subagents],
                "response_schema": _json_schema(response_schema),
                **settings,
            }
        )
        known: dict[str, Agent] = {}
        for agent in self.family():
            if known.setdefault(agent.definition.name, agent) is not agent:
                raise ValueError(f"two different agents are named {agent.definition.name!r}")

    def family(self) -> Iterator[Agent]:
        """This agent and all that it may delegate to, directly or not; some perhaps more than once."""
        yield self
        for subagent in self.subagents:
            yield from subagent.family()


def _json_schema(schema: object) -> object:
    """What a definition holds of it; what is neither is left for the definition to refuse."""
    if isinstance(schema, type) and issubclass(schema, BaseModel):
        return schema.model_json_schema()
    return dict(cast("Mapping[str, Any]", schema)) if isinstance(schema, Mapping) else cast("object", schema)


def _as_tool(function: Callable[..., Any]) -> FunctionTool[..., Any]:
    return cast("FunctionTool[..., Any]", function) if isinstance(function, FunctionTool) else tool(function)
