"""What an answer has said so far, whatever the wire format: text, thoughts and tool calls, within bounds."""

from __future__ import annotations

from typing import Any

from app.engine.errors import ModelError, ModelErrorCode
from app.engine.messages import ToolCall
from app.engine.model import ReasoningDelta, TextDelta, ToolCallDelta
from app.llm.answer_body import MAX_ANSWER_BYTES
from app.llm.tool_call_pieces import ToolCallPieces

# What a piece counts for at least: kept apart, it takes more memory than its text.
_LEAST_PIECE_BYTES = 16
_MAX_CALLS = 1024


class Gathered:
    """Takes the pieces of one answer and gives the deltas that they mean.

    Args:
        provider: the name that errors begin with.
    """

    __slots__ = ("_bytes", "_calls", "_provider", "_reasoning", "_text")

    def __init__(self, provider: str) -> None:
        self._provider = provider
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._calls = ToolCallPieces()
        self._bytes = 0

    @property
    def text(self) -> str:
        return "".join(self._text)

    @property
    def reasoning(self) -> str:
        return "".join(self._reasoning)

    @property
    def has_calls(self) -> bool:
        return len(self._calls) > 0

    def add_text(self, text: str) -> TextDelta:
        """Raises `ModelError` INVALID_RESPONSE, as all that adds does, where the answer is too long to be held."""
        self.hold(text)
        self._text.append(text)
        return TextDelta(text)

    def add_reasoning(self, text: str) -> ReasoningDelta:
        self.hold(text)
        self._reasoning.append(text)
        return ReasoningDelta(text)

    def add_call(self, piece: dict[str, Any]) -> ToolCallDelta:
        """One element of a delta's `tool_calls`, in OpenAI's form."""
        delta = self._calls.add(piece)
        self.hold(delta.tool_call_id + delta.name + delta.delta)
        if len(self._calls) > _MAX_CALLS:
            raise self.invalid(f"more than {_MAX_CALLS} tool calls in one answer")
        return delta

    def hold(self, said: str) -> None:
        """Count what is about to be kept."""
        size = len(said) if said.isascii() else len(said.encode())
        self._bytes += max(size, _LEAST_PIECE_BYTES)
        if self._bytes > MAX_ANSWER_BYTES:
            raise self.invalid(f"the answer is longer than {MAX_ANSWER_BYTES // 1024**2} MiB")

    def calls(self, *, complete: bool) -> tuple[ToolCall, ...]:
        """The calls so far; see `ToolCallPieces.calls`.

        Raises:
            ModelError: a tool was called without being named.
        """
        calls = self._calls.calls(complete=complete)
        if any(not call.name for call in calls):
            raise self.invalid("a tool call without a name")
        return calls

    def invalid(self, what: str) -> ModelError:
        return ModelError(ModelErrorCode.INVALID_RESPONSE, f"{self._provider}: {what}")
