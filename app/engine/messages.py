"""What a thread holds and what a model reads: messages, in one provider-neutral form."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal, TypedDict

import orjson


class Role(StrEnum):
    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"


class TextPart(TypedDict):
    type: Literal["text"]
    text: str


class ImageUrl(TypedDict):
    url: str


class ImagePart(TypedDict):
    type: Literal["image_url"]
    image_url: ImageUrl


ContentPart = TextPart | ImagePart
Content = str | list[ContentPart]


def json_or_text(text: str) -> orjson.Fragment | str:
    """Text that a model or a tool wrote, ready to stand inside a line of JSON.

    What is valid JSON is not rebuilt, so that numbers stay as they were written; only its line ends are taken out,
    which in valid JSON can stand between tokens alone.
    """
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError:
        return text
    return orjson.Fragment(text.replace("\n", " ").replace("\r", " "))


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call that a model asked for.

    `arguments` is the text exactly as the model wrote it, valid JSON or not: it is what the provider must be shown
    again, and malformed JSON is an error for the model to read, never an empty object.
    """

    id: str
    name: str
    arguments: str

    def shown_arguments(self) -> orjson.Fragment | str:
        """The arguments for an `orjson.dumps`: as JSON, or as a string where the model wrote no JSON."""
        return json_or_text(self.arguments)


@dataclass(frozen=True, slots=True)
class Reasoning:
    """What a provider wants back with the answer that it belongs to: signed thoughts, as it gave them.

    Nothing of it is for people, and no other provider is shown it.

    Args:
        provider: the prefix of the model that gave it.
        blocks: JSON values.
    """

    provider: str
    blocks: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Message:
    """One message.

    `tool_calls` and `kept` only on assistant messages, `tool_call_id` and `failed` (the call failed) only on tool
    messages.
    """

    role: Role
    content: Content = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    kept: Reasoning | None = None
    failed: bool = False

    def body(self) -> dict[str, Any]:
        """The part that is stored as JSON beside the role; `from_body` is its inverse."""
        body: dict[str, Any] = {"content": self.content}
        if self.tool_calls:
            body["tool_calls"] = [{"id": c.id, "name": c.name, "arguments": c.arguments} for c in self.tool_calls]
        if self.tool_call_id is not None:
            body["tool_call_id"] = self.tool_call_id
        if self.kept is not None:
            body["kept"] = {"provider": self.kept.provider, "blocks": self.kept.blocks}
        if self.failed:
            body["failed"] = True
        return body

    @classmethod
    def from_body(cls, role: str, body: dict[str, Any]) -> Message:
        return cls(
            role=Role(role),
            content=body["content"],
            tool_calls=tuple(ToolCall(c["id"], c["name"], c["arguments"]) for c in body.get("tool_calls", ())),
            tool_call_id=body.get("tool_call_id"),
            kept=Reasoning(body["kept"]["provider"], tuple(body["kept"]["blocks"])) if "kept" in body else None,
            failed=body.get("failed", False),
        )

    def text(self) -> str:
        """The text of the content, parts joined; images leave no trace."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part["text"] for part in self.content if part["type"] == "text")


@dataclass(frozen=True, slots=True)
class ThreadMessage:
    """A message with its place in a thread. `run_id` is None for messages appended by hand."""

    seq: int
    message: Message
    run_id: str | None = None
