"""Results of MCP tools as values."""

from __future__ import annotations

import pytest
from mcp_types import (
    BlobResourceContents,
    CallToolResult,
    EmbeddedResource,
    ImageContent,
    TextContent,
)

from app.tools.errors import HandlerError
from app.tools.mcp_servers.content import MAX_DATA_CHARS, value_of


def test_texts_are_joined() -> None:
    assert value_of(CallToolResult(content=[TextContent(text="a"), TextContent(text="b")])) == "a\nb"
    assert value_of(CallToolResult(content=[])) == ""


def test_structure_goes_before_text() -> None:
    result = CallToolResult(content=[TextContent(text='{"a": 1}')], structured_content={"a": 1})
    assert value_of(result) == {"a": 1}
    assert value_of(CallToolResult(content=[], structured_content=0)) == 0


def test_data_past_its_bound_is_left_out_and_said_so() -> None:
    image = ImageContent(data="x" * (MAX_DATA_CHARS + 1), mime_type="image/png")
    blob = BlobResourceContents(uri="a:b", blob="eA==", mime_type=None)
    assert value_of(CallToolResult(content=[image, EmbeddedResource(resource=blob)])) == [
        {"type": "image", "mime_type": "image/png", "data": None, "left_out_chars": MAX_DATA_CHARS + 1},
        {"type": "resource", "uri": "a:b", "mime_type": None, "data": "eA=="},
    ]


def test_an_error_is_raised_with_its_text() -> None:
    with pytest.raises(HandlerError, match=r"^no such order$"):
        value_of(CallToolResult(content=[TextContent(text="no such order")], is_error=True))
    with pytest.raises(HandlerError, match="without a word"):
        value_of(CallToolResult(content=[], is_error=True))
