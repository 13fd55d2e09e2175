"""Ollama's chat, as https://github.com/ollama/ollama/blob/main/docs/api.md#generate-a-chat-completion has it.

A stream is one JSON object a line; the last one is `done` and has the counts. Thoughts are `thinking`; calls come
whole, with arguments as an object and without an id.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import orjson

from tests.model_server.reply import Reply
from tests.model_server.server import ModelServer

USAGE: dict[str, Any] = {"prompt_eval_count": 11, "eval_count": 7}


@dataclass(frozen=True)
class OllamaReply(Reply):
    """An answer in Ollama's form."""

    STREAM_TYPE: ClassVar[str] = "application/x-ndjson"

    usage: Mapping[str, Any] | None = field(default_factory=lambda: USAGE)

    @classmethod
    def error(
        cls,
        status: int,
        message: str = "no",
        *,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> OllamaReply:
        return cls(status=status, body={"error": message}, headers=headers or {})

    def streams(self, path: str, body: Mapping[str, Any]) -> bool:
        return body.get("stream") is not False

    def completion(self, model: str) -> bytes:
        message: dict[str, Any] = {"role": "assistant", "content": "".join(self.text)}
        if self.tool_calls:
            message["tool_calls"] = self._calls()
        return orjson.dumps(self._last(model, message))

    def pieces(self, model: str) -> list[bytes]:
        if self.events is not None:
            return [event.encode() if isinstance(event, str) else orjson.dumps(event) + b"\n" for event in self.events]
        words = re.findall(r"\S+\s*|\s+", self.text) if isinstance(self.text, str) else self.text
        messages: list[dict[str, Any]] = [{"content": "", "thinking": piece} for piece in self.reasoning]
        messages += [{"content": word} for word in words]
        if self.tool_calls:
            messages.append({"content": "", "tool_calls": self._calls()})
        lines = [{**self._head(model), "message": {"role": "assistant", **m}, "done": False} for m in messages]
        if self.finish_reason is not None:
            lines.append(self._last(model, {"role": "assistant", "content": ""}))
        return [orjson.dumps(line) + b"\n" for line in lines]

    def _head(self, model: str) -> dict[str, Any]:
        return {"model": model, "created_at": "2026-03-01T12:00:00.000000Z"}

    def _last(self, model: str, message: dict[str, Any]) -> dict[str, Any]:
        reason = self.finish_reason or "stop"
        return {**self._head(model), "message": message, "done": True, "done_reason": reason, **(self.usage or {})}

    def _calls(self) -> list[dict[str, Any]]:
        return [
            {"function": {"name": call["name"], "arguments": call.get("arguments", {})}} for call in self.tool_calls
        ]


def ollama_server(**options: Any) -> ModelServer:
    """A server at POST /api/chat."""
    return ModelServer(paths=("/api/chat",), otherwise=lambda body: OllamaReply(), **options)
