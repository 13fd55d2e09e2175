"""Thoughts that a provider wants back with the answer that they belong to, in the forms that chat completions know.

reasoning_details   OpenRouter: the blocks as they came, put together again
                    https://openrouter.ai/docs/use-cases/reasoning-tokens#preserving-reasoning-blocks
reasoning_content   DeepSeek and others, which refuse (400) a call of a tool without the thoughts that led to it
                    https://api-docs.deepseek.com/guides/thinking_mode
thinking_blocks     litellm's form of Anthropic's signed blocks
                    https://docs.litellm.ai/docs/reasoning_content
__thought__         litellm puts Gemini's signature of a tool call behind the call's id
                    https://docs.litellm.ai/docs/providers/gemini#thought-signatures
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from app.engine.messages import Message, Reasoning
from app.llm.json_values import as_array, as_object, as_text

_SIGNATURE = "__thought__"
_CONTENT = "reasoning_content"
_CALL_SIGNATURE = "thought_signature"
# Of a block that comes in pieces, what is a piece of text; all else of a later piece takes the place of the earlier.
_IN_PIECES = frozenset({"text", "summary", "thinking"})


class KeptReasoning:
    """Collects, out of one answer's deltas, what has to be shown again."""

    __slots__ = ("_blocks", "_content", "_signatures")

    def __init__(self) -> None:
        self._blocks: list[dict[str, Any]] = []
        self._content: list[str] = []
        self._signatures: dict[int, str] = {}

    def take(self, delta: Mapping[str, Any]) -> str:
        """Keep what one delta brings of it; what was kept, as far as it is text, for its size."""
        content = as_text(delta.get(_CONTENT))
        if content:
            self._content.append(content)
        taken = ""
        for piece in (*as_array(delta.get("reasoning_details")), *as_array(delta.get("thinking_blocks"))):
            block = as_object(piece)
            if block.get("type"):
                self._add(block)
                taken += "".join(value for value in block.values() if isinstance(value, str))
        return taken

    def take_call(self, index: int, call_id: str) -> str:
        """Keep the signature behind a call's id; the id without it."""
        call_id, _, signature = call_id.partition(_SIGNATURE)
        if signature:
            self._signatures[index] = signature
        return call_id

    def kept(self, provider: str, *, has_calls: bool) -> Reasoning | None:
        """All of it, once the answer is whole; None where there is nothing to be shown again."""
        blocks = [block for block in self._blocks if block["type"] != "thinking" or block.get("signature")]
        if has_calls and self._content and not blocks:
            blocks.append({"type": _CONTENT, "text": "".join(self._content)})
        for index, signature in self._signatures.items():
            blocks.append({"type": _CALL_SIGNATURE, "index": index, "signature": signature})
        return Reasoning(provider, tuple(blocks)) if blocks else None

    def _add(self, block: dict[str, Any]) -> None:
        last = self._blocks[-1] if self._blocks else None
        if last is None or not _goes_on(last, block):
            self._blocks.append(dict(block))
            return
        for name, value in block.items():
            if name in _IN_PIECES:
                last[name] = as_text(last.get(name)) + as_text(value)
            elif value is not None and value != "":
                last[name] = value


def _goes_on(last: Mapping[str, Any], block: Mapping[str, Any]) -> bool:
    """Whether a piece belongs to the block before it: a signature ends one, and sealed ones come whole."""
    same = last["type"] == block["type"] and last.get("index") == block.get("index")
    return same and not last.get("signature") and not _IN_PIECES.isdisjoint(block)


def returned_fields(message: Message, provider: str) -> dict[str, Any]:
    """The fields of a chat message that show a provider again what it wanted back; none for another provider's."""
    kept = message.kept
    if kept is None or kept.provider != provider:
        return {}
    fields: dict[str, Any] = {}
    for block in map(as_object, kept.blocks):
        kind = as_text(block.get("type"))
        if kind == _CONTENT:
            fields[_CONTENT] = block.get("text")
        elif kind.startswith("reasoning."):
            fields.setdefault("reasoning_details", []).append(block)
        elif kind in ("thinking", "redacted_thinking"):
            fields.setdefault("thinking_blocks", []).append(block)
    return fields


def call_signatures(message: Message, provider: str) -> dict[int, str]:
    """The signatures of a message's tool calls, by the call's place; none for another provider's."""
    kept = message.kept
    if kept is None or kept.provider != provider:
        return {}
    blocks = [block for block in map(as_object, kept.blocks) if block.get("type") == _CALL_SIGNATURE]
    return {block["index"]: block["signature"] for block in blocks}
