"""What models are asked and what they answer, as spans carry it (TELEMETRY_CONTENT=on): JSON by the schemas of the
conventions, bounded.

https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-input-messages.json
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import orjson

from app.engine.messages import Content, Message, Role, ToolCall, json_or_text
from app.engine.model import ModelRequest, ModelResponse

# Characters of one attribute's texts; a queue of spans that nobody takes stays small with it.
MAX_CHARS = 16_384
_MAX_MESSAGES = 200
# What a part without a text of its own takes of that room.
_PART_CHARS = 64
_DATA_URL = re.compile(r"data:([\w.+-]{1,60}/[\w.+-]{1,60})[;,]", re.ASCII | re.IGNORECASE)


def input_messages(request: ModelRequest) -> dict[str, str]:
    """The messages of a request, the newest first to be kept, and the system message that stands before them."""
    messages = list(request.messages)
    found: dict[str, str] = {}
    if messages and messages[0].role is Role.SYSTEM:
        text = messages.pop(0).text()[:MAX_CHARS]
        found["gen_ai.system_instructions"] = _json([{"type": "text", "content": text}])
    found["gen_ai.input.messages"] = _json(_bounded(messages))
    return found


def output_messages(response: ModelResponse) -> dict[str, str]:
    """The one message that a model has answered."""
    left = _Left()
    answer = _assistant(response.text, response.tool_calls, left)
    if response.reasoning:  # it has what room the answer leaves
        thought = {"type": "reasoning", "content": left.cut(response.reasoning)}
        answer["parts"] = [thought, *answer["parts"]]
    answer["finish_reason"] = response.finish_reason.value
    return {"gen_ai.output.messages": _json([answer])}


class _Left:
    """How many characters there is still room for."""

    def __init__(self) -> None:
        self.chars = MAX_CHARS

    def cut(self, text: str) -> str:
        kept = text[: max(self.chars, 0)]
        self.chars -= len(kept)
        return kept


def _bounded(messages: Sequence[Message]) -> list[dict[str, Any]]:
    left = _Left()
    kept: list[dict[str, Any]] = []
    for message in reversed(messages[-_MAX_MESSAGES:]):
        if left.chars <= 0:
            break
        kept.append(_message(message, left))
    return kept[::-1]


def _message(message: Message, left: _Left) -> dict[str, Any]:
    match message.role:
        case Role.ASSISTANT:
            return _assistant(message.text(), message.tool_calls, left)
        case Role.TOOL:
            part = {"type": "tool_call_response", "id": message.tool_call_id, "response": left.cut(message.text())}
            return {"role": "tool", "parts": [part]}
        case Role.SYSTEM | Role.USER:
            return {"role": message.role.value, "parts": _parts(message.content, left)}


def _parts(content: Content, left: _Left) -> list[dict[str, Any]]:
    if isinstance(content, str):
        return [{"type": "text", "content": left.cut(content)}]
    parts: list[dict[str, Any]] = []
    for part in content:
        if left.chars <= 0:
            break
        left.chars -= _PART_CHARS
        if part["type"] == "text":
            parts.append({"type": "text", "content": left.cut(part["text"])})
        else:
            parts.append(_image(part["image_url"]["url"], left))
    return parts


def _image(url: str, left: _Left) -> dict[str, Any]:
    """An image by its address, or of a data: URL its media type alone: its data is the size of a request."""
    if url[:5].lower() != "data:":
        return {"type": "uri", "modality": "image", "uri": left.cut(url)}
    found = _DATA_URL.match(url)
    media_type = {} if found is None else {"mime_type": found[1]}
    return {"type": "blob", "modality": "image", **media_type, "content": ""}


def _assistant(text: str, calls: Sequence[ToolCall], left: _Left) -> dict[str, Any]:
    parts: list[dict[str, Any]] = [{"type": "text", "content": left.cut(text)}] if text else []
    for call in calls:
        arguments = left.cut(call.arguments)
        parts.append({"type": "tool_call", "id": call.id, "name": call.name, "arguments": json_or_text(arguments)})
    return {"role": "assistant", "parts": parts}


def _json(value: object) -> str:
    try:
        return orjson.dumps(value).decode()
    except orjson.JSONEncodeError:  # half a surrogate pair, which no encoding of text has
        return "[]"
