"""Messages and tools in the form of https://platform.claude.com/docs/en/api/messages."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from hashlib import sha256
from typing import Any

import orjson

from app.engine.messages import Content, Message, Role, ToolCall
from app.engine.tools import ToolSpec
from app.llm.json_values import as_object

PROVIDER = "anthropic"
EPHEMERAL = {"type": "ephemeral"}
_ODD_IN_AN_ID = re.compile(r"[^a-zA-Z0-9_-]")
_DATA_URL = re.compile(r"data:([^;,]+);base64,", re.IGNORECASE)
_MEDIA_TYPES = {"image/jpg": "image/jpeg"}
_BEGINNING = "(The conversation begins with an answer.)"


def system_blocks(messages: Iterable[Message]) -> list[dict[str, Any]]:
    """All system messages, in order. Only the newest models take any between the others, so all go to the top."""
    return [_text(m.text()) for m in messages if m.role is Role.SYSTEM and m.text().strip()]


def turns(messages: Iterable[Message]) -> list[dict[str, Any]]:
    """The conversation: what follows each other in one role is one turn, and the first is the user's.

    The results of a step's calls must stand together in the turn behind it, before any text.
    """
    result: list[dict[str, Any]] = []
    for message in messages:
        role = "assistant" if message.role is Role.ASSISTANT else "user"
        blocks = _blocks(message)
        if not blocks:
            continue
        if result and result[-1]["role"] == role:
            result[-1]["content"] += blocks
        else:
            result.append({"role": role, "content": blocks})
    if not result or result[0]["role"] != "user":
        result.insert(0, {"role": "user", "content": [_text(_BEGINNING)]})
    return result


def mark(blocks: Sequence[dict[str, Any]]) -> None:
    """End a cached prefix with the last of these blocks; thoughts cannot carry the mark."""
    if blocks and blocks[-1]["type"] not in ("thinking", "redacted_thinking"):
        blocks[-1]["cache_control"] = EPHEMERAL


def mark_turns(conversation: Sequence[dict[str, Any]]) -> None:
    """End cached prefixes with the last turn, and with the user's turn before it.

    The last one is for the next step. The one before stood last in the step before: it finds what that step has
    written even where more than 20 blocks have come since, which is as far as a mark looks back.
    https://platform.claude.com/docs/en/build-with-claude/prompt-caching
    """
    mark(conversation[-1]["content"])
    earlier = [turn for turn in conversation[:-1] if turn["role"] == "user"]
    if earlier:
        mark(earlier[-1]["content"])


def declared_tools(tools: Sequence[ToolSpec]) -> list[dict[str, Any]]:
    """Tools, the last of them marked as the end of a cached prefix."""
    blocks = plain_tools(tools)
    blocks[-1]["cache_control"] = EPHEMERAL
    return blocks


def plain_tools(tools: Sequence[ToolSpec]) -> list[dict[str, Any]]:
    """Tools without that mark."""
    return [
        {"name": tool.name, "description": tool.description, "input_schema": {"type": "object", **tool.parameters}}
        for tool in tools
    ]


def former_tools(messages: Iterable[Message]) -> list[dict[str, Any]]:
    """Declarations for the tools that were called where none can be called any more.

    A conversation with calls is refused without any: litellm adds one, too (`add_dummy_tool`).
    """
    names = {call.name: None for message in messages for call in message.tool_calls}
    description = "This tool can no longer be called."
    return [{"name": name, "description": description, "input_schema": {"type": "object"}} for name in names]


def _blocks(message: Message) -> list[dict[str, Any]]:
    match message.role:
        case Role.USER:
            return _content(message.content) or [_text("(empty)")]
        case Role.ASSISTANT:
            return [*_thoughts(message), *_content(message.content), *map(_tool_use, message.tool_calls)]
        case Role.TOOL:
            return [_tool_result(message)]
        case Role.SYSTEM:
            # Its text is at the top, where no image may stand.
            return [block for block in _content(message.content) if block["type"] == "image"]


def _thoughts(message: Message) -> list[dict[str, Any]]:
    """Signed thoughts, unchanged, before what followed from them; those of other providers mean nothing here."""
    if message.kept is None or message.kept.provider != PROVIDER:
        return []
    return [dict(as_object(block)) for block in message.kept.blocks]


def _content(content: Content) -> list[dict[str, Any]]:
    """Text and images; a text of nothing but white space is refused."""
    if isinstance(content, str):
        return [_text(content)] if content.strip() else []
    blocks: list[dict[str, Any]] = []
    for part in content:
        if part["type"] == "image_url":
            blocks.append({"type": "image", "source": _source(part["image_url"]["url"])})
        elif part["text"].strip():
            blocks.append(_text(part["text"]))
    return blocks


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _source(url: str) -> dict[str, str]:
    """https://platform.claude.com/docs/en/build-with-claude/vision"""
    data = _DATA_URL.match(url)
    if data is None:
        return {"type": "url", "url": url}
    media_type = data[1].lower()
    return {"type": "base64", "media_type": _MEDIA_TYPES.get(media_type, media_type), "data": url[data.end() :]}


def _tool_use(call: ToolCall) -> dict[str, Any]:
    return {"type": "tool_use", "id": _id(call.id), "name": call.name, "input": _input(call.arguments)}


def _input(arguments: str) -> orjson.Fragment | dict[str, str]:
    """What the model wrote, as it wrote it; an input must be an object, so that anything else is put into one."""
    try:
        is_object = isinstance(orjson.loads(arguments), dict)
    except orjson.JSONDecodeError:
        is_object = False
    return orjson.Fragment(arguments) if is_object else {"invalid_json": arguments}


def _tool_result(message: Message) -> dict[str, Any]:
    block: dict[str, Any] = {"type": "tool_result", "tool_use_id": _id(message.tool_call_id or "")}
    content = _content(message.content)
    if content:
        block["content"] = content
    if message.failed:
        block["is_error"] = True
    return block


def _id(call_id: str) -> str:
    """The id if the API takes it, else one that stands for it alone: other providers' ids hold other characters."""
    if call_id and not _ODD_IN_AN_ID.search(call_id):
        return call_id
    return f"call_{sha256(call_id.encode()).hexdigest()[:24]}"
