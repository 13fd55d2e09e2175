"""What a call of an MCP tool brought, as the value of the tool."""

from __future__ import annotations

from typing import Any, assert_never

from mcp_types import (
    AudioContent,
    BlobResourceContents,
    CallToolResult,
    ContentBlock,
    EmbeddedResource,
    ImageContent,
    ResourceLink,
    TextContent,
)

from app.tools.errors import HandlerError

MAX_DATA_CHARS = 64 * 1024
_MAX_ERROR_CHARS = 2_000


def value_of(result: CallToolResult) -> object:
    """The structured content if there is any, else the text, else a list with an object for each part.

    Binary data stays base64 text; what has more than `MAX_DATA_CHARS` characters of it is left out and its length told.

    Raises:
        HandlerError: the tool says that it failed; with its text.
    """
    if result.is_error:
        text = _text(result.content) or "the tool failed without a word"
        raise HandlerError(text[:_MAX_ERROR_CHARS])
    if result.structured_content is not None:
        return result.structured_content
    if all(isinstance(block, TextContent) for block in result.content):
        return _text(result.content)
    return [_part(block) for block in result.content]


def _text(content: list[ContentBlock]) -> str:
    return "\n".join(block.text for block in content if isinstance(block, TextContent))


def _part(block: ContentBlock) -> dict[str, Any]:
    match block:
        case TextContent():
            return {"type": "text", "text": block.text}
        case ImageContent() | AudioContent():
            return {"type": block.type, "mime_type": block.mime_type, **_data(block.data)}
        case ResourceLink():
            about = {"name": block.name, "description": block.description, "mime_type": block.mime_type}
            known = {key: value for key, value in about.items() if value is not None}
            return {"type": block.type, "uri": block.uri, **known}
        case EmbeddedResource():
            resource = block.resource
            about = {"type": block.type, "uri": resource.uri, "mime_type": resource.mime_type}
            if isinstance(resource, BlobResourceContents):
                return {**about, **_data(resource.blob)}
            return {**about, "text": resource.text}
        case _:
            assert_never(block)


def _data(base64: str) -> dict[str, Any]:
    if len(base64) > MAX_DATA_CHARS:
        return {"data": None, "left_out_chars": len(base64)}
    return {"data": base64}
