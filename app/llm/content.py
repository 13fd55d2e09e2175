"""What models are asked and what they answer, as spans carry it (TELEMETRY_CONTENT=on): JSON by the schemas of the
conventions, bounded.

https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-input-messages.json
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson

from app.engine.messages import Message, Role, ToolCall, json_or_text
from app.engine.model import ModelRequest, ModelResponse

# Characters of one attribute's texts; a queue of spans that nobody takes stays small with it.
MAX_CHARS = 16_384
_MAX_MESSAGES = 200


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
    answer = {**_assistant(response.text, response.tool_calls, left), "finish_reason": response.finish_reason.value}
    return {"gen_ai.output.messages": _json([answer])}


class _Left:
    """How many characters there is still room for."""

    def __init__(self) -> None:
        self.chars = MAX_CHARS

    def cut(self, text: str) -> str:
        kept = text[: self.chars]
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
            return {"role": message.role.value, "parts": [{"type": "text", "content": left.cut(message.text())}]}


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
