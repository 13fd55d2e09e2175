"""Requests, messages and tools in the form of OpenAI's chat completions, which most providers read.

https://platform.openai.com/docs/api-reference/chat/create
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import orjson

from app.engine.messages import Message, Role
from app.engine.model import ModelRequest
from app.engine.tools import ToolSpec
from app.llm.json_values import plain_mapping
from app.llm.kept_reasoning import call_signatures, returned_fields
from app.llm.schema_subset import is_strict


def chat_message(message: Message, provider: str) -> dict[str, Any]:
    """One message; content is null where an assistant only called tools: some providers refuse empty text.

    Args:
        provider: who will read it: thoughts that it wants to see again are shown to it alone.
    """
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
    if message.kept is not None:
        result.update(returned_fields(message, provider))
        for index, signature in call_signatures(message, provider).items():
            result["tool_calls"][index]["provider_specific_fields"] = {"thought_signature": signature}
    return result


def chat_tools(tools: Sequence[ToolSpec]) -> list[dict[str, Any]]:
    """Tools as functions with their JSON Schemas."""
    return [
        {
            "type": "function",
            "function": {"name": tool.name, "description": tool.description, "parameters": tool.parameters},
        }
        for tool in tools
    ]


def response_format(schema: Mapping[str, Any]) -> dict[str, Any]:
    """A schema as https://platform.openai.com/docs/guides/structured-outputs has it, strict where that is possible."""
    return {
        "type": "json_schema",
        "json_schema": {"name": "answer", "schema": schema, "strict": is_strict(schema)},
    }


class ToolsJson:
    """Tool schemas as JSON text, kept for as long as the same tuple of tools comes back.

    An agent's tools are the same object in every call of every run; serialising their schemas anew would cost
    more than the rest of the request. Only tuples are kept, because a list may change under the same
    identity.

    Args:
        form: the tools as a provider reads them.
    """

    def __init__(self, form: Callable[[Sequence[ToolSpec]], list[dict[str, Any]]], max_entries: int = 256) -> None:
        self._form = form
        self._max_entries = max_entries
        # The tools are held beside their text: an identity means nothing once its object is gone.
        self._kept: dict[int, tuple[Sequence[ToolSpec], orjson.Fragment]] = {}

    def of(self, tools: Sequence[ToolSpec]) -> orjson.Fragment:
        """The tools as a JSON array that orjson inserts as it is."""
        kept = self._kept.get(id(tools))
        if kept is not None and kept[0] is tools:
            return kept[1]
        text = orjson.Fragment(orjson.dumps(self._form(tools), default=plain_mapping))
        if isinstance(tools, tuple):
            if len(self._kept) >= self._max_entries:
                del self._kept[next(iter(self._kept))]
            self._kept[id(tools)] = (tools, text)
        return text


def chat_request(
    request: ModelRequest, model: str, tools: ToolsJson, *, provider: str, by_schema: bool, for_openai: bool
) -> bytes:
    """The body of a streamed request.

    Args:
        model: the name as the server knows it.
        provider: see `chat_message`.
        by_schema: the server is to hold the answer to the request's schema.
        for_openai: the server is OpenAI's own: its reasoning models refuse max_tokens under that name, while many
            other servers know no other; and it knows no field for thoughts.
    """
    reader = "" if for_openai else provider
    body: dict[str, Any] = {
        "model": model,
        "messages": [chat_message(message, reader) for message in request.messages],
        "stream": True,
        "stream_options": {"include_usage": True},
        **request.settings,
    }
    if request.tools:
        body["tools"] = tools.of(request.tools)
    if by_schema and request.response_schema is not None:
        body["response_format"] = response_format(request.response_schema)
    if for_openai and "max_tokens" in body:
        body["max_completion_tokens"] = body.pop("max_tokens")
    return orjson.dumps(body, default=plain_mapping)
