"""A whole answer as bytes, for a cache, and back."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal

import orjson

from app.engine.messages import Reasoning, ToolCall
from app.engine.model import FinishReason, ModelEvent, ModelResponse, ReasoningDelta, TextDelta, ToolCallDelta
from app.engine.usage import Usage


def stored_answer(response: ModelResponse) -> bytes:
    """What others are told of an answer: nothing of what it took."""
    kept = response.kept
    return orjson.dumps(
        {
            "provider": response.provider,
            "model": response.model,
            "text": response.text,
            "reasoning": response.reasoning,
            "tool_calls": [(call.id, call.name, call.arguments) for call in response.tool_calls],
            "finish_reason": response.finish_reason,
            "kept": None if kept is None else (kept.provider, kept.blocks),
        }
    )


def restored_answer(stored: bytes) -> ModelResponse:
    """The inverse of `stored_answer`, as a response that costs nothing.

    Raises:
        ValueError, KeyError, TypeError: these bytes are of something else.
    """
    data = orjson.loads(stored)
    kept = data["kept"]
    return ModelResponse(
        provider=data["provider"],
        model=data["model"],
        text=data["text"],
        tool_calls=tuple(ToolCall(*call) for call in data["tool_calls"]),
        finish_reason=FinishReason(data["finish_reason"]),
        usage=Usage(),
        cost_usd=Decimal(0),
        reasoning=data["reasoning"],
        kept=None if kept is None else Reasoning(kept[0], tuple(kept[1])),
        reused=True,
    )


def events_of(response: ModelResponse) -> Iterator[ModelEvent]:
    """An answer that is there at once, as a stream."""
    if response.reasoning:
        yield ReasoningDelta(response.reasoning)
    if response.text:
        yield TextDelta(response.text)
    for index, call in enumerate(response.tool_calls):
        yield ToolCallDelta(index, call.id, call.name, call.arguments)
    yield response
