"""`remember` and `recall`: an agent's long-term memory. Where it is kept is the agent's setting, never the model's."""

from __future__ import annotations

from typing import Annotated, Any

import orjson
from pydantic import AfterValidator, Field

from app.engine.effects import ToolEffect
from app.engine.memories import (
    KEY_PATTERN,
    MAX_KEY_CHARS,
    MAX_QUERY_CHARS,
    MAX_TEXT_CHARS,
    MemoryRecord,
    checked_key,
)
from app.engine.timestamp import timestamp
from app.tools.function_tool import tool
from app.tools.tool_context import ToolContext

_MAX_RECALLED = 20

_Text = Annotated[str, Field(min_length=1, max_length=MAX_TEXT_CHARS, examples=["Prefers a window seat."])]
_Key = Annotated[
    str,
    Field(min_length=1, max_length=MAX_KEY_CHARS, examples=["seat"], json_schema_extra={"pattern": KEY_PATTERN}),
    AfterValidator(checked_key),
]
_Query = Annotated[str, Field(min_length=1, max_length=MAX_QUERY_CHARS)]


@tool(effect=ToolEffect.IDEMPOTENT)
async def remember(text: _Text, context: ToolContext, key: _Key | None = None) -> dict[str, Any]:
    """Remember something beyond this conversation, such as a preference, a fact or a decision.

    Args:
        text: what to remember, as a sentence that is understood without this conversation.
        key: a short name for what the text is about; remembering under the same key again replaces the text.
    """
    record = await context.memories().remember(text, context.idempotency_key if key is None else key)
    return {"key": record.key, "remembered": True}


@tool(effect=ToolEffect.READ_ONLY)
async def recall(
    query: _Query, context: ToolContext, limit: Annotated[int, Field(ge=1, le=_MAX_RECALLED)] = 5
) -> dict[str, Any]:
    """Look up what was remembered in earlier conversations.

    Args:
        query: what to look for, in the words that it may have been remembered in.
        limit: the most memories to answer with; the best ones come first.
    """
    found = await context.memories().recall(query, limit)
    return {"memories": [_shown(item.record) for item in found.items], "searched": found.mode.value}


def _shown(record: MemoryRecord) -> dict[str, Any]:
    shown = {"key": record.key, "text": record.text, "updated_at": timestamp(record.updated_at)}
    value = orjson.loads(record.value)
    # Where the text was made from the value, it says the same.
    return shown if record.text in (value, record.value) else {**shown, "value": value}
