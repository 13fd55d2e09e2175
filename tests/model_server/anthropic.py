"""Anthropic's Messages API, as https://platform.claude.com/docs/en/api/messages and its page on streaming have it.

The order of a stream's events: message_start, then for each block of content content_block_start,
content_block_delta and content_block_stop, then message_delta with the stop reason and message_stop; pings anywhere.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import orjson

from tests.model_server.reply import Reply
from tests.model_server.server import ModelServer

USAGE: dict[str, Any] = {
    "input_tokens": 11,
    "cache_creation_input_tokens": 0,
    "cache_read_input_tokens": 0,
    "output_tokens": 7,
}
_ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    529: "overloaded_error",
}


@dataclass(frozen=True)
class AnthropicReply(Reply):
    """An answer in Anthropic's form; `reasoning` becomes a signed thinking block.

    Args:
        redacted: the data of a redacted_thinking block, sent after the thinking.
        signature: of the thinking block.
        explanation: why a refusal was one, in `stop_details`.
    """

    STREAM_TYPE: ClassVar[str] = "text/event-stream; charset=utf-8"

    usage: Mapping[str, Any] | None = field(default_factory=lambda: USAGE)
    redacted: str | None = None
    signature: str = "c2lnbmVk"
    explanation: str | None = None

    @classmethod
    def error(
        cls,
        status: int,
        message: str = "no",
        *,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> AnthropicReply:
        kind = code or _ERROR_TYPES.get(status, "api_error")
        body = {"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_1"}
        return cls(status=status, body=body, headers=headers or {})

    def completion(self, model: str) -> bytes:
        message = self._message(model, self._blocks())
        stop = {"stop_reason": self._stop_reason(), "stop_sequence": None, "stop_details": self._stop_details()}
        return orjson.dumps({**message, **stop, "usage": self.usage})

    def pieces(self, model: str) -> list[bytes]:
        if self.events is not None:
            return [event.encode() if isinstance(event, str) else _event(event) for event in self.events]
        start = self._message(model, [])
        if self.usage is not None:
            start["usage"] = {**self.usage, "output_tokens": 1}
        pieces = [_event({"type": "message_start", "message": start}), _event({"type": "ping"})]
        for index, block in enumerate(self._blocks()):
            pieces += _block_events(index, block)
        if self.finish_reason is not None:
            delta = {"stop_reason": self._stop_reason(), "stop_sequence": None, "stop_details": self._stop_details()}
            usage = {} if self.usage is None else {"usage": self._last_usage(self.usage)}
            pieces.append(_event({"type": "message_delta", "delta": delta, **usage}))
        if self.done:
            pieces.append(_event({"type": "message_stop"}))
        return pieces

    def _message(self, model: str, content: list[dict[str, Any]]) -> dict[str, Any]:
        return {"id": "msg_1", "type": "message", "role": "assistant", "model": model, "content": content}

    def _blocks(self) -> list[dict[str, Any]]:
        blocks: list[dict[str, Any]] = []
        if self.reasoning:
            thought = "".join(self.reasoning)
            blocks.append({"type": "thinking", "thinking": thought, "signature": self.signature})
        if self.redacted is not None:
            blocks.append({"type": "redacted_thinking", "data": self.redacted})
        if self.text:
            blocks.append({"type": "text", "text": "".join(self.text)})
        for place, call in enumerate(self.tool_calls):
            call_id = call.get("id") or f"toolu_{place}"
            blocks.append({"type": "tool_use", "id": call_id, "name": call["name"], "input": call.get("arguments", {})})
        return blocks

    def _stop_reason(self) -> str | None:
        return ("tool_use" if self.tool_calls else "end_turn") if self.finish_reason == "" else self.finish_reason

    def _stop_details(self) -> dict[str, Any] | None:
        if self.explanation is None:
            return None
        return {"type": "refusal", "category": None, "explanation": self.explanation}

    def _last_usage(self, usage: Mapping[str, Any]) -> dict[str, Any]:
        return {name: usage[name] for name in ("output_tokens", "output_tokens_details") if name in usage}


def anthropic_server(**options: Any) -> ModelServer:
    """A server at POST /v1/messages that answers "Hello." where no script says otherwise."""
    return ModelServer(paths=("/v1/messages",), otherwise=lambda body: AnthropicReply(), **options)


def _event(data: Mapping[str, Any]) -> bytes:
    return b"event: " + str(data["type"]).encode() + b"\ndata: " + orjson.dumps(data) + b"\n\n"


def _block_events(index: int, block: Mapping[str, Any]) -> list[bytes]:
    begun, deltas = _begun(block)
    return [
        _event({"type": "content_block_start", "index": index, "content_block": begun}),
        *(_event({"type": "content_block_delta", "index": index, "delta": delta}) for delta in deltas),
        _event({"type": "content_block_stop", "index": index}),
    ]


def _begun(block: Mapping[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A block as it begins, and the deltas that fill it."""
    match block["type"]:
        case "text":
            words = re.findall(r"\S+\s*|\s+", block["text"])
            return {"type": "text", "text": ""}, [{"type": "text_delta", "text": word} for word in words]
        case "thinking":
            deltas: list[dict[str, Any]] = [{"type": "thinking_delta", "thinking": block["thinking"]}]
            deltas.append({"type": "signature_delta", "signature": block["signature"]})
            return {"type": "thinking", "thinking": "", "signature": ""}, deltas
        case "tool_use":
            given = block["input"]
            text = given if isinstance(given, str) else orjson.dumps(given).decode()
            halves = ["", text[: len(text) // 2], text[len(text) // 2 :]]
            return {**block, "input": {}}, [{"type": "input_json_delta", "partial_json": half} for half in halves]
        case _:
            return dict(block), []
