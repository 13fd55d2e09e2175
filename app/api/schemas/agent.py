"""Agents and tools."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from app.api.schemas.fields import EXAMPLE_TIME, JsonObject, Resource, Timestamp, example
from app.engine.agent import AgentDefinition, AgentName, AgentSettings
from app.engine.effects import ToolEffect
from app.engine.timestamp import timestamp
from app.engine.tools import ToolSpec
from app.services.agents import AgentRecord

_SETTINGS_EXAMPLE: JsonObject = {
    "description": "Answers questions about the weather.",
    "model": "openai/gpt-4o-mini",
    "instructions": "Be brief. The user's name is {{ user.name }}.",
    "tools": [],
    "limits": {"max_steps": 8},
}
_DEFINITION_EXAMPLE: JsonObject = AgentDefinition.model_validate({**_SETTINGS_EXAMPLE, "name": "helper"}).model_dump(
    mode="json"
)
_AGENT_EXAMPLE: JsonObject = {
    "name": "helper",
    "version": 1,
    "source": "api",
    "created_at": EXAMPLE_TIME,
    "definition": _DEFINITION_EXAMPLE,
}
_TOOL_EXAMPLE: JsonObject = {
    "name": "get_weather",
    "description": "The weather in a city.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    "effect": "read_only",
    "source": "python",
}


class AgentPut(AgentSettings):
    """An agent without its name, which stands in the path; the same name may be given here too."""

    model_config = example(_SETTINGS_EXAMPLE)

    name: AgentName | None = None

    def settings(self) -> AgentSettings:
        return AgentSettings.model_validate(self.model_dump(exclude={"name"}))


class Agent(Resource):
    """One version of a named agent."""

    model_config = example(_AGENT_EXAMPLE)

    name: str
    version: int
    source: Literal["api", "file"]
    created_at: Timestamp
    definition: AgentDefinition


class AgentPage(Resource):
    model_config = example({"items": [_AGENT_EXAMPLE], "next_cursor": None})

    items: list[Agent]
    next_cursor: str | None


class Tool(Resource):
    name: str
    description: str
    parameters: JsonObject = Field(description="The JSON Schema of its arguments.")
    effect: ToolEffect = Field(description="What a call may do, and so whether it may be repeated.")
    source: str = Field(description="`python`, `mcp`, and others that may come.")


class ToolPage(Resource):
    model_config = example({"items": [_TOOL_EXAMPLE], "next_cursor": None})

    items: list[Tool]
    next_cursor: str | None


def agent_object(agent: AgentRecord) -> JsonObject:
    return {
        "name": agent.name,
        "version": agent.version,
        "source": agent.source,
        "created_at": timestamp(agent.created_at),
        "definition": agent.definition.model_dump(mode="json"),
    }


def tool_object(tool: ToolSpec) -> JsonObject:
    return {
        "name": tool.name,
        "description": tool.description,
        "parameters": tool.parameters,
        "effect": tool.effect,
        "source": tool.source,
    }
