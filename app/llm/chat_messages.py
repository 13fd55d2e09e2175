"""Requests, messages and tools in the form of OpenAI's chat completions, which most providers read.

https://platform.openai.com/docs/api-reference/chat/create
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import orjson

from app.engine.messages import Message, Role
from app.engine.model import ModelRequest
from app.engine.tools import ToolSpec


def chat_message(message: Message) -> dict[str, Any]:
    """One message; content is null where an assistant only called tools: some providers refuse empty text."""
    result: dict[str, Any] = {"role": message.role.value, "content": message.content}
    if message.tool_calls:
        result["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
        if not message.content:
            result["content"] = None
    if message.role is Role.TOOL:
        result["tool_call_id"] = message.tool_call_id
    return result


def chat_tool(tool: ToolSpec) -> dict[str, Any]:
    """One tool as a function with its JSON Schema."""
    return {
        "type": "function",
        "function": {"name": tool.name, "description": tool.description, "parameters": tool.parameters},
    }


def plain_mapping(value: object) -> object:
    """`default` of orjson for schemas that are kept in read-only mappings."""
    if isinstance(value, Mapping):
        return dict(cast("Mapping[str, Any]", value))
    raise TypeError(f"{type(value).__name__} is no JSON value")


class ToolsJson:
    """Tool schemas as JSON text, kept for as long as the same tuple of tools comes back.

    An agent's tools are the same object in every call of every run; serialising their schemas anew would cost
    more than the rest of the request. Only tuples are kept, because a list may change under the same
    identity.
    """

    def __init__(self, max_entries: int = 256) -> None:
        self._max_entries = max_entries
        # The tools are held beside their text: an identity means nothing once its object is gone.
        self._kept: dict[int, tuple[Sequence[ToolSpec], orjson.Fragment]] = {}

    def of(self, tools: Sequence[ToolSpec]) -> orjson.Fragment:
        """The tools as a JSON array that orjson inserts as it is."""
        kept = self._kept.get(id(tools))
        if kept is not None and kept[0] is tools:
            return kept[1]
        text = orjson.Fragment(orjson.dumps([chat_tool(tool) for tool in tools], default=plain_mapping))
        if isinstance(tools, tuple):
            if len(self._kept) >= self._max_entries:
                del self._kept[next(iter(self._kept))]
            self._kept[id(tools)] = (tools, text)
        return text


def chat_request(request: ModelRequest, model: str, tools: ToolsJson, *, for_openai: bool) -> bytes:
    """The body of a streamed request.

    Args:
        model: the name as the server knows it.
        for_openai: the server is OpenAI's own: its reasoning models refuse max_tokens under that name, while many
            other servers know no other.
    """
    body: dict[str, Any] = {
        "model": model,
        "messages": [chat_message(message) for message in request.messages],
        "stream": True,
        "stream_options": {"include_usage": True},
        **request.settings,
    }
    if request.tools:
        body["tools"] = tools.of(request.tools)
    if for_openai and "max_tokens" in body:
        body["max_completion_tokens"] = body.pop("max_tokens")
    return orjson.dumps(body, default=plain_mapping)
