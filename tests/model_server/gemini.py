"""Gemini's generateContent, as https://ai.google.dev/api/generate-content has it.

A stream is server-sent events (`alt=sse`), each a GenerateContentResponse; the last one has the finishReason. Thoughts
are parts with `thought`; a call of a function has no id of its own, and with Gemini 3 a thoughtSignature that must come
back with it (https://ai.google.dev/gemini-api/docs/thought-signatures).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from tests.model_server.reply import Reply
from tests.model_server.server import ModelServer

USAGE: dict[str, Any] = {"promptTokenCount": 11, "candidatesTokenCount": 7, "totalTokenCount": 18}
_STATUSES = {
    400: "INVALID_ARGUMENT",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    503: "UNAVAILABLE",
}


@dataclass(frozen=True)
class GeminiReply(Reply):
    """An answer in Gemini's form; `finish_reason` by Gemini's names, such as MAX_TOKENS or SAFETY.

    Args:
        signature: of each call; None for none.
    """

    usage: Mapping[str, Any] | None = field(default_factory=lambda: USAGE)
    signature: str | None = None

    @classmethod
    def error(
        cls,
        status: int,
        message: str = "no",
        *,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> GeminiReply:
        """`code` is a retryDelay, such as 34s."""
        error: dict[str, Any] = {"code": status, "message": message, "status": _STATUSES.get(status, "UNKNOWN")}
        if code is not None:
            error["details"] = [{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": code}]
        return cls(status=status, body={"error": error}, headers=headers or {})

    def streams(self, path: str, body: Mapping[str, Any]) -> bool:
        return path.endswith(":streamGenerateContent")

    def completion(self, model: str) -> bytes:
        return orjson.dumps(self._response(self._parts(), last=True))

    def pieces(self, model: str) -> list[bytes]:
        if self.events is not None:
            return [
                event.encode() if isinstance(event, str) else b"data: " + orjson.dumps(event) + b"\r\n\r\n"
                for event in self.events
            ]
        parts = self._parts()
        responses = [
            self._response([part], last=place == len(parts) and self.finish_reason is not None)
            for place, part in enumerate(parts, 1)
        ]
        return [b"data: " + orjson.dumps(response) + b"\r\n\r\n" for response in responses]

    def _parts(self) -> list[dict[str, Any]]:
        parts: list[dict[str, Any]] = [{"text": piece, "thought": True} for piece in self.reasoning]
        words = re.findall(r"\S+\s*|\s+", self.text) if isinstance(self.text, str) else self.text
        parts += [{"text": word} for word in words]
        for call in self.tool_calls:
            signature = {} if self.signature is None else {"thoughtSignature": self.signature}
            parts.append({"functionCall": {"name": call["name"], "args": call.get("arguments", {})}, **signature})
        return parts or [{"text": ""}]

    def _response(self, parts: list[dict[str, Any]], *, last: bool) -> dict[str, Any]:
        candidate: dict[str, Any] = {"content": {"parts": parts, "role": "model"}, "index": 0}
        if last:
            candidate["finishReason"] = self.finish_reason or "STOP"
        response = {"candidates": [candidate], "modelVersion": "gemini-2.5-flash", "responseId": "r1"}
        return response if self.usage is None or not last else {**response, "usageMetadata": self.usage}


def gemini_server(**options: Any) -> ModelServer:
    """A server at POST /v1beta/models/{model}:streamGenerateContent."""
    return ModelServer(paths=("/v1beta/models/{call}",), otherwise=lambda body: GeminiReply(), **options)
